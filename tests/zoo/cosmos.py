"""Tiny Cosmos pipelines: Predict1 from text, Predict2 from an image. A frame has 2 x 2 tokens at 16 x 16 pixels.

cosmos_guardrail and torchvision are not needed: the safety checker is a stub, and the padding mask is not concatenated.
"""

from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLCosmos,
    Cosmos2VideoToWorldPipeline,
    CosmosTextToWorldPipeline,
    CosmosTransformer3DModel,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from tests.zoo import parts, wan
from tests.zoo.case import Case


class AllowAll:
    """Stands in for the guardrail, which is no module of diffusers and cannot be saved."""

    def to(self, *args: object, **kwargs: object) -> "AllowAll":
        """Stay where it is."""
        return self

    def check_text_safety(self, prompt: str) -> bool:
        """Find every prompt safe."""
        return True

    def check_video_safety(self, frames: np.ndarray) -> np.ndarray:
        """Give the frames `[T, H, W, 3]` back as they are."""
        return frames


def load() -> dict[str, Any]:
    """What `from_pretrained` has to be given."""
    return {"safety_checker": AllowAll()}


def denoiser(in_channels: int, positions: str | None) -> CosmosTransformer3DModel:
    """Four blocks, with learnt positions or without."""
    made = CosmosTransformer3DModel(
        in_channels=in_channels, out_channels=wan.CHANNELS, num_attention_heads=2, attention_head_dim=12,
        num_layers=4, mlp_ratio=2.0, text_embed_dim=parts.TEXT_WIDTH, adaln_lora_dim=4, max_size=(8, 16, 16),
        rope_scale=(2.0, 1.0, 1.0), concat_padding_mask=False, extra_pos_embed_type=positions,
    )  # fmt: skip
    return parts.wake(made).eval()


def text_to_world(seed: int) -> CosmosTextToWorldPipeline:
    """Predict1. 4k + 1 frames make k + 1 latent frames."""
    torch.manual_seed(seed)
    vae = AutoencoderKLCosmos(
        latent_channels=wan.CHANNELS, encoder_block_out_channels=(8, 8), decode_block_out_channels=(8, 8),
        attention_resolutions=(), resolution=16, num_layers=1, patch_size=4, spatial_compression_ratio=4,
        temporal_compression_ratio=4, latents_mean=None, latents_std=None,
    ).eval()  # fmt: skip
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, final_sigmas_type="sigma_min")
    made = CosmosTextToWorldPipeline(
        parts.t5(), parts.tokenizer(), denoiser(wan.CHANNELS, "learnable"), vae, scheduler, AllowAll()
    )
    made.set_progress_bar_config(disable=True)
    return made


def image_to_world(seed: int) -> Cosmos2VideoToWorldPipeline:
    """Predict2: the denoiser also takes a mask of the frames given, and a timestep for every latent frame."""
    torch.manual_seed(seed)
    scheduler = FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    made = Cosmos2VideoToWorldPipeline(
        parts.t5(), parts.tokenizer(), denoiser(wan.CHANNELS + 1, None), wan.vae(), scheduler, AllowAll()
    )
    made.set_progress_bar_config(disable=True)
    return made


SHORT = {"max_sequence_length": 16}
CASES: tuple[Case, ...] = (
    Case("cosmos1-t2w", text_to_world, 16, 16, 5, arguments=SHORT, load=load),
    Case("cosmos2-v2w", image_to_world, 16, 16, 5, image=True, arguments=SHORT, load=load),
)
