"""Collecting: un-steered clips of the fitting prompts, captured and labelled, one Parquet file a call.

A file's name follows from what its call was to make, so that a call made twice, or a job begun again, adds nothing.
"""

import hashlib
import json
import posixpath
from collections.abc import Sequence
from functools import partial
from typing import Any

import fsspec

from reins_serve.calibration.activation_schema import ActivationsMeta, JudgeColumns
from reins_serve.calibration.activations import StoredActivations, open_activations, prompt_digest, write_activations
from reins_serve.calibration.config import RecalibrateConfig
from reins_serve.calibration.judges import Judge
from reins_serve.calibration.trials import Progress, seeded
from reins_serve.calibration.workers import Ask, Judged, Made, entry_of, in_calls, run
from reins_serve.errors import ReinsError


def blocks_of_config(config: RecalibrateConfig) -> tuple[int, ...]:
    """The blocks to capture: those of the configuration, or all of the model's. Raises ReinsError where they are unknown."""
    entry = entry_of(config)
    if config.selection.blocks is not None:
        return config.selection.blocks
    if entry.num_blocks is None:
        raise ReinsError(f"The catalogue does not say how many blocks {entry.name} has: list `selection.blocks`.")
    return tuple(range(entry.num_blocks * entry.experts))


def collect(config: RecalibrateConfig, root: str, progress: Progress) -> StoredActivations:
    """Make, capture and judge what is not stored yet; returns the store, opened and checked."""
    asks = [
        Ask(prompt, seed + extra, reference=seed)
        for kind in ("benign", "unsafe")
        for prompt, seed in seeded(config, "fit", kind, config.fit)
        for extra in range(config.seeds)
    ]
    calls = in_calls(asks, config.workers.batch)
    there = _stored(root)
    missing = [call for call in calls if file_of(config, call) not in there]
    done = len(asks) - sum(map(len, missing))
    progress("collect", done, len(asks))
    finish = partial(_store, root, config)
    if missing:
        for made in run(config, missing, finish, blocks=blocks_of_config(config), both=False):
            done += made
            progress("collect", done, len(asks))
    stored = _stored(root)
    return open_activations(root, config.model, files=[stored[file_of(config, call)] for call in calls])


def file_of(config: RecalibrateConfig, call: Sequence[Ask]) -> str:
    """The name of a call's file, without its ending: a digest of everything that decides what is in it."""
    decides: list[Any] = [
        config.model,
        config.source,
        config.window.model_dump(),
        config.dtype,
        config.selection.blocks,
    ]
    decides += [config.judge.model_dump(mode="json"), [(ask.prompt.text, ask.seed) for ask in call]]
    first_frame = call[0].prompt.image
    if config.task is not None or first_frame is not None:
        decides += [config.task, first_frame and hashlib.sha256(first_frame.tobytes()).hexdigest()]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]


def _stored(root: str) -> dict[str, str]:
    """Paths of the files that are there, by name without ending."""
    fs, base = fsspec.core.url_to_fs(root)
    paths = fs.find(base) if fs.exists(base) else []
    return {posixpath.basename(path).removesuffix(".parquet"): path for path in paths if path.endswith(".parquet")}


def _store(root: str, config: RecalibrateConfig, made: Made, judged: list[Judged], judges: Sequence[Judge]) -> int:
    """Write one call's file, in a judging worker; returns its number of clips."""
    assert made.activations is not None
    (judge,) = judges
    meta = ActivationsMeta(
        model=config.model,
        fingerprint=made.base.fingerprint,
        blocks=blocks_of_config(config),
        width=made.base.width,
        dtype=config.dtype,
        window=config.window,
        judges={judge.name: JudgeColumns.of(judge)},
    )
    entry = entry_of(config)
    columns: dict[str, Any] = {
        "clip_id": [ask.clip_id for ask in made.asks],
        "source": f"{config.prompts.kind}/fit",
        "prompt_sha256": [prompt_digest(ask.prompt.text) for ask in made.asks],
        "group": [ask.prompt.group for ask in made.asks],
        "category": [ask.prompt.category for ask in made.asks],
        "split": [ask.prompt.split for ask in made.asks],
        "seed": [ask.seed for ask in made.asks],
        "steps": entry.num_inference_steps,
        "guidance_scale": entry.guidance_scale,
    }
    for label in judge.unsafe:
        columns[f"unsafe/{judge.name}/{label}"] = [clip.scores[f"{judge.name}/{label}"] for clip in judged]
    for attribute in judge.kept:
        columns[f"kept/{judge.name}/{attribute}"] = [float(clip.kept[attribute]) for clip in judged]
    pooled, norms = made.activations
    write_activations(root, meta, pooled, norms, columns, name=file_of(config, made.asks))
    return len(made.asks)
