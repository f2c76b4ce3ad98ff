"""Allegro. Its autoencoder decodes only with tiling switched on, and two clips only with slicing; neither is saved."""

import torch
from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AutoencoderKLAllegro,
    EulerAncestralDiscreteScheduler,
)

from .case import Case
from .parts import TEXT_WIDTH, t5, tokenizer, wake

LENGTH = 16  # of a prompt in tokens
SIDE = 16  # of a tile in pixels; its 24 frames are fixed in the class. Clips that do not fill tiles decode to grey


def build(seed: int) -> AllegroPipeline:
    """2 x 2 x 6 tokens a clip."""
    torch.manual_seed(seed)
    transformer = AllegroTransformer3DModel(
        num_attention_heads=1, attention_head_dim=24, num_layers=4, cross_attention_dim=24, sample_height=SIDE // 4,
        sample_width=SIDE // 4, sample_frames=6, caption_channels=TEXT_WIDTH,
    )  # fmt: skip
    vae = AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 3, up_block_types=("AllegroUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8), temporal_downsample_blocks=(True, True, False),
        temporal_upsample_blocks=(False, True, True), layers_per_block=1, norm_num_groups=4, sample_size=SIDE,
    )  # fmt: skip
    vae.enable_tiling()
    vae.enable_slicing()
    made = AllegroPipeline(
        tokenizer(LENGTH), t5(), vae.eval(), wake(transformer).eval(), EulerAncestralDiscreteScheduler()
    )
    made.set_progress_bar_config(disable=True)
    return made


CASES = (
    Case("allegro", build, SIDE, SIDE, 24, arguments={"max_sequence_length": LENGTH, "clean_caption": False}),
)  # fmt: skip
