"""Tiny Motif-Video pipelines: blocks of two kinds, a decoder at the end of the second list, and guidance by a guider.

A frame has 2 x 2 tokens at 16 x 16 pixels, and 4k + 1 frames make k + 1 latent frames.
"""

from typing import Any

import torch
from diffusers import (
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    MotifVideoImage2VideoPipeline,
    MotifVideoPipeline,
    MotifVideoTransformer3DModel,
)
from transformers import SiglipImageProcessorPil, T5Gemma2Encoder, T5Gemma2EncoderConfig

from tests.zoo import parts, wan
from tests.zoo.case import Case


def text_encoder() -> T5Gemma2Encoder:
    """One layer for text, and a vision tower of one layer and 2 x 2 patches for the first image."""
    text = {
        "vocab_size": len(parts.WORDS), "hidden_size": parts.TEXT_WIDTH, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
        "initializer_range": 0.5, "dropout_rate": 0.0,
    }  # fmt: skip
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 16, "patch_size": 8, "vision_use_head": False,
    }  # fmt: skip
    return T5Gemma2Encoder(T5Gemma2EncoderConfig(text_config=text, vision_config=vision, mm_tokens_per_image=4)).eval()


def _shared() -> dict[str, Any]:
    """The parts of both pipelines: two blocks with two streams, two with one, and one of the decoder."""
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": wan.vae(),
        "text_encoder": text_encoder(),
        "tokenizer": parts.tokenizer(),
        "transformer": MotifVideoTransformer3DModel(
            in_channels=2 * wan.CHANNELS + 1, out_channels=wan.CHANNELS, num_attention_heads=2, attention_head_dim=8,
            num_layers=2, num_single_layers=3, num_decoder_layers=1, mlp_ratio=2.0, text_embed_dim=parts.TEXT_WIDTH,
            image_embed_dim=16, rope_axes_dim=(4, 2, 2), enable_text_cross_attention_dual=True,
            enable_text_cross_attention_single=True,
        ).eval(),
        "guider": ClassifierFreeGuidance(guidance_scale=6.0),
        "feature_extractor": SiglipImageProcessorPil(size={"height": 16, "width": 16}),
    }  # fmt: skip


def text_to_video(seed: int) -> MotifVideoPipeline:
    """From text alone."""
    torch.manual_seed(seed)
    made = MotifVideoPipeline(**_shared())
    made.set_progress_bar_config(disable=True)
    return made


def image_to_video(seed: int) -> MotifVideoImage2VideoPipeline:
    """From text and a first image."""
    torch.manual_seed(seed)
    made = MotifVideoImage2VideoPipeline(**_shared())
    made.set_progress_bar_config(disable=True)
    return made


SHORT = {"max_sequence_length": 16}
CASES: tuple[Case, ...] = (
    Case("motif-t2v", text_to_video, 16, 16, 5, arguments=SHORT),
    Case(
        "motif-i2v", image_to_video, 16, 16, 5, image=True, arguments=SHORT,
        max_batch=1, why="it takes one image, and does not repeat its latent for two prompts",
    ),
)  # fmt: skip
