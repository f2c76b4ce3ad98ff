"""LTX-Video (text and image to video) and LTX-2, which makes sound too and calls its transformer three times a step."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

from .case import Case
from .parts import TEXT_WIDTH, WORDS, t5, tokenizer, wake

LENGTH = 16  # of a prompt in tokens
MEL_BINS = 16


def _scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1)


def _parts() -> dict[str, Any]:
    """The smallest clip is 32 x 32 pixels; with 5 frames that makes 4 x 4 x 3 tokens."""
    transformer = LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=4, caption_channels=TEXT_WIDTH,
    )  # fmt: skip
    vae = AutoencoderKLLTXVideo(
        latent_channels=4, block_out_channels=(8,), down_block_types=("LTXVideoDownBlock3D",),
        decoder_block_out_channels=(8,), layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,), decoder_inject_noise=(False, False),
        downsample_type=("conv",), upsample_residual=(False,), upsample_factor=(1,),
    )  # fmt: skip
    return {
        "scheduler": _scheduler(), "vae": vae.eval(), "text_encoder": t5(), "tokenizer": tokenizer(LENGTH),
        "transformer": wake(transformer).eval(),
    }  # fmt: skip


def t2v(seed: int) -> LTXPipeline:
    """LTX-Video from text."""
    torch.manual_seed(seed)
    made = LTXPipeline(**_parts())
    made.set_progress_bar_config(disable=True)
    return made


def i2v(seed: int) -> LTXImageToVideoPipeline:
    """LTX-Video from an image, whose tokens stay clean."""
    torch.manual_seed(seed)
    made = LTXImageToVideoPipeline(**_parts())
    made.set_progress_bar_config(disable=True)
    return made


def _gemma() -> Gemma3ForConditionalGeneration:
    text = Gemma3TextConfig(
        vocab_size=len(WORDS), hidden_size=TEXT_WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, initializer_range=0.3,
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=4, patch_size=4
    )
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
    ).eval()


def ltx2(seed: int) -> LTX2Pipeline:
    """LTX-2.0 with the perturbed attention of later versions, so that spatio-temporal guidance does something."""
    torch.manual_seed(seed)
    transformer = LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        vae_scale_factors=(2, 8, 8), audio_in_channels=8, audio_out_channels=8, audio_num_attention_heads=2,
        audio_attention_head_dim=4, audio_cross_attention_dim=8, num_layers=4, caption_channels=TEXT_WIDTH,
        perturbed_attn=True,
    )  # fmt: skip
    vae = AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8,), down_block_types=("LTX2VideoDownBlock3D",),
        decoder_block_out_channels=(8,), layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,), decoder_inject_noise=(False, False),
        downsample_type=("spatiotemporal",), upsample_type=("spatiotemporal",), upsample_residual=(True,),
        upsample_factor=(2,),
    )  # fmt: skip
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=8, ch_mult=(1, 1, 1), num_res_blocks=1, latent_channels=2, mel_bins=MEL_BINS
    )
    connectors = LTX2TextConnectors(
        caption_channels=TEXT_WIDTH, text_proj_in_factor=2, video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8, video_connector_num_layers=1, video_connector_num_learnable_registers=8,
        audio_connector_num_attention_heads=2, audio_connector_attention_head_dim=8, audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=8,
    )  # fmt: skip
    vocoder = LTX2Vocoder(
        in_channels=2 * MEL_BINS, hidden_channels=8, upsample_kernel_sizes=[4], upsample_factors=[2],
        resnet_kernel_sizes=[3], resnet_dilations=[[1]],
    )  # fmt: skip
    made = LTX2Pipeline(
        scheduler=_scheduler(), vae=vae.eval(), audio_vae=audio_vae.eval(), text_encoder=_gemma(),
        tokenizer=tokenizer(LENGTH), connectors=connectors.eval(), transformer=wake(transformer).eval(),
        vocoder=vocoder.eval(),
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


CASES = (
    Case("ltx-t2v", t2v, 32, 32, 5, arguments={"max_sequence_length": LENGTH}),
    Case("ltx-i2v", i2v, 32, 32, 5, image=True, arguments={"max_sequence_length": LENGTH}),
    Case(
        "ltx2", ltx2, 32, 32, 5, arguments={"max_sequence_length": LENGTH, "spatio_temporal_guidance_blocks": [2]}
    ),
)  # fmt: skip
