"""Tiny Kandinsky 5 pipelines. A frame has 2 x 2 tokens at 16 x 16 pixels; 4k + 1 frames make k + 1 latent frames."""

from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Kandinsky5I2VPipeline,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
)
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.zoo import hunyuan, parts
from tests.zoo.case import Case


def tokenizer() -> PreTrainedTokenizerFast:
    """Puts one token in front: the pipelines cut off 128, and their own words before the prompt are only 127 here."""
    made = parts.tokenizer()
    made.backend_tokenizer.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
    return made


def _shared(image: bool) -> dict[str, Any]:
    """The parts of both pipelines; with an image the denoiser also takes the image's latent and its mask."""
    language_model = hunyuan.LANGUAGE_MODEL | {
        "num_hidden_layers": 1, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]},
    }  # fmt: skip
    sight = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 4,
        "out_hidden_size": parts.TEXT_WIDTH, "fullatt_block_indexes": [0],
    }  # fmt: skip
    denoiser = Kandinsky5Transformer3DModel(
        in_visual_dim=hunyuan.CHANNELS, out_visual_dim=hunyuan.CHANNELS, in_text_dim=parts.TEXT_WIDTH,
        in_text_dim2=16, time_dim=16, model_dim=16, ff_dim=32, num_text_blocks=1, num_visual_blocks=4,
        axes_dims=(4, 2, 2), visual_cond=image,
    )  # fmt: skip
    return {
        "transformer": parts.wake(denoiser).eval(),
        "vae": hunyuan.vae(),
        "text_encoder": Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=language_model, vision_config=sight)
        ).eval(),
        "tokenizer": tokenizer(),
        "text_encoder_2": hunyuan.clip_text(),
        "tokenizer_2": parts.tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
    }


def text_to_video(seed: int) -> Kandinsky5T2VPipeline:
    """Four blocks for the video after one for the text."""
    torch.manual_seed(seed)
    made = Kandinsky5T2VPipeline(**_shared(image=False))
    made.set_progress_bar_config(disable=True)
    return made


def image_to_video(seed: int) -> Kandinsky5I2VPipeline:
    """The same with an image as first latent frame, which is kept."""
    torch.manual_seed(seed)
    made = Kandinsky5I2VPipeline(**_shared(image=True))
    made.set_progress_bar_config(disable=True)
    return made


CASES: tuple[Case, ...] = (
    Case("kandinsky5-t2v", text_to_video, 16, 16, 5),
    # At the end the first four latent frames are normalized by those after them: with none, they are not a number.
    Case(
        "kandinsky5-i2v", image_to_video, 16, 16, 17, image=True,
        max_batch=1, why="it normalizes the first four latent frames by a mean over all rows",
    ),
)  # fmt: skip
