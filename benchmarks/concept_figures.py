"""A direction of the harder world's concepts as it was chosen, and its figures on prompts and seeds that were made off and on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.targets import Target, shows
from reins_serve.calibration.gates import Pairs, RunEvidence
from reins_serve.calibration.statistics import Rate, paired_change
from reins_serve.calibration.trials import REVERSED, SECOND, kept_by_attribute, unsafe_by_judge
from reins_serve.calibration.workers import OFF, Judged
from reins_serve.embedded.hard.world import CONCEPTS
from reins_serve.steering.direction import Direction

LIVE = "setpoint"
FEWER = 4  # one in so many prompts is made for an operation that does not serve, and once more with another seed

Clips = dict[tuple[str, str], list[Judged]]
"""By kind of prompt and condition."""


@dataclass(frozen=True)
class Way:
    """A direction of a target by one operation, as it was chosen on selection prompts.

    Attributes:
        displacement: Mean displacement of a token at the serving strength, as the doses measured it.
    """

    target: Target
    direction: Direction
    strength: float
    largest: float
    doses: tuple[tuple[float, int, int], ...]
    displacement: float

    @property
    def name(self) -> str:
        return f"{self.target.name}-{self.direction.operation}"

    @property
    def file(self) -> str:
        """The joint directions are the model's own, and named after their operation alone."""
        return self.name.removeprefix("joint-")

    def concerns(self, number: int) -> bool:
        """Whether an evaluation prompt of this number is made for it."""
        return self.direction.operation == LIVE or number % FEWER == 0


def kind_of(clip: Judged) -> str:
    """Which kind of prompt a clip was made from."""
    prompt = clip.ask.prompt
    return "hints" if prompt.implicit else prompt.category or "benign"


def pairs(clips: Clips, kinds: Sequence[str], condition: str, target: Target) -> Pairs:
    """The same prompts and seeds off and on: unsafe by judge, as the target counts it."""
    off, on = _paired(clips, kinds, condition, target)
    return Pairs(unsafe_by_judge(off), unsafe_by_judge(on), [clip.ask.prompt.category for clip in off])


def kept_pairs(clips: Clips, kind: str, condition: str, target: Target) -> Pairs:
    """The same for what was kept, by attribute, and for the concept that the target leaves."""
    off, on = _paired(clips, (kind,), condition, target)
    return Pairs(kept_by_attribute(off), kept_by_attribute(on))


def _paired(clips: Clips, kinds: Sequence[str], condition: str, target: Target) -> tuple[list[Judged], list[Judged]]:
    on = [target.as_counted(clip) for kind in kinds for clip in clips[kind, condition]]
    plain = {(clip.ask.pair, kind_of(clip)): clip for kind in kinds for clip in clips[kind, OFF]}
    return [target.as_counted(plain[clip.ask.pair, kind_of(clip)]) for clip in on], on


def row(way: Way, clips: Clips) -> tuple[dict[str, Any], RunEvidence]:
    """A way's figures, JSON-ready, and the evidence for its gates."""
    target = way.target
    unsafe = {kind: pairs(clips, (kind,), way.name, target) for kind in target.asked}
    kept = {kind: kept_pairs(clips, kind, way.name, target) for kind in target.beside}
    changes = {
        kind: {name: paired_change(found.off[name], found.on[name]) for name in found.off}
        for kind, found in kept.items()
    }
    drift = float(np.median([clip.psnr for clip in clips["benign", way.name]]))
    second = float(np.median([clip.psnr for clip in clips["benign", SECOND]]))
    figures = {
        "way": way.name,
        "concepts": list(target.concepts),
        "operation": way.direction.operation,
        "blocks": list(way.direction.blocks),
        "end": way.direction.meta.window.end,
        "margin": way.direction.meta.margin,
        "guards": list(guard.blocks) if (guard := way.direction.meta.guard) is not None else [],
        "strength": way.strength,
        "largest": way.largest,
        "unsafe": {kind: {judge: interval(hits) for judge, hits in found.on.items()} for kind, found in unsafe.items()},
        "change": {
            kind: {name: [round(x, 4) for x in change] for name, change in its.items()} for kind, its in changes.items()
        },
        "psnr_benign": {"on": round(drift, 2), SECOND: round(second, 2)},
    }
    run = RunEvidence(
        pairs(clips, target.asked, way.name, target),
        kept["benign"],
        drift,
        second,
        way.doses,
        way.strength,
        pairs(clips, ("hints",), f"{way.name}-{REVERSED}", target),
    )
    return figures, run


def interval(hits: np.ndarray) -> list[float]:
    """Rate and 95 % interval."""
    rate = Rate.of(hits)
    return [round(x, 4) for x in (rate.value, rate.low, rate.high)]


def unsteered_figures(clips: Clips) -> dict[str, Any]:
    """By kind of prompt: each concept by each judge, and attributes."""
    found: dict[str, Any] = {}
    for (kind, condition), its in clips.items():
        if condition == OFF:
            found[kind] = {
                concept: {judge: interval(np.array([shows(c, judge, concept) for c in its])) for judge in its[0].unsafe}
                for concept in CONCEPTS
            } | {name: interval(np.array([clip.kept[name] for clip in its])) for name in its[0].kept}
    return found
