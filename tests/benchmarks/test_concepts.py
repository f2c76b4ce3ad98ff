"""Directions of several concepts: two set-points one block after the other, the fits that they come from, and their gates."""

import torch

from benchmarks.concepts import Found, fits_of, stacked, worst_gates
from benchmarks.quality import named
from benchmarks.targets import TARGETS
from reins_serve.steering.direction import Direction, Gate

SETPOINT = Direction.load("directions/embedded/setpoint.safetensors")
ADD = Direction.load("directions/embedded/add.safetensors")
JOINT, EXPLOSION, SPILL = TARGETS


def at(direction: Direction, block: int, sign: int = 1) -> Direction:
    meta = direction.meta.model_copy(update={"blocks": (block,)})
    return named(Direction.create(meta, sign * direction.vectors), f"{direction.operation}-{block}")


def test_set_points_of_two_concepts_stand_one_block_after_the_other_and_keep_their_own_vectors() -> None:
    one = {d.name: d for d in (at(SETPOINT, 1), at(SETPOINT, 2), at(ADD, 1))}
    other = {d.name: d for d in (at(SETPOINT, 2, -1), at(SETPOINT, 5, -1), at(ADD, 2))}
    made = stacked(one, other)
    assert set(made) == {"stacked-1"}
    both = made["stacked-1"]
    assert (both.blocks, both.name, both.operation) == ((1, 2), "stacked-1", "setpoint")
    assert torch.equal(both.vectors, torch.cat([SETPOINT.vectors, -SETPOINT.vectors]))
    assert len(both.meta.statistics) == 2


def test_each_block_of_two_belongs_to_the_fit_of_its_own_concept() -> None:
    found = {target.name: Found(target, None, None) for target in TARGETS}  # type: ignore[arg-type]
    both = stacked({"a": at(SETPOINT, 3)}, {"b": at(SETPOINT, 4)})["stacked-3"]
    assert fits_of(found, JOINT, both) == [(found["explosion"], 3), (found["spill"], 4)]
    assert fits_of(found, JOINT, at(SETPOINT, 3)) == [(found["joint"], 3)]
    assert fits_of(found, SPILL, at(SETPOINT, 3)) == [(found["spill"], 3)]


def test_a_gate_that_fails_for_one_of_the_fits_fails() -> None:
    good, bad = (Gate(value=value, limit="x", passed=value > 0.5) for value in (0.9, 0.1))
    assert worst_gates([{"size": good, "null": bad}, {"size": good, "null": good}]) == {"size": good, "null": bad}
    assert worst_gates([{"size": good}, {"size": bad}]) == {"size": bad}
