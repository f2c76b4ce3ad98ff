"""Latte: in every layer a block over the patches of each frame, then one over the frames of each patch."""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, LattePipeline, LatteTransformer3DModel

from .case import Case
from .parts import TEXT_WIDTH, t5, tokenizer, wake

FRAMES = 3  # fixed by the table of positions in time


def build(seed: int) -> LattePipeline:
    """Two layers, so two spatial and two temporal blocks; 2 x 2 patches a frame."""
    torch.manual_seed(seed)
    transformer = LatteTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        cross_attention_dim=16, attention_bias=True, sample_size=4, patch_size=2, activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
        caption_channels=TEXT_WIDTH, video_length=FRAMES,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=8,
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_start=0.0001, beta_end=0.02, clip_sample=False)
    made = LattePipeline(tokenizer(120), t5(), vae.eval(), wake(transformer).eval(), scheduler)
    made.set_progress_bar_config(disable=True)
    return made


CASES = (Case("latte", build, 8, 8, FRAMES, arguments={"clean_caption": False}),)
