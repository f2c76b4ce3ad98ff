"""Tiny Wan pipelines with random weights, and directions for them: the whole serving path in milliseconds."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from reins_serve.models.catalog import CatalogEntry, register
from reins_serve.steering.direction import Direction
from reins_serve.steering.trial import trial_direction

WORDS = ["<pad>", "</s>", "<unk>", "a", "another", "clip", "negative", "prompt", "red", "square"]
ENTRY = CatalogEntry(
    name="tiny",
    source=Path("tiny"),
    revision=None,
    pipelines={"text-to-video": "WanPipeline"},
    fps=8,
    width=16,
    height=16,
    size_multiple=16,
    min_side=16,
    max_side=32,
    num_frames=4,
    max_frames=8,
    frame_multiple=1,
    num_inference_steps=4,
    guidance_scale=4.0,
    pipeline_frames_offset=-1,
    dtype="float32",
    arguments={"max_sequence_length": 8},
)
register(ENTRY)


def pipeline(seed: int = 0) -> WanPipeline:
    """A WanPipeline of 4 blocks and width 16 with random weights."""
    torch.manual_seed(seed)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=4, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
    )  # fmt: skip
    vae = AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
                           latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
                           scale_factor_temporal=1, scale_factor_spatial=2)  # fmt: skip
    text = UMT5EncoderModel(UMT5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    made = WanPipeline(tokenizer, text.eval(), vae.eval(), scheduler, transformer.eval())
    made.set_progress_bar_config(disable=True)
    return made


FIT = {
    "method": "supervised-pca", "created": "2026-01-01T00:00:00Z", "tool": "test", "prompts_safe": 1,
    "prompts_unsafe": 1, "clips": 2, "judge": "none", "seed": 0,
}  # fmt: skip


def direction(made: WanPipeline, seed: int = 0, **changes: object) -> Direction:
    """A random unit direction for a tiny pipeline; `changes` replace top-level fields of its metadata."""
    strength = {"unit": "ref_norm", "serving": 0.5, "max": 2.0}
    if changes.get("operation") == "setpoint":
        strength = {"unit": "deficit", "serving": 1.5, "max": 2.0}
    values = {"name": "tiny", "model": "tiny", "blocks": (1,), "strength": strength, "fit": FIT}
    return trial_direction(made, seed, **values | changes)
