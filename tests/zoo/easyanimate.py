"""EasyAnimate 5.1, which reads prompts with Qwen2-VL and a chat template."""

import torch
from diffusers import (
    AutoencoderKLMagvit,
    EasyAnimatePipeline,
    EasyAnimateTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
)
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from .case import Case
from .parts import TEXT_WIDTH, WORDS, tokenizer, wake


def _qwen() -> Qwen2VLForConditionalGeneration:
    """The pipeline takes the states before the last layer; with one layer, the embeddings."""
    text = {
        "vocab_size": len(WORDS), "hidden_size": TEXT_WIDTH, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 1.0, "bos_token_id": None,
        "eos_token_id": 1, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {"depth": 1, "embed_dim": 8, "hidden_size": TEXT_WIDTH, "num_heads": 1, "patch_size": 2}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision)).eval()


def build(seed: int) -> EasyAnimatePipeline:
    """2 x 2 x 3 tokens a clip."""
    torch.manual_seed(seed)
    transformer = EasyAnimateTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, patch_size=2, sample_width=4,
        sample_height=4, num_layers=4, mmdit_layers=2, time_embed_dim=16, add_norm_text_encoder=True,
        text_embed_dim=TEXT_WIDTH,
    )  # fmt: skip
    vae = AutoencoderKLMagvit(
        latent_channels=4, block_out_channels=(8, 8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("SpatialDownBlock3D", "SpatialTemporalDownBlock3D", "SpatialTemporalDownBlock3D"),
        up_block_types=("SpatialUpBlock3D", "SpatialTemporalUpBlock3D", "SpatialTemporalUpBlock3D"),
    )  # fmt: skip
    words = tokenizer(256)
    words.chat_template = "{% for message in messages %}{{ message.content[0].text }}{% endfor %}"
    made = EasyAnimatePipeline(
        vae.eval(), _qwen(), words, wake(transformer).eval(), FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    )
    made.set_progress_bar_config(disable=True)
    return made


CASES = (Case("easyanimate", build, 16, 16, 5),)
