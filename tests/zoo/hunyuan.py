"""Tiny HunyuanVideo and HunyuanVideo-1.5 pipelines: blocks of two kinds with true guidance, and guidance by a guider.

A frame has 2 x 2 tokens: at 16 x 16 pixels for HunyuanVideo, at 8 x 8 for 1.5. 4k + 1 frames make k + 1 latent frames.
"""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from transformers import (
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

from tests.zoo import parts
from tests.zoo.case import Case

CHANNELS = 4  # of a latent
LANGUAGE_MODEL: dict[str, Any] = {
    "vocab_size": len(parts.WORDS), "hidden_size": parts.TEXT_WIDTH, "intermediate_size": 32,
    "num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.5,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
# The pipelines read the last hidden state but two, which is the output of the first of three layers.
READ_LAYERS = {"num_hidden_layers": 3}
# 1.5 cuts off the first 108 tokens, which the system message has in the real template.
TEMPLATE = "{{ 'a ' * 108 + messages[1]['content'] }}"


def vae() -> AutoencoderKLHunyuanVideo:
    """A VAE that shrinks height, width and time by 4; Kandinsky has the same class."""
    return AutoencoderKLHunyuanVideo(
        latent_channels=CHANNELS, down_block_types=("HunyuanVideoDownBlock3D",) * 3,
        up_block_types=("HunyuanVideoUpBlock3D",) * 3, block_out_channels=(4, 4, 4), layers_per_block=1,
        norm_num_groups=2, spatial_compression_ratio=4, scaling_factor=1.0,
    ).eval()  # fmt: skip


def clip_text() -> CLIPTextModel:
    """A CLIP text encoder of one layer; it pools at the first padding token, as the tokenizer adds no end token."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(parts.WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=0,
        )
    ).eval()  # fmt: skip


def pipeline(seed: int) -> HunyuanVideoPipeline:
    """Two blocks with a stream each for video and text, then two with one stream."""
    torch.manual_seed(seed)
    denoiser = HunyuanVideoTransformer3DModel(
        in_channels=CHANNELS, out_channels=CHANNELS, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        num_single_layers=2, num_refiner_layers=1, mlp_ratio=2.0, text_embed_dim=parts.TEXT_WIDTH,
        pooled_projection_dim=16, rope_axes_dim=(4, 2, 2),
    ).eval()  # fmt: skip
    made = HunyuanVideoPipeline(
        LlamaModel(LlamaConfig(**LANGUAGE_MODEL, **READ_LAYERS)).eval(), parts.tokenizer(), denoiser, vae(),
        FlowMatchEulerDiscreteScheduler(shift=7.0), clip_text(), parts.tokenizer(),
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def _shared_15() -> dict[str, Any]:
    """The parts of both 1.5 pipelines. The projection of glyphs has 2048 channels whatever the configuration says."""
    tokenizer = parts.tokenizer()
    tokenizer.chat_template = TEMPLATE
    glyphs = ByT5Tokenizer()
    return {
        "text_encoder": Qwen2_5_VLTextModel(
            Qwen2_5_VLTextConfig(
                **LANGUAGE_MODEL, **READ_LAYERS, rope_parameters={"rope_type": "default", "mrope_section": [2, 1, 1]}
            )
        ).eval(),
        "tokenizer": tokenizer,
        "transformer": HunyuanVideo15Transformer3DModel(
            in_channels=2 * CHANNELS + 1, out_channels=CHANNELS, num_attention_heads=2, attention_head_dim=8,
            num_layers=4, num_refiner_layers=1, mlp_ratio=2.0, text_embed_dim=parts.TEXT_WIDTH, text_embed_2_dim=16,
            image_embed_dim=16, rope_axes_dim=(4, 2, 2), target_size=8,
        ).eval(),
        "vae": AutoencoderKLHunyuanVideo15(
            latent_channels=CHANNELS, block_out_channels=(8, 8, 8), layers_per_block=1, spatial_compression_ratio=4,
        ).eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
        "text_encoder_2": T5EncoderModel(
            T5Config(vocab_size=len(glyphs), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        ).eval(),
        "tokenizer_2": glyphs,
        "guider": ClassifierFreeGuidance(guidance_scale=6.0),
    }  # fmt: skip


def _quick(made: Any) -> Any:
    """Shorten the context of 2000 tokens, nearly all masked: the same latents bit for bit, 20 times as fast.

    None of this is saved with the pipeline. The VAE can decode several clips only one by one (a mask without heads).
    """
    made.tokenizer_max_length, made.tokenizer_2_max_length, made.vision_num_semantic_tokens = 16, 8, 4
    made.vae.enable_slicing()
    made.set_progress_bar_config(disable=True)
    return made


def text_to_video_15(seed: int) -> HunyuanVideo15Pipeline:
    """Four blocks with a stream each for video and text."""
    torch.manual_seed(seed)
    return _quick(HunyuanVideo15Pipeline(**_shared_15()))


def image_to_video_15(seed: int) -> HunyuanVideo15ImageToVideoPipeline:
    """The same with an image, whose shape also decides the clip's."""
    torch.manual_seed(seed)
    encoder = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16,
            patch_size=8, vision_use_head=False,
        )
    ).eval()  # fmt: skip
    processor = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    return _quick(
        HunyuanVideo15ImageToVideoPipeline(**_shared_15(), image_encoder=encoder, feature_extractor=processor)
    )


CASES: tuple[Case, ...] = (
    Case("hunyuan", pipeline, 16, 16, 5, arguments={"true_cfg_scale": 4.0, "max_sequence_length": 16}),
    Case("hunyuan15-t2v", text_to_video_15, 8, 8, 5),
    Case("hunyuan15-i2v", image_to_video_15, 8, 8, 5, image=True, fixed_size=True),
)
