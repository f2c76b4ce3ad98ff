"""Trains the clip classifier on clips with several labels each: `python -m reins_serve.calibration.judges.clip_training
CONFIG.yaml --out FILE.safetensors`. The SigLIP is frozen, so each clip passes through it once."""

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupShuffleSplit
from torch import Tensor, nn

from reins_serve.calibration.judges.clip_classifier import Architecture, Header, TemporalClassifier, Vision, save
from reins_serve.calibration.judges.config import Name, Threshold
from reins_serve.calibration.judges.siglip import FrameEncoder
from reins_serve.errors import ReinsError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainingSettings(_Strict):
    """The paper's, as far as readers' notes tell: AdamW, a linear warm-up, then a cosine down to zero."""

    learning_rate: float = Field(1e-5, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(1e-2, ge=0, allow_inf_nan=False)
    max_grad_norm: float = Field(1.0, gt=0, allow_inf_nan=False)
    epochs: int = Field(10, ge=1)
    warmup_epochs: int = Field(1, ge=0)
    batch_size: int = Field(16, ge=1)
    seed: int = 42


class TrainingConfig(_Strict):
    """A training run.

    Attributes:
        examples: A JSONL file, each line `{"video": PATH, "labels": {label: 0 to 1}, "group": PROMPT}`; paths are relative
            to the file, and the group may be left out.
        vision, revision: The SigLIP, as in `ClipClassifierConfig`.
        unsafe: Label -> threshold that the file will carry; these labels are learnt, in this order.
        architecture: Sizes of the transformer; its width must be that of the SigLIP's features.
        held_out: Share of the clips (of the groups, where examples name one) that only measures: AUC per label.
    """

    examples: Path
    vision: str
    revision: str | None = None
    unsafe: dict[Name, Threshold] = Field(min_length=1)
    architecture: Architecture = Architecture()
    held_out: float = Field(0.1, ge=0, lt=1)
    settings: TrainingSettings = TrainingSettings()
    device: str = "cpu"


def learning_rate_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """Share of the learning rate at an optimiser step, counted from 0: up linearly to 1, then a cosine down to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))


def train(
    features: Tensor,
    labels: NDArray[np.float32],
    architecture: Architecture,
    settings: TrainingSettings,
    device: str = "cpu",
    report: Callable[[int, float], None] = lambda epoch, loss: None,
) -> tuple[TemporalClassifier, list[float]]:
    """Train on features float32 `[N, T, D]` and labels `[N, K]` between 0 and 1; torch's global generator is left alone.

    Returns:
        The classifier, in evaluation mode on the CPU, and the mean loss of each epoch.

    Raises:
        ReinsError: shapes do not match, a label is no probability or never varies, or the loss is no longer finite.
    """
    _check(features, labels, architecture)
    targets = torch.from_numpy(np.asarray(labels, dtype=np.float32))
    count = len(features)
    per_epoch = -(-count // settings.batch_size)
    warmup, total = per_epoch * min(settings.warmup_epochs, settings.epochs), per_epoch * settings.epochs
    losses = []
    place = torch.device(device)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        model = TemporalClassifier(architecture, targets.shape[1]).to(place).train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: learning_rate_factor(s, warmup, total))
        for epoch in range(settings.epochs):
            summed = 0.0
            for rows in torch.randperm(count).split(settings.batch_size):
                logits = model(features[rows].to(place))
                loss = nn.functional.binary_cross_entropy_with_logits(logits, targets[rows].to(place))
                if not torch.isfinite(loss):
                    raise ReinsError(f"The loss is {loss.item()} in epoch {epoch + 1}: lower the learning rate.")
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
                optimiser.step()
                schedule.step()
                summed += loss.item() * len(rows)
            losses.append(summed / count)
            report(epoch + 1, losses[-1])
    return model.cpu().eval().requires_grad_(False), losses


def _check(features: Tensor, labels: NDArray[np.float32], architecture: Architecture) -> None:
    expected = (architecture.num_frames, architecture.width)
    if features.ndim != 3 or tuple(features.shape[1:]) != expected or len(features) == 0:
        raise ReinsError(
            f"Features are {list(features.shape)}; they must be [N, {expected[0]}, {expected[1]}], N >= 1."
        )
    if labels.ndim != 2 or len(labels) != len(features):
        raise ReinsError(f"Labels are {list(labels.shape)} for {len(features)} clips; they must be [N, classes].")
    if not torch.isfinite(features).all():
        raise ReinsError("Some features are not finite: check the SigLIP and the clips.")
    if not ((labels >= 0) & (labels <= 1)).all():
        raise ReinsError("Some labels are NaN or outside 0 to 1: leave such clips out.")
    constant = np.flatnonzero(np.ptp(labels, axis=0) == 0)
    if len(constant):
        raise ReinsError(
            f"Labels number {constant.tolist()} never vary, so nothing can be learnt: add clips or drop them."
        )


@dataclass(frozen=True)
class Example:
    """A clip, uint8 `[T, H, W, 3]`, its labels in the order that was asked for, and what it shares with other clips."""

    clip: NDArray[np.uint8]
    labels: list[float]
    group: str


def read_examples(path: Path, names: list[str]) -> Iterator[Example]:
    """The examples of a JSONL file, one line after the other; one without a group is a group of its own.

    Raises:
        ReinsError: a line is no example, lacks a label, or its video cannot be read.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                example = json.loads(line)
                labels = [float(example["labels"][name]) for name in names]
                with av.open(str(path.parent / example["video"])) as container:
                    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
                yield Example(np.stack(frames), labels, str(example.get("group", f"line {number}")))
            except (KeyError, TypeError, AttributeError, ValueError, IndexError, OSError, av.FFmpegError) as error:
                raise ReinsError(f"{path}, line {number}: {type(error).__name__}: {error}") from error


def held_out_auc(
    model: TemporalClassifier, features: Tensor, labels: NDArray[np.float32], names: Iterable[str]
) -> dict[str, float | None]:
    """AUC of each label, counted as there from 0.5 on; None where the clips all have it or all lack it."""
    with torch.inference_mode():
        logits = model(features).numpy()
    there = labels >= 0.5
    return {
        name: float(roc_auc_score(there[:, k], logits[:, k])) if 0 < there[:, k].sum() < len(there) else None
        for k, name in enumerate(names)
    }


def run(config: TrainingConfig, out: Path, report: Callable[[int, float], None] = lambda epoch, loss: None) -> Header:
    """Train as configured and write the classifier's file; returns its header. Raises ReinsError as the parts do."""
    encoder = FrameEncoder(config.vision, config.revision, config.device)
    architecture, settings = config.architecture, config.settings
    if architecture.width != encoder.width:
        raise ReinsError(
            f"The features of {config.vision} have {encoder.width} values: set architecture.width to that."
        )
    examples = read_examples(config.examples, list(config.unsafe))
    parts, rows, groups = [], [], []
    while chunk := list(islice(examples, settings.batch_size)):  # so few clips lie in memory at a time
        parts.append(encoder.encode([example.clip for example in chunk], architecture.num_frames))
        rows += [example.labels for example in chunk]
        groups += [example.group for example in chunk]
    if not rows:
        raise ReinsError(f"{config.examples} has no example.")
    features, labels = torch.cat(parts), np.array(rows, dtype=np.float32)
    used, measured = np.arange(len(labels)), np.arange(0)
    if config.held_out:
        if len(set(groups)) < 2:
            raise ReinsError(
                f"All clips of {config.examples} are of one group, so none can be held out: say held_out: 0."
            )
        split = GroupShuffleSplit(n_splits=1, test_size=config.held_out, random_state=settings.seed)
        used, measured = next(split.split(labels, groups=groups))
    model, losses = train(features[used], labels[used], architecture, settings, config.device, report)
    training: dict[str, object] = {"settings": settings.model_dump(), "clips": len(used), "losses": losses}
    if len(measured):
        auc = held_out_auc(model, features[measured], labels[measured], config.unsafe)
        training |= {"held_out_clips": len(measured), "held_out_auc": auc}
    header = Header(
        unsafe=config.unsafe,
        architecture=architecture,
        vision=Vision(source=encoder.source, revision=encoder.revision, digest=encoder.digest),
        training=training,
    )
    save(out, model, header)
    return header


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m reins_serve.calibration.judges.clip_training", description=__doc__)
    parser.add_argument("config", type=Path, help="YAML: see TrainingConfig")
    parser.add_argument("--out", type=Path, required=True, help="the classifier's file")
    given = parser.parse_args(arguments)
    try:
        config = TrainingConfig.model_validate(yaml.safe_load(given.config.read_text()))
        header = run(config, given.out, lambda epoch, loss: print(f"epoch {epoch}: loss {loss:.4f}", flush=True))
    except (ReinsError, ValidationError, OSError) as error:
        parser.error(str(error))
    print(json.dumps(header.training.get("held_out_auc", {}), indent=2))


if __name__ == "__main__":
    main()
