"""CogVideoX: text to video as in the 2B checkpoint, image to video as in the 5B one (rotary and learned positions)."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)

from .case import Case
from .parts import TEXT_WIDTH, t5, tokenizer, wake

LENGTH = 16  # of a prompt in tokens; the transformer's position table counts on it
NOISE = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def _parts(in_channels: int, rotary: bool) -> dict[str, Any]:
    """All but the scheduler; the clip is 8 x 8 pixels and 5 frames, so 2 x 2 x 3 tokens."""
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=in_channels, out_channels=4, time_embed_dim=16,
        text_embed_dim=TEXT_WIDTH, num_layers=4, sample_width=4, sample_height=4, sample_frames=5,
        temporal_compression_ratio=2, max_text_seq_length=LENGTH, use_rotary_positional_embeddings=rotary,
        use_learned_positional_embeddings=rotary,
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 2, up_block_types=("CogVideoXUpBlock3D",) * 2,
        block_out_channels=(8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=4,
        temporal_compression_ratio=2, sample_height=8, sample_width=8,
    )  # fmt: skip
    return {
        "tokenizer": tokenizer(LENGTH), "text_encoder": t5(), "vae": vae.eval(), "transformer": wake(transformer).eval()
    }  # fmt: skip


def t2v(seed: int) -> CogVideoXPipeline:
    """Sine positions, DDIM."""
    torch.manual_seed(seed)
    made = CogVideoXPipeline(scheduler=CogVideoXDDIMScheduler(**NOISE), **_parts(4, False))
    made.set_progress_bar_config(disable=True)
    return made


def i2v(seed: int) -> CogVideoXImageToVideoPipeline:
    """The image's latents are further channels; DPM, which draws noise at every step."""
    torch.manual_seed(seed)
    made = CogVideoXImageToVideoPipeline(scheduler=CogVideoXDPMScheduler(**NOISE), **_parts(8, True))
    made.set_progress_bar_config(disable=True)
    return made


CASES = (
    Case("cogvideox-t2v", t2v, 8, 8, 5, arguments={"max_sequence_length": LENGTH}),
    Case("cogvideox-i2v", i2v, 8, 8, 5, image=True, fixed_size=True, arguments={"max_sequence_length": LENGTH}),
)
