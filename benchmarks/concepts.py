"""A direction of each concept of the harder world and of both, by set-point and by addition: `python -m benchmarks.concepts`.

It takes a recalibration's configuration of that world, from text or from a first frame. One collection of un-steered clips is
labelled by concept and serves every fit (`concept_fits`). Block, blocks and strength are chosen on selection prompts: the
fewest unsafe clips plus the largest loss, where a concept that shall stay counts like an attribute, and of equals the smallest
push. The set-points that the second round cannot tell apart are measured once more at doses around their strength, on twice as
many prompts, and a dose counts the unsafe clips of the dose below it as its own: a strength that left 0 of 48 clips unsafe
stood at the edge, and left .07 of 402 that asked for both concepts. There is no leeway of a clip as in the recalibration: it
is more than the .03 that is asked for. Smaller doses that left no more than one clip more are held against it on eight times
as many prompts of another draw, benign ones too, and the best of them serves: of 96 prompts each dose kept all that .019 of
1,206 lost. From the doses on, half of the prompts are rewritten at random, four times over (`benchmarks.rewriting`): what left
none of 1,206 plain prompts left 10 of 60 rewritten ones, which ask several times. Then everything is measured once on
evaluation prompts, whose combinations of attributes the model never saw: `--evaluate` of each kind (each concept, both, and
benign ones `--benign` times as many, for a difference has the wider interval), and a quarter of them for the addition, which
does not serve. `--draw` takes other wordings, phrases and seeds of the same combinations, where the first have been looked at.
The gates are the recalibration's, on these figures; the directions go to `--directions`.

The work is kept in `--out`, and goes on there where it stopped. `--only` measures some targets alone, and puts them into the
file of `--json` in the place of what it had of them; each row says its draw.
"""

import argparse
import json
import os
import pickle
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np
import ray

from benchmarks import cluster
from benchmarks.concept_doses import chosen_dose, least_dose
from benchmarks.concept_figures import FEWER, LIVE, Clips, Way, kind_of, row, unsteered_figures
from benchmarks.concept_fits import fits, kind_of_option, tried_for
from benchmarks.machine import describe
from benchmarks.output import anew, say, show
from benchmarks.quality import named
from benchmarks.rewriting import rewritten_each
from benchmarks.targets import KINDS, OUTRIGHT, TARGETS, Seeded, Target, in_turn, pool
from benchmarks.worlds import WORLDS
from reins_serve.calibration.collect import collect
from reins_serve.calibration.config import RecalibrateConfig
from reins_serve.calibration.controls import reversed_control
from reins_serve.calibration.fit_stage import Fitted, evidence
from reins_serve.calibration.fitting import describe_fit, finished
from reins_serve.calibration.gates import fit_gates, run_gates, worst_gates
from reins_serve.calibration.options import Option, candidates, worth_trying
from reins_serve.calibration.sweep import Candidate, Measured, Trial, best
from reins_serve.calibration.trials import REVERSED, SECOND
from reins_serve.calibration.workers import Ask, Judged, entry_of, measure
from reins_serve.models.loading import load
from reins_serve.steering.direction import Direction
from reins_serve.steering.fit import base_of

FINALISTS = 4  # of each kind
TWICE = 2  # as many prompts for the doses of what serves
OTHERS, OTHER_DRAW = 8, 1  # times as many, of another draw, for smaller ones
SETTING = ("config", "evaluate", "benign", "draw", "quick")
TOLD = 1_000  # clips between two lines of progress


def chosen(
    config: RecalibrateConfig,
    target: Target,
    tried: Mapping[str, Option],
    pools: dict[str, list[Seeded]],
    quick: int,
    file: Path,
) -> dict[str, Any]:
    """The best direction and strength of each operation, JSON-ready, with every figure on the way there.

    All of them go through the first round, for what it says of the depth. Of each kind the best directions go on, each at its
    best strength; only steady ones, as in the recalibration: the gates would refuse a direction that another sample of prompts
    would turn. Files beside `file` keep each round.
    """
    n, every = config.select, TWICE * config.select

    def drawn(size: int, of: Callable[[str], list[Seeded]]) -> tuple[list[Seeded], list[Seeded]]:
        unsafe, benign = (in_turn([of(kind) for kind in kinds], size) for kinds in (target.asked, target.beside))
        return half_rewritten(config, unsafe), benign

    def counted(asks: Sequence[Ask]) -> list[Judged]:
        used = {ask.direction for ask in asks}
        directions = {name: option.direction for name, option in tried.items() if name in used}
        return [target.as_counted(clip) for clip in measure(config, directions, asks)]

    unsafe, benign = drawn(every, pools.__getitem__)
    off = counted([Ask(prompt, seed) for prompt, seed in (*unsafe, *benign)])
    trial = Trial(unsafe, benign, [clip.kept for clip in off[every:]], counted)
    more = OTHERS * n

    def on_others() -> Trial:
        unsafe, benign = drawn(more, lambda kind: pool(config, "select", kind, more, OTHER_DRAW))
        off = counted([Ask(prompt, seed) for prompt, seed in benign])
        return Trial(unsafe, benign, [clip.kept for clip in off], counted)

    def kept_round(
        which: str, asked: Sequence[Candidate], prompts: int, on: Callable[[], Trial] = lambda: trial
    ) -> list[Measured]:
        stored = file.with_name(f"{file.stem}-{which}.json")
        figures = kept_in(stored, lambda: [one.figures() for one in on().of(asked, prompts)])
        return [Measured.from_figures(one) for one in figures]

    def less(asked: Sequence[Candidate]) -> list[Measured]:
        return kept_round("less", asked, more, on_others)

    first = kept_round("first", candidates(tried.values()), quick)
    by_kind: dict[str, dict[str, Candidate]] = defaultdict(dict)
    able = worth_trying(tried)
    for one in sorted(first, key=best):
        name = one.candidate.direction
        if name in able:
            by_kind[kind_of_option(tried[name])].setdefault(name, one.candidate)
    left = [candidate for its in by_kind.values() for candidate in list(its.values())[:FINALISTS]]
    by_operation: dict[str, list[Measured]] = defaultdict(list)
    second = kept_round("second", left, n)
    for one in second:
        by_operation[tried[one.candidate.direction].direction.operation].append(one)
    ways = {}
    for operation, finalists in by_operation.items():
        prompts = every if operation == LIVE else n
        found = chosen_dose(operation, finalists, partial(kept_round, f"doses-{operation}", prompts=prompts))
        ways[operation] = least_dose(found, less) if operation == LIVE else found
    rate = max(float(np.mean([clip.unsafe[judge] for clip in off[:every]])) for judge in off[0].unsafe)
    return {"off": rate, "ways": ways, "rounds": [[one.figures() for one in its] for its in (first, second)]}


def half_rewritten(config: RecalibrateConfig, prompts: Sequence[Seeded]) -> list[Seeded]:
    """The prompts, those of the second half rewritten."""
    plain = len(prompts) // 2
    return [*prompts[:plain], *rewritten_each(WORLDS[config.prompts.kind], prompts[plain:], config.seed)]


def way_of(target: Target, tried: Mapping[str, Option], figures: dict[str, Any], operation: str) -> Way:
    """The way that `chosen` found."""
    it = figures["ways"][operation]
    doses = [(d["candidate"]["strength"], max(d["unsafe"].values()), d["n"]) for d in it["doses"]]
    doses = [(0.0, figures["off"], doses[0][2]), *doses]
    serving = next(d for d in it["doses"] if d["candidate"]["strength"] == it["strength"])
    return Way(
        target,
        tried[it["direction"]].direction,
        it["strength"],
        it["largest"],
        tuple((strength, round(rate * n), n) for strength, rate, n in doses),
        float(serving["displacement"]),
    )


def made(config: RecalibrateConfig, ways: Sequence[Way], kind: str, n: int, draw: int) -> list[Judged]:
    """Clips of `n` evaluation prompts of a kind: off, on, some benign ones off with another seed, and those that hint reversed."""
    served = [(way, *_served(way, kind)) for way in ways]
    asks: list[Ask] = []
    for number, (prompt, seed) in enumerate(pool(config, "evaluate", kind, n, draw)):
        asks.append(Ask(prompt, seed))
        asks += [Ask(prompt, seed, d.name, d.name, strength) for way, d, strength in served if way.concerns(number)]
        if kind == "benign" and number % FEWER == 0:
            asks.append(Ask(prompt, seed + 1, SECOND, reference=seed))
    done = 0

    def advance(clips: int) -> None:
        nonlocal done
        before, done = done, done + clips
        if before // TOLD != done // TOLD:
            say(f"{kind}: {done} of {len(asks)} clips")

    # Those that steer too where only controls are asked for: a worker attaches one that may be live.
    every = [named(way.direction, way.name) for way in ways] + [direction for _, direction, _ in served]
    return measure(config, {direction.name: direction for direction in every}, asks, advance)


def _served(way: Way, kind: str) -> tuple[Direction, float]:
    """A way's direction and strength on prompts of a kind: turned round on those that hint."""
    if kind != "hints":
        return named(way.direction, way.name), way.strength
    turned = reversed_control(way.direction, way.displacement)
    return named(turned, f"{way.name}-{REVERSED}"), turned.serving_strength


def depth(fitted: Fitted, figures: dict[str, Any], tried: Mapping[str, Option]) -> list[dict[str, Any]]:
    """By block: information (AUC, refit cosine), and by operation the least unsafe rate at any strength in the first round."""
    rows = []
    for layer in fitted.layers:
        effect: dict[str, float] = {}
        for one in figures["rounds"][0]:
            direction = tried[one["candidate"]["direction"]].direction
            if direction.blocks == (layer["block"],):
                least = effect.get(direction.operation, 1.0)
                effect[direction.operation] = round(min(least, one["cost"]), 4)
        rows.append({name: round(layer[name], 4) for name in ("block", "auc", "refit_cosine")} | {"cost": effect})
    return rows


def kept_in(file: Path, make: Callable[[], Any]) -> Any:
    """What the file holds, as JSON or pickled, or else what is made, which it then holds."""
    written = pickle if file.suffix == ".pickle" else json
    if not file.exists():
        made = written.dumps(make())
        file.write_bytes(made.encode() if isinstance(made, str) else made)
    return written.loads(file.read_bytes())


def joined(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Figures with some targets measured anew."""
    return anew(before, now, "way") | {"depth": before["depth"] | now["depth"]}


def main() -> None:
    """Print and write the figures, and write the directions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="a recalibration's configuration of the harder world")
    parser.add_argument("--evaluate", type=int, default=402, help="evaluation prompts of each kind")
    parser.add_argument("--benign", type=float, default=1.0, help="times as many benign ones")
    parser.add_argument("--draw", type=int, default=0, help="another draw of wordings, phrases and seeds")
    parser.add_argument(
        "--only", nargs="+", choices=[target.name for target in TARGETS], help="targets; all if not given"
    )
    parser.add_argument("--quick", type=int, default=6, help="selection prompts of each kind in the first round")
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps the work")
    parser.add_argument("--directions", type=Path, required=True, help="folder for the directions")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    began = time.perf_counter()
    config = RecalibrateConfig.load(asked.config)
    root = str(asked.out / "activations")
    asked.out.mkdir(parents=True, exist_ok=True)
    cluster.start(4, 400)
    try:
        stored = collect(config, root, lambda *_: None)
        say(f"collected {config.fit * config.seeds * 2} clips: {time.perf_counter() - began:.0f} s")
        found = fits(config, stored, root)
        base = base_of(load(entry_of(config), config.loading, task=config.task))
        pools = {kind: pool(config, "select", kind, TWICE * config.select) for kind in OUTRIGHT}
        found = {name: one for name, one in found.items() if not asked.only or name in asked.only}
        tried = {name: tried_for(config, base, one) for name, one in found.items()}
        ways, depths, by_way = [], {}, {}
        for name, one in found.items():
            file = asked.out / f"{name}.json"
            figures = kept_in(file, partial(chosen, config, one.target, tried[name], pools, asked.quick, file))
            depths[name] = depth(one.together.fitted, figures, tried[name])
            for operation, it in figures["ways"].items():
                ways.append(way_of(one.target, tried[name], figures, operation))
                by_way[ways[-1].name] = tried[name][it["direction"]]
            say(f"chose {', '.join(_told(way) for way in ways[-2:])}: {time.perf_counter() - began:.0f} s")
        clips: Clips = defaultdict(list)
        for kind in KINDS:
            n = round(asked.evaluate * {"benign": asked.benign, "hints": 1 / 3}.get(kind, 1))
            evaluate = partial(made, config, ways, kind, n, asked.draw)
            file = asked.out / f"evaluation-{asked.draw}-{'-'.join(found)}-{kind}.pickle"
            for clip in kept_in(file, evaluate):
                clips[kind_of(clip), clip.ask.condition].append(clip)
        rows = []
        for way in ways:
            figures, run = row(way, clips)
            option = by_way[way.name]
            early = [fit_gates(evidence(stored, one.labels, one.fitted, block, None)) for one, block in option.basis]
            gates = worst_gates(early) | run_gates(run)
            fitted = option.basis[0][0].fitted
            described = describe_fit(config, fitted.model, fitted.clips, option.auc)
            direction = finished(way.direction, way.name, described, way.strength, way.largest, gates, None)
            asked.directions.mkdir(parents=True, exist_ok=True)
            direction.save(asked.directions / f"{way.file}.safetensors")
            verdicts = {name: gate.model_dump() for name, gate in gates.items()}
            rows.append(figures | {"draw": asked.draw, "gates": verdicts})
    finally:
        ray.shutdown()
    figures = {
        "machine": describe(),
        "setting": {name: getattr(asked, name) for name in SETTING} | {"seed": config.seed},
        "task": (config.task or entry_of(config).tasks[0]),
        "off": unsteered_figures(clips),
        "rows": rows,
        "depth": depths,
        "seconds": round(time.perf_counter() - began),
    }
    if asked.only and asked.json is not None and asked.json.exists():
        figures = joined(json.loads(asked.json.read_text()), figures)
    show(figures, asked.json)


def _told(way: Way) -> str:
    return f"{way.name} at {', '.join(map(str, way.direction.blocks))} by {way.strength:g}"


if __name__ == "__main__":
    main()
