"""What each way of steering buys and costs on the harder embedded world, beside other defences: `python -m benchmarks.quality`.

Every way gets its own block and strength on selection prompts, by the rule of the recalibration: the fewest unsafe clips by the
harsher judge plus the largest benign loss, and of those within one clip of the fewest the smallest push. It is then measured
once on evaluation prompts: explicit ones, ones that only hint, and benign ones; brackets are 95 % intervals (Wilson's; for the
worst benign attribute's change on the same seeds, Newcombe's). What ships for the world stands beside them, as it ships.

The defences beside it do not change hidden states: a negative prompt that names the concept, a filter of prompts by keyword,
and a filter of clips by judge A, for which only judge B counts. The two filters deliver nothing where they strike: `delivered`
says how often they do not.

`--against FILE` measures the rows again with the block and strength of that table, on fewer prompts, and exits with 1 where
the two disagree beyond both intervals.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np
import ray

from benchmarks import cluster
from benchmarks.machine import describe
from benchmarks.output import show
from benchmarks.worlds import WORLDS
from reins_serve.calibration import judges, sweep
from reins_serve.calibration.collect import collect
from reins_serve.calibration.config import RecalibrateConfig, Tried
from reins_serve.calibration.fit_stage import Fitted, fit, read_labels
from reins_serve.calibration.fitting import describe_fit, direction_of
from reins_serve.calibration.prompt_sets import Kind
from reins_serve.calibration.statistics import Rate, paired_change
from reins_serve.calibration.sweep import Candidate, Trial, preferred
from reins_serve.calibration.trials import seeded
from reins_serve.calibration.workers import OFF, Ask, Judged, entry_of, measure
from reins_serve.models.loading import load
from reins_serve.steering.direction import Direction
from reins_serve.steering.fit import base_of

CONFIG = "directions/embedded-hard/recalibrate.yaml"
KINDS: tuple[Kind, ...] = ("unsafe", "implicit", "benign")
NEGATED = "negative prompt"
STRENGTHS = {"setpoint": (1.0, 1.5, 2.0, 3.0), "add": (0.2, 0.4, 0.8, 1.2)}
LAST = 7
FINALISTS = 3

Clips = dict[Kind, list[Judged]]


@dataclass(frozen=True)
class Way:
    """A way of steering, at each of `places` (a place is one block, or several at once)."""

    name: str
    operation: str
    norm: str = "none"
    branches: str = "cond"
    end: float = 0.5
    margin: float = 0.0
    places: tuple[tuple[int, ...], ...] = tuple((block,) for block in range(LAST + 1))


EARLY = ((1,), (2,), (3,))
WAYS = (
    Way("set-point", "setpoint"),
    Way("set-point, both branches", "setpoint", branches="both", places=EARLY),
    Way("set-point, all steps", "setpoint", end=1.0, places=EARLY),
    Way("set-point, three blocks at once", "setpoint", places=((1, 2, 3),)),
    Way("addition", "add"),
    Way("addition, token norm", "add", norm="token", places=EARLY),
    Way("addition, channel norm", "add", norm="channel", places=EARLY),
    Way("addition, both branches", "add", branches="both", places=EARLY),
    Way("addition, both branches, token norm", "add", norm="token", branches="both", places=EARLY),
    Way("addition, all steps", "add", end=1.0, places=EARLY),
    Way("addition, three blocks at once", "add", places=((0, 1, 2),)),
    Way("addition, half depth", "add", places=((4,),)),
    Way("difference of means added at the last block, all steps", "add", branches="both", end=1.0, places=((LAST,),)),
)


def fitted(config: RecalibrateConfig, folder: Path) -> tuple[Fitted, Any]:
    """Moments and directions of every block, from un-steered clips of the fitting prompts."""
    root = str(folder / "activations")
    stored = collect(config, root, lambda *_: None)
    judge = judges.load(config.judge)
    found = fit(root, stored, read_labels(stored, judge.name, judge.unsafe, None), None)
    return found, describe_fit(config, found.model, found.clips, None)


def directions_of(way: Way, config: RecalibrateConfig, found: Fitted, described: Any, base: Any) -> list[Direction]:
    """The way's direction at each of its places."""
    rules = {name: getattr(way, name) for name in ("operation", "norm", "branches", "end", "margin")}
    tried = Tried.model_validate(rules | {"strengths": STRENGTHS[way.operation]})
    short = way.name.replace(", ", "-").replace(" ", "-")
    return [
        direction_of(config, base, tried, [(found, block) for block in place], described, f"{short}-{place[0]}")
        for place in way.places
    ]


def named(direction: Direction, name: str) -> Direction:
    """The direction under another name."""
    return Direction.create(direction.meta.model_copy(update={"name": name}), direction.vectors)


def chosen(
    config: RecalibrateConfig, ways: dict[str, list[Direction]], n: int
) -> tuple[dict[str, tuple[Direction, float]], list[dict[str, Any]]]:
    """Each way's best direction and strength, and every figure on the way there.

    All are measured on `n` selection prompts of each kind, and the best `FINALISTS` of each way on four times as many.
    """
    unsafe, benign = (seeded(config, "select", kind, 4 * n) for kind in ("unsafe", "benign"))
    every = {direction.name: direction for made in ways.values() for direction in made}
    off = measure(config, {}, [Ask(prompt, seed) for prompt, seed in benign])
    trial = Trial(unsafe, benign, [clip.kept for clip in off], partial(measure, config, every))
    tried = {way: [Candidate(d.name, s) for d in made for s in STRENGTHS[d.operation]] for way, made in ways.items()}
    first = {one.candidate: one for one in trial.of(list(chain(*tried.values())), n)}
    left = {way: sorted(its, key=lambda c: sweep.best(first[c]))[:FINALISTS] for way, its in tried.items()}
    last = {one.candidate: one for one in trial.of(list(chain(*left.values())), 4 * n)}
    best = {}
    for way, its in left.items():
        taken = preferred([last[candidate] for candidate in its]).candidate
        best[way] = (every[taken.direction], taken.strength)
    return best, [measured.figures() for measured in (*first.values(), *last.values())]


def shipped(config: RecalibrateConfig) -> dict[str, tuple[Direction, float]]:
    """What ships for the world, each at its own strength."""
    files = WORLDS[config.prompts.kind].shipped[config.model]
    found = {f"{way}, as shipped": Direction.load(file) for way, file in files.items()}
    return {way: (direction, direction.serving_strength) for way, direction in found.items()}


def row(
    clips: Clips, off: Clips, delivered: dict[Kind, np.ndarray] | None = None, judge: str | None = None
) -> dict[str, Any]:
    """The figures of one way: rates are shares of what was asked for; what is not delivered is not unsafe, and keeps nothing."""
    figures: dict[str, Any] = {}
    for kind in ("unsafe", "implicit"):
        there = np.ones(len(clips[kind]), bool) if delivered is None else delivered[kind]
        names = [judge] if judge is not None else sorted(clips[kind][0].unsafe)
        unsafe = {name: np.array([clip.unsafe[name] for clip in clips[kind]]) & there for name in names}
        rates = [Rate.of(hits) for hits in unsafe.values()]
        figures[kind] = _worst(rates)
        asked = np.array([str(clip.ask.prompt.category) for clip in clips[kind]])
        if len(set(asked)) > 1:  # of prompts that hint none has a category
            figures["by_category"] = {
                category: _worst([Rate.of(hits[asked == category]) for hits in unsafe.values()])
                for category in sorted(set(asked))
            }
    there = np.ones(len(clips["benign"]), bool) if delivered is None else delivered["benign"]
    changes = [
        paired_change(
            np.array([clip.kept[n] for clip in off["benign"]]),
            np.array([clip.kept[n] for clip in clips["benign"]]) & there,
        )
        for n in off["benign"][0].kept
    ]
    figures["benign_change"] = [round(x, 4) for x in min(changes)]
    if delivered is not None:
        figures["delivered"] = {kind: round(float(hits.mean()), 4) for kind, hits in delivered.items()}
    return figures


def _worst(rates: Sequence[Rate]) -> list[float]:
    worst = max(rates, key=lambda rate: rate.value)
    return [round(x, 4) for x in (worst.value, worst.low, worst.high)]


def evaluated(config: RecalibrateConfig, best: dict[str, tuple[Direction, float]], n: int) -> list[dict[str, Any]]:
    """Every way and every other defence, once, on the same evaluation prompts and seeds."""
    prompts = {kind: seeded(config, "evaluate", kind, n) for kind in KINDS}
    flat = [one for kind in KINDS for one in prompts[kind]]
    named = {direction.name: direction for direction, _ in best.values()}
    world = WORLDS[config.prompts.kind]
    asks = [
        ask
        for p, s in flat
        for ask in (
            Ask(p, s),
            *(Ask(p, s, way, direction.name, strength) for way, (direction, strength) in best.items()),
            Ask(p, s, NEGATED, negative_prompt=world.negative),
        )
    ]
    judged = measure(config, named, asks)
    names = (OFF, *best, NEGATED)
    conditions = {name: _by_kind(judged[place :: len(names)], n) for place, name in enumerate(names)}
    off = conditions[OFF]
    rows = []
    for way, clips in conditions.items():
        of: dict[str, Any] = {"way": way}
        if way in best:
            direction, strength = best[way]
            of |= {"blocks": list(direction.blocks), "strength": strength}
        rows.append(of | row(clips, off))
    kept = {
        kind: np.array([not any(word in p.text for word in world.keywords) for p, _ in prompts[kind]]) for kind in KINDS
    }
    rows.append({"way": "filter of prompts by keyword"} | row(off, off, kept))
    one, two = (judges.load(judge).name for judge in (config.judge, config.evaluator))
    passed = {kind: np.array([not clip.unsafe[one] for clip in off[kind]]) for kind in KINDS}
    rows.append({"way": "filter of clips by judge A"} | row(off, off, passed, two))
    return rows


def _by_kind(clips: Sequence[Judged], n: int) -> Clips:
    return {kind: list(clips[n * place : n * (place + 1)]) for place, kind in enumerate(KINDS)}


def disagreements(rows: Sequence[dict[str, Any]], table: Sequence[dict[str, Any]]) -> list[str]:
    """Figures whose interval does not meet that of the committed table."""
    committed = {one["way"]: one for one in table}
    found = []
    for one in (one for one in rows if one["way"] in committed):
        for name in ("unsafe", "implicit", "benign_change"):
            (_, low, high), (_, its_low, its_high) = one[name], committed[one["way"]][name]
            if low > its_high or high < its_low:
                found.append(f"{one['way']}: {name} is {one[name]}, the table has {committed[one['way']][name]}")
    return found


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=CONFIG, help="a recalibration's configuration: model, prompts, judges")
    parser.add_argument("--evaluate", type=int, default=144, help="evaluation prompts of each kind")
    parser.add_argument("--select", type=int, default=12, help="selection prompts of each kind")
    parser.add_argument("--seed", type=int, default=31)
    parser.add_argument("--against", type=Path, help="a committed table whose rows shall be found again")
    parser.add_argument("--ways", nargs="+", help="names of the ways; all if not given")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    began = time.perf_counter()
    config = RecalibrateConfig.load(asked.config).model_copy(update={"seed": asked.seed, "live": None})
    cluster.start(4, 200)
    setting = {"config": asked.config, "seed": asked.seed, "evaluate": asked.evaluate, "select": asked.select}
    figures: dict[str, Any] = {"machine": describe(), "setting": setting}
    table = None if asked.against is None else json.loads(asked.against.read_text())
    base = base_of(load(entry_of(config), config.loading, task=config.task))
    try:
        with tempfile.TemporaryDirectory(prefix="reins-quality-") as folder:
            found, described = fitted(config, Path(folder))
        wanted = [way for way in WAYS if asked.ways is None or way.name in asked.ways]
        if table is None:
            made = {way.name: directions_of(way, config, found, described, base) for way in wanted}
            best, figures["sweep"] = chosen(config, made, asked.select)
        else:
            best = {}
            for way in wanted:
                its = next(one for one in table["rows"] if one["way"] == way.name)
                (direction,) = directions_of(
                    replace(way, places=(tuple(its["blocks"]),)), config, found, described, base
                )
                best[way.name] = (direction, its["strength"])
        best = shipped(config) | best
        figures["depth"] = [{name: one[name] for name in ("block", "auc", "refit_cosine")} for one in found.layers]
        figures["rows"] = evaluated(config, best, asked.evaluate)
    finally:
        ray.shutdown()
    figures["seconds"] = round(time.perf_counter() - began)
    wrong = [] if table is None else disagreements(figures["rows"], table["rows"])
    figures |= {} if table is None else {"disagreements": wrong}
    show(figures, asked.json)
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
