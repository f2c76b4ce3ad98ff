"""Checkpoints of `transformers` as judges need them: pinned, in safetensors, and with every weight there."""

import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor

from reins_serve.calibration.judges.digests import file_digest
from reins_serve.errors import JudgeError

_COMMIT = re.compile(r"[0-9a-f]{40}")


def pinned(checkpoint: str, revision: str | None) -> str:
    """The revision of a checkpoint that its verdicts are recorded under: a hub id's commit, a folder's digest.

    Raises:
        JudgeError: a hub id without a commit, a folder without safetensors, or with another digest than `revision`.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        if revision is None or not _COMMIT.fullmatch(revision):
            raise JudgeError(
                f"{checkpoint} is no folder here. If it is a hub id, pin its revision to a commit of 40 hexadecimal digits: "
                "a branch or tag can move, and verdicts with it."
            )
        return revision
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise JudgeError(f"{checkpoint} has no *.safetensors: judges load no pickles; convert it with save_pretrained.")
    # what turns a picture into numbers and numbers into labels counts as much as the weights
    found = file_digest(*sorted(folder.glob("*.json")), *weights)
    if revision is not None and found != revision:
        raise JudgeError(
            f"{checkpoint} has revision {found}, not {revision}: take the checkpoint that was pinned, or pin this."
        )
    return found


def load_pretrained(model_class: Any, checkpoint: str, revision: str | None, device: str) -> tuple[Any, Any, str]:
    """A frozen float32 model, its image processor and its pinned revision; remote code is never run.

    Raises:
        JudgeError: it cannot be loaded from safetensors, or lacks weights, which would then be random.
    """
    version = pinned(checkpoint, revision)
    at = None if Path(checkpoint).is_dir() else version
    try:
        processor = AutoImageProcessor.from_pretrained(checkpoint, revision=at, trust_remote_code=False)
        model, report = model_class.from_pretrained(
            checkpoint,
            revision=at,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise JudgeError(f"{checkpoint} cannot be loaded as {model_class.__name__}: {error}") from error
    random = sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])})
    if random:
        raise JudgeError(
            f"{checkpoint} is no {model_class.__name__}: {len(random)} of its weights would be random ({random[0]}, ...); "
            "take a checkpoint that was trained for this."
        )
    return model.eval().requires_grad_(False).to(device), processor, version
