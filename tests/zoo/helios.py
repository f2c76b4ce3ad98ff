"""A tiny Helios pipeline: it makes a video in chunks, with the tokens of earlier chunks in front of the video's."""

import torch
from diffusers import HeliosPipeline, HeliosScheduler, HeliosTransformer3DModel

from tests.zoo import parts, wan
from tests.zoo.case import Case


def pipeline(seed: int) -> HeliosPipeline:
    """Four blocks. With the case's arguments a chunk has 5 frames, thus 8 video tokens after 10 of history."""
    torch.manual_seed(seed)
    # At width 32 the weights lie at multiples of 16 bytes in the file, at 16 they do not, and then a product with one
    # row (Helios embeds the timestep 0 by itself) rounds otherwise once loaded: latents differ by 1e-6 from before.
    denoiser = HeliosTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=wan.CHANNELS,
        out_channels=wan.CHANNELS, text_dim=parts.TEXT_WIDTH, freq_dim=16, ffn_dim=32, num_layers=4,
        rope_dim=(8, 4, 4),
    ).eval()  # fmt: skip
    scheduler = HeliosScheduler(stages=1, stage_range=[0, 1], use_dynamic_shifting=True)
    made = HeliosPipeline(parts.tokenizer(), parts.umt5(), wan.vae(), scheduler, denoiser)
    made.set_progress_bar_config(disable=True)
    return made


CASES: tuple[Case, ...] = (
    Case(
        "helios", pipeline, 16, 16, 5,
        arguments=wan.SHORT | {"num_latent_frames_per_chunk": 2, "history_sizes": [4, 2, 1]},
    ),
)  # fmt: skip
