"""Tiny SkyReels-V2 pipelines: text to video, diffusion forcing (a timestep for each frame) and image to video.

Sizes are those of `tests.zoo.wan`: the VAE is Wan's.
"""

import torch
from diffusers import (
    DiffusionPipeline,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2ImageToVideoPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
)
from transformers import CLIPVisionModelWithProjection

from tests.zoo import parts, wan
from tests.zoo.case import Case


def denoiser(image: bool = False) -> SkyReelsV2Transformer3DModel:
    """Four blocks; for image to video they take the image's latent, its mask and the image encoder's tokens too."""
    made = SkyReelsV2Transformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=8,
        in_channels=wan.CONDITIONED if image else wan.CHANNELS, out_channels=wan.CHANNELS,
        text_dim=parts.TEXT_WIDTH, freq_dim=16, ffn_dim=32, num_layers=4,
        image_dim=wan.IMAGE_WIDTH if image else None, added_kv_proj_dim=wan.WIDTH if image else None,
    ).eval()  # fmt: skip
    return wan.heed_text(made) if image else made


def _build(seed: int, pipeline: type[DiffusionPipeline], image: bool = False) -> DiffusionPipeline:
    torch.manual_seed(seed)
    seeing: dict[str, object] = {}
    if image:
        seeing = {
            "image_encoder": wan.image_encoder(CLIPVisionModelWithProjection),
            "image_processor": wan.image_processor(),
        }
    made = pipeline(
        tokenizer=parts.tokenizer(), text_encoder=parts.umt5(), transformer=denoiser(image), vae=wan.vae(),
        scheduler=wan.scheduler(), **seeing,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def text_to_video(seed: int) -> SkyReelsV2Pipeline:
    """The plain text-to-video pipeline: one timestep for all frames."""
    return _build(seed, SkyReelsV2Pipeline)


def diffusion_forcing(seed: int) -> SkyReelsV2DiffusionForcingPipeline:
    """Diffusion forcing, without the frame rate's embedding (with it diffusers cannot run two prompts at once)."""
    return _build(seed, SkyReelsV2DiffusionForcingPipeline)


def image_to_video(seed: int) -> SkyReelsV2ImageToVideoPipeline:
    """The image-to-video pipeline, with an image encoder."""
    return _build(seed, SkyReelsV2ImageToVideoPipeline, image=True)


CASES: tuple[Case, ...] = (
    Case("skyreels-t2v", text_to_video, 16, 16, 5, arguments=wan.SHORT),
    Case("skyreels-df", diffusion_forcing, 16, 16, 5, arguments=wan.SHORT | {"ar_step": 0}),
    Case("skyreels-i2v", image_to_video, 16, 16, 5, image=True, arguments=wan.LONG),
)
