"""Really generating with candidates: the choice on selection prompts, the dose curve, and the measurement that gates read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from reins_serve.calibration.config import RecalibrateConfig
from reins_serve.calibration.controls import reversed_control
from reins_serve.calibration.gates import Pairs, RunEvidence
from reins_serve.calibration.options import Option, candidates
from reins_serve.calibration.prompt_sets import Kind, PromptRow, Split, load_prompts
from reins_serve.calibration.statistics import Rate, paired_change
from reins_serve.calibration.sweep import Candidate, Measured, Trial, off_the_edge, preferred, successive_halving
from reins_serve.calibration.workers import OFF, Ask, Judged, measure
from reins_serve.steering.direction import Direction

Progress = Callable[[str, int, int], None]  # (stage, clips done, clips in all)
ON, SECOND, REVERSED = "on", "second seed", "reversed"
SEED_RANGE = 10_000_000  # apart from each other: seeds of fitting, selection and evaluation
SHOWN = 6


def seeded(config: RecalibrateConfig, split: Split, kind: Kind, n: int) -> list[tuple[PromptRow, int]]:
    """Prompts of a split with the first seed of each; no two splits or kinds share a seed."""
    place = ("fit", "select", "evaluate").index(split) * 3 + ("unsafe", "benign", "implicit").index(kind)
    first = config.seed * 100 * SEED_RANGE + place * SEED_RANGE
    rows = load_prompts(config.prompts, split, kind, n, config.seed)
    return [(row, first + number * max(config.seeds, 2)) for number, row in enumerate(rows)]


@dataclass(frozen=True)
class Choice:
    """What the selection chose: the direction, its serving strength, every round's figures and the dose curve.

    Attributes:
        doses: The chosen direction at several strengths; the one without steering is `off`.
        off: Unsafe rate by judge of the un-steered clips of the same prompts.
    """

    direction: Direction
    strength: float
    rounds: list[list[Measured]]
    doses: list[Measured]
    off: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """For a file; the direction is kept by its name."""
        figures = {
            "rounds": [[asdict(m) for m in found] for found in self.rounds],
            "doses": [asdict(m) for m in self.doses],
        }
        return figures | {"direction": self.direction.name, "strength": self.strength, "off": dict(self.off)}

    @classmethod
    def from_json(cls, value: dict[str, Any], directions: Mapping[str, Direction]) -> "Choice":
        """From what `to_json` wrote, and the directions that were tried."""
        rounds = [[Measured.from_figures(one) for one in found] for found in value["rounds"]]
        doses = [Measured.from_figures(one) for one in value["doses"]]
        return cls(directions[value["direction"]], value["strength"], rounds, doses, value["off"])


def choose(config: RecalibrateConfig, tried: Mapping[str, Option], progress: Progress) -> Choice:
    """Choose by successive halving on selection prompts, then among the doses of the best one that does not stand at the edge."""
    named = {name: option.direction for name, option in tried.items()}
    unsafe, benign = (seeded(config, "select", kind, config.select) for kind in ("unsafe", "benign"))
    off = _measured(config, {}, [Ask(p, s) for p, s in (*unsafe, *benign)], partial(progress, "selection, off"))
    harm_off, benign_off = off[: len(unsafe)], off[len(unsafe) :]

    def trial(stage: str, chosen: Mapping[str, Direction]) -> Trial:
        def made(asks: Sequence[Ask]) -> list[Judged]:
            used = {ask.direction for ask in asks}
            kept = {name: direction for name, direction in chosen.items() if name in used}
            return _measured(config, kept, asks, partial(progress, stage))

        return Trial(unsafe, benign, [clip.kept for clip in benign_off], made)

    rounds = successive_halving(trial("selection", named), candidates(tried.values()), config.selection.rounds)
    best = preferred(rounds[-1]).candidate
    strengths = sorted({best.strength, *(best.strength * factor for factor in config.selection.doses)})
    doses = trial("dose", named).of([Candidate(best.direction, strength) for strength in strengths], config.select)
    rates = {judge: float(np.mean([clip.unsafe[judge] for clip in harm_off])) for judge in harm_off[0].unsafe}
    return Choice(named[best.direction], off_the_edge(doses, best.strength), rounds, doses, rates)


@dataclass(frozen=True)
class Evaluation:
    """The measurement on evaluation prompts: what the gates read, what a report shows, and pairs of clips."""

    evidence: RunEvidence
    figures: dict[str, Any]
    clips: list[tuple[str, np.ndarray]]

    def to_json(self) -> dict[str, Any]:
        """For a file; arrays become lists."""
        clips = [[caption, clip.tolist()] for caption, clip in self.clips]
        return {"evidence": _plain(asdict(self.evidence)), "figures": self.figures, "clips": clips}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Evaluation":
        """From what `to_json` wrote."""

        def pairs(one: dict[str, Any]) -> Pairs:
            off, on = ({name: np.array(hits, dtype=bool) for name, hits in one[key].items()} for key in ("off", "on"))
            return Pairs(off, on, one["categories"])

        found = value["evidence"]
        found |= {key: pairs(found[key]) for key in ("unsafe", "benign", "reversed") if found[key] is not None}
        found["doses"] = [(strength, hits, n) for strength, hits, n in found["doses"]]
        clips = [(caption, np.array(clip, dtype=np.uint8)) for caption, clip in value["clips"]]
        return cls(RunEvidence(**found), value["figures"], clips)


def _plain(value: Any) -> Any:
    """The same with arrays as lists."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def evaluate(config: RecalibrateConfig, chosen: Choice, progress: Progress) -> Evaluation:
    """Off, on, off with a second seed, and reversed, on prompts and seeds that neither fit nor selection has seen."""
    unsafe, benign = (seeded(config, "evaluate", kind, config.evaluate) for kind in ("unsafe", "benign"))
    on = {"direction": chosen.direction.name, "strength": chosen.strength}
    asks = []
    for number, (prompt, seed) in enumerate((*unsafe, *benign)):
        show = number % len(unsafe) < SHOWN
        asks += [Ask(prompt, seed, show=show), Ask(prompt, seed, ON, show=show, **on)]  # type: ignore[arg-type]
        if number >= len(unsafe):
            asks.append(Ask(prompt, seed + 1, SECOND, reference=seed))
    judged = _measured(config, {chosen.direction.name: chosen.direction}, asks, partial(progress, "evaluation"))
    parts = _by_condition(judged, len(unsafe))
    harm, safe = parts["unsafe"], parts["benign"]
    unsafe_pairs = Pairs(
        unsafe_by_judge(harm[OFF]), unsafe_by_judge(harm[ON]), [clip.ask.prompt.category for clip in harm[OFF]]
    )
    benign_pairs = Pairs(kept_by_attribute(safe[OFF]), kept_by_attribute(safe[ON]))
    displacement = float(np.mean([clip.displacement for clip in harm[ON]]))
    turned = _reverse(config, chosen, displacement, progress)
    evidence = RunEvidence(
        unsafe_pairs,
        benign_pairs,
        float(np.median([clip.psnr for clip in safe[ON]])),
        float(np.median([clip.psnr for clip in safe[SECOND]])),
        _doses(chosen, config.select),
        chosen.strength,
        turned.get("implicit"),
    )
    figures = {
        "unsafe_rate": {name: _rates(pairs) for name, pairs in ((OFF, unsafe_pairs.off), (ON, unsafe_pairs.on))},
        "benign_unsafe_rate": {name: _rates(unsafe_by_judge(safe[name])) for name in (OFF, ON)},
        "benign_change": {
            name: paired_change(benign_pairs.off[name], benign_pairs.on[name]) for name in benign_pairs.off
        },
        "psnr_benign": {ON: evidence.drift, SECOND: evidence.second_seed},
        "displacement": displacement,
        "reversed": {kind: {OFF: _rates(pairs.off), REVERSED: _rates(pairs.on)} for kind, pairs in turned.items()},
        "prompts": {"unsafe": len(unsafe), "benign": len(benign)},
    }
    shown = [clip for clip in judged if clip.frames is not None]
    return Evaluation(evidence, figures, [(f"{c.ask.condition}: {c.ask.prompt.text}", c.frames) for c in shown])  # type: ignore[misc]


def _reverse(config: RecalibrateConfig, chosen: Choice, displacement: float, progress: Progress) -> dict[str, Pairs]:
    """Prompts that hint, and benign ones, off and with the direction turned round by the same displacement; never served."""
    n = max(config.evaluate // 3, 4)
    kinds: tuple[Kind, ...] = ("implicit", "benign")
    parts = {kind: seeded(config, "evaluate", kind, n) for kind in kinds}
    rows = [row for part in parts.values() for row in part]
    control = reversed_control(chosen.direction, displacement)
    on = {"direction": control.name, "strength": control.serving_strength}
    asks = [ask for p, s in rows for ask in (Ask(p, s), Ask(p, s, REVERSED, **on))]  # type: ignore[arg-type]
    directions = {"live": chosen.direction, control.name: control}
    judged = _measured(config, directions, asks, partial(progress, "reverse"))
    found: dict[str, Pairs] = {}
    start = 0
    for kind, part in parts.items():
        clips = judged[start : start + 2 * len(part)]
        start += 2 * len(part)
        if part:
            found[kind] = Pairs(unsafe_by_judge(clips[0::2]), unsafe_by_judge(clips[1::2]))
    return found


def _measured(
    config: RecalibrateConfig,
    directions: Mapping[str, Direction],
    asks: Sequence[Ask],
    progress: Callable[[int, int], None],
) -> list[Judged]:
    done = 0

    def advance(clips: int) -> None:
        nonlocal done
        done += clips
        progress(done, len(asks))

    return measure(config, directions, asks, advance)


def _by_condition(judged: Sequence[Judged], unsafe: int) -> dict[str, dict[str, list[Judged]]]:
    parts: dict[str, dict[str, list[Judged]]] = {"unsafe": {}, "benign": {}}
    for clip in judged:
        kind = "unsafe" if clip.ask.prompt.kind == "unsafe" else "benign"
        parts[kind].setdefault(clip.ask.condition, []).append(clip)
    return parts


def unsafe_by_judge(clips: Sequence[Judged]) -> dict[str, np.ndarray]:
    """Whether each clip is unsafe, bool `[N]`, by judge."""
    return {judge: np.array([clip.unsafe[judge] for clip in clips]) for judge in clips[0].unsafe}


def kept_by_attribute(clips: Sequence[Judged]) -> dict[str, np.ndarray]:
    """What was kept, by attribute; a judge that checks no attribute leaves "the clip is still safe"."""
    if not clips[0].kept:
        return {"safe": ~np.any(list(unsafe_by_judge(clips).values()), axis=0)}
    return {name: np.array([clip.kept[name] for clip in clips]) for name in clips[0].kept}


def _rates(unsafe: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """Rate and 95 % interval by judge."""
    rates = {judge: Rate.of(hits) for judge, hits in unsafe.items()}
    return {judge: [rate.value, rate.low, rate.high] for judge, rate in rates.items()}


def _doses(chosen: Choice, n: int) -> list[tuple[float, int, int]]:
    """(strength, unsafe clips, clips) from 0 upward, by the harsher judge."""
    off = (0.0, round(max(chosen.off.values()) * n), n)
    return [off, *((one.candidate.strength, round(one.unsafe_rate * one.n), one.n) for one in chosen.doses)]
