"""Tiny SANA-Video pipelines. A frame has 4 x 4 tokens at 32 x 32 pixels, and 4k + 1 frames make k + 1 latent frames."""

from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaImageToVideoPipeline,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
)
from transformers import Gemma2Config, Gemma2Model

from tests.zoo import parts, wan
from tests.zoo.case import Case


def _shared() -> dict[str, Any]:
    """The parts of both pipelines."""
    return {
        "tokenizer": parts.tokenizer(),
        "text_encoder": Gemma2Model(
            Gemma2Config(
                vocab_size=len(parts.WORDS), hidden_size=parts.TEXT_WIDTH, intermediate_size=32, num_hidden_layers=1,
                num_attention_heads=2, num_key_value_heads=2, head_dim=8, initializer_range=0.5,
                pad_token_id=0, bos_token_id=1, eos_token_id=1,
            )
        ).eval(),
        "vae": wan.vae(),
        "transformer": SanaVideoTransformer3DModel(
            in_channels=wan.CHANNELS, out_channels=wan.CHANNELS, num_attention_heads=2, attention_head_dim=12,
            num_layers=4, num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24,
            caption_channels=parts.TEXT_WIDTH, rope_max_seq_len=32,
        ).eval(),
    }  # fmt: skip


def text_to_video(seed: int) -> SanaVideoPipeline:
    """Four blocks; the solver is the one in the pipeline's signature, of second order."""
    torch.manual_seed(seed)
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0)
    made = SanaVideoPipeline(**_shared(), scheduler=scheduler)
    made.set_progress_bar_config(disable=True)
    return made


def image_to_video(seed: int) -> SanaImageToVideoPipeline:
    """The same with an image as first latent frame: its tokens have timestep 0, and the others' differ."""
    torch.manual_seed(seed)
    made = SanaImageToVideoPipeline(**_shared(), scheduler=FlowMatchEulerDiscreteScheduler(shift=8.0))
    made.set_progress_bar_config(disable=True)
    return made


# Without binning the size is the one asked for; the instruction would only put some 280 tokens before the prompt.
ARGUMENTS = {"use_resolution_binning": False, "complex_human_instruction": None, "max_sequence_length": 16}
CASES: tuple[Case, ...] = (
    Case("sana-t2v", text_to_video, 32, 32, 5, arguments=ARGUMENTS),
    Case("sana-i2v", image_to_video, 32, 32, 5, image=True, arguments=ARGUMENTS),
)
