"""A checkpoint becomes a pipeline on a device; safetensors only."""

import logging

import torch
from diffusers import DiffusionPipeline

from reins_serve.errors import ReinsError
from reins_serve.models.catalog import CatalogEntry
from reins_serve.models.spec import Pipeline


def load(entry: CatalogEntry, device: str = "cpu", dtype: str = "float32") -> Pipeline:
    """Load a catalogue entry's pipeline. Attach steering to it before enabling caches, compilation or offload.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
        dtype: Name of the floating type of the weights: `float32`, `bfloat16` or `float16`.

    Raises:
        ReinsError: unknown dtype, or the checkpoint is missing, incomplete or not in safetensors.
    """
    kind = getattr(torch, dtype, None)
    if kind not in (torch.float32, torch.bfloat16, torch.float16):
        raise ReinsError(f"dtype {dtype!r} is not offered; choose float32, bfloat16 or float16.", param="dtype")
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            str(entry.source), revision=entry.revision, dtype=kind, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise ReinsError(
            f"The checkpoint of {entry.name} could not be loaded from {entry.source}: {error}. Check that the folder or "
            "repository is complete, in diffusers layout, with weights in safetensors."
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    if entry.pipeline_frames_offset:
        logging.getLogger(type(pipeline).__module__).addFilter(_not_about_rounding)
    return pipeline.to(device)


def _not_about_rounding(record: logging.LogRecord) -> bool:
    """Drop Wan's warning that it rounds the number of frames: the catalogue counts on it, in every call."""
    return "num_frames - 1" not in record.getMessage()
