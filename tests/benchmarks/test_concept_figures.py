"""Figures of a direction of one concept, from clips that are made up: pairs of equal prompts and seeds, whatever their order."""

from dataclasses import replace

import numpy as np

from benchmarks.concept_figures import Clips, Way, kind_of, row, unsteered_figures
from benchmarks.targets import KINDS, TARGETS
from reins_serve.calibration.gates import run_gates
from reins_serve.calibration.prompt_sets import PromptRow
from reins_serve.calibration.trials import REVERSED, SECOND
from reins_serve.calibration.workers import OFF, Ask, Judged
from reins_serve.steering.direction import Direction

N = 40
EXPLOSION = TARGETS[1]
LIVE = Direction.load("directions/embedded/setpoint.safetensors")
WAY = Way(EXPLOSION, LIVE, 2.0, 2.5, ((0.0, 40, 40), (1.0, 20, 40), (2.0, 1, 40)), 1.0)
ASKS = {"explosion": (1, 0), "spill": (0, 1), "both": (1, 1)}


def clip(kind: str, number: int, condition: str, explosion: float, spill: float, shape: bool = True) -> Judged:
    hints = kind == "hints"
    prompt = PromptRow(
        text=f"{kind} {number}", split="evaluate", category=kind if kind in ASKS else None, implicit=hints
    )
    scores = {f"{judge}/{name}": p for judge in "ab" for name, p in (("explosion", explosion), ("spill", spill))}
    seed, reference = (number + 1, number) if condition == SECOND else (number, None)
    ask = Ask(prompt, seed, condition, reference=reference)
    drift = 25.0 if condition == SECOND else 30.0
    return Judged(ask, {"a": False, "b": False}, scores, {"shape": shape}, 0.0, drift, None)


def clips() -> Clips:
    """Off as asked; on no explosion but in the first, a spill lost in the first of the spills, a shape in the first benign one."""
    found: Clips = {}
    for kind in KINDS:
        off = [clip(kind, n, OFF, *ASKS.get(kind, (n % 2 if kind == "hints" else 0, 0))) for n in range(N)]
        found[kind, OFF] = off[::-1]  # another order than the steered ones
        found[kind, WAY.name] = [
            clip(kind, n, WAY.name, kind == "explosion" and n == 0, ASKS.get(kind, (0, 0))[1] and (kind, n) != ("spill", 0),
                 (kind, n) != ("benign", 0))
            for n in range(N)
        ]  # fmt: skip
    found["benign", SECOND] = [clip("benign", n, SECOND, 0, 0) for n in range(N)]
    found["hints", f"{WAY.name}-{REVERSED}"] = [clip("hints", n, "x", 1, 0) for n in range(N)]
    return found


def test_what_serves_is_measured_on_all_prompts_and_an_addition_on_a_quarter() -> None:
    assert all(WAY.concerns(n) for n in range(N))
    addition = replace(WAY, direction=Direction.load("directions/embedded/add.safetensors"))
    assert sum(addition.concerns(n) for n in range(N)) == N // 4
    joint = Way(TARGETS[0], LIVE, 2.0, 2.5, WAY.doses, 1.0)
    assert (WAY.name, joint.name) == ("explosion-setpoint", "joint-setpoint")
    assert (WAY.file, joint.file) == ("explosion-setpoint", "setpoint")


def test_rates_and_changes_are_those_of_its_own_concept_and_of_what_it_leaves() -> None:
    figures, run = row(WAY, clips())
    assert {kind: judges["a"][0] for kind, judges in figures["unsafe"].items()} == {"explosion": 1 / N, "both": 0.0}
    assert figures["change"]["benign"]["shape"][0] == -1 / N
    assert figures["change"]["benign"]["spill"][0] == 0.0
    assert figures["change"]["spill"]["spill"][0] == -1 / N
    assert (figures["blocks"], figures["end"], figures["margin"]) == (list(LIVE.blocks), LIVE.meta.window.end, 0.0)
    assert figures["guards"] == []
    assert figures["psnr_benign"] == {"on": 30.0, SECOND: 25.0}
    assert (run.serving, run.drift, run.second_seed) == (2.0, 30.0, 25.0)
    assert np.sum(run.unsafe.off["a"]) == len(run.unsafe.off["a"]) == 2 * N
    gates = run_gates(run)
    assert all(gates[name].passed for name in ("efficacy", "categories", "drift", "dose", "reverse"))
    assert not gates["utility"].passed  # one of 40 is too many to be sure of 2 points


def test_unsteered_clips_are_told_by_kind() -> None:
    found = unsteered_figures(clips())
    assert found["spill"]["spill"]["b"][0] == 1.0
    assert found["spill"]["explosion"]["a"][0] == 0.0
    assert found["hints"]["explosion"]["a"][0] == 0.5
    assert {kind_of(one) for (kind, _), its in clips().items() for one in its if kind == "hints"} == {"hints"}
