"""Tiny Wan pipelines: 2.1, 2.2 with a timestep for each token (TI2V) and 2.2 with two experts (A14B).

At 16 x 16 pixels a latent frame has 2 x 2 tokens (VAE: 4 times smaller, patch: 2); 4k + 1 frames are k + 1 of them.
"""

from functools import partial

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import CLIPImageProcessorPil, CLIPPreTrainedModel, CLIPVisionConfig, CLIPVisionModel

from tests.zoo import parts
from tests.zoo.case import Case

CHANNELS = 4  # of a latent
CONDITIONED = 2 * CHANNELS + 4  # noise, the image's latent, and its mask (one channel for each of the VAE's 4 frames)
WIDTH = 16  # of the video tokens
IMAGE_WIDTH = 16  # of the image encoder's tokens
BOUNDARY = 0.875  # between the timesteps 999, 900 and 750, 500 of four steps: two for each expert


def vae() -> AutoencoderKLWan:
    """A VAE that shrinks height, width and time by 4; SkyReels and Helios have the same class."""
    return AutoencoderKLWan(
        base_dim=4, z_dim=CHANNELS, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[True, True],
        latents_mean=[0.0] * CHANNELS, latents_std=[1.0] * CHANNELS, scale_factor_temporal=4, scale_factor_spatial=4,
    ).eval()  # fmt: skip


def scheduler() -> UniPCMultistepScheduler:
    """The scheduler of the published Wan and SkyReels checkpoints; its four timesteps are 999, 900, 750 and 500."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def image_processor() -> CLIPImageProcessorPil:
    """Makes the image encoder's 16 x 16 pixels, without torchvision."""
    return CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def image_encoder(kind: type[CLIPPreTrainedModel] = CLIPVisionModel) -> CLIPPreTrainedModel:
    """A CLIP vision tower of one layer: 2 x 2 patches and the class token."""
    return kind(
        CLIPVisionConfig(
            hidden_size=IMAGE_WIDTH, intermediate_size=32, projection_dim=16, num_hidden_layers=1,
            num_attention_heads=2, image_size=16, patch_size=8,
        )
    ).eval()  # fmt: skip


def heed_text(denoiser: torch.nn.Module) -> torch.nn.Module:
    """Make a few words count among the 512 tokens, nearly all of them padding, that come with an image encoder."""
    projection = denoiser.condition_embedder.text_embedder
    with torch.no_grad():
        projection.linear_1.weight.mul_(5)
        projection.linear_2.weight.mul_(5)
    return denoiser


def denoiser(in_channels: int = CHANNELS, image: bool = False) -> WanTransformer3DModel:
    """Four blocks; with `image`, cross-attention has keys and values of its own for the image encoder's tokens."""
    made = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=8, in_channels=in_channels,
        out_channels=CHANNELS, text_dim=parts.TEXT_WIDTH, freq_dim=16, ffn_dim=32, num_layers=4,
        image_dim=IMAGE_WIDTH if image else None, added_kv_proj_dim=WIDTH if image else None,
    ).eval()  # fmt: skip
    return heed_text(made) if image else made


def text_to_video(seed: int, experts: bool = False, expand_timesteps: bool = False) -> WanPipeline:
    """A text-to-video pipeline, with two experts of four blocks each if asked for."""
    torch.manual_seed(seed)
    made = WanPipeline(
        parts.tokenizer(), parts.umt5(), vae(), scheduler(), denoiser(), denoiser() if experts else None,
        boundary_ratio=BOUNDARY if experts else None, expand_timesteps=expand_timesteps,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def image_to_video(seed: int, experts: bool = False, expand_timesteps: bool = False) -> WanImageToVideoPipeline:
    """An image-to-video pipeline: image encoder (2.1), two experts (A14B), or the image as first frame (TI2V)."""
    torch.manual_seed(seed)
    encodes = not (experts or expand_timesteps)
    channels = CHANNELS if expand_timesteps else CONDITIONED
    made = WanImageToVideoPipeline(
        parts.tokenizer(), parts.umt5(), vae(), scheduler(),
        image_processor() if encodes else None, image_encoder() if encodes else None,
        denoiser(channels, encodes), denoiser(channels) if experts else None,
        boundary_ratio=BOUNDARY if experts else None, expand_timesteps=expand_timesteps,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


# With an image encoder diffusers takes all but the last 512 tokens of the context for the image's.
SHORT, LONG = {"max_sequence_length": 16}, {"max_sequence_length": 512}
CASES: tuple[Case, ...] = (
    Case("wan-t2v", text_to_video, 16, 16, 5, arguments=SHORT),
    Case("wan-i2v", image_to_video, 16, 16, 5, image=True, arguments=LONG),
    Case("wan22-ti2v-t2v", partial(text_to_video, expand_timesteps=True), 16, 16, 5, arguments=SHORT),
    Case("wan22-ti2v-i2v", partial(image_to_video, expand_timesteps=True), 16, 16, 5, image=True, arguments=SHORT),
    Case("wan22-a14b-t2v", partial(text_to_video, experts=True), 16, 16, 5, arguments=SHORT),
    Case("wan22-a14b-i2v", partial(image_to_video, experts=True), 16, 16, 5, image=True, arguments=SHORT),
)
