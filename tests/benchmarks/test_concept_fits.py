"""Directions of several concepts: balanced labels, set-points at several blocks in a row, and the fits that they come from."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import concept_fits
from benchmarks.concept_fits import Found, Option, balanced, options
from benchmarks.quality import named
from benchmarks.targets import TARGETS
from reins_serve.calibration.fit_stage import Labels
from reins_serve.steering.direction import Direction

SETPOINT = Direction.load("directions/embedded/setpoint.safetensors")
ADD = Direction.load("directions/embedded/add.safetensors")
JOINT, EXPLOSION, SPILL = TARGETS


def found(target: Any, unsteady: int | None = None) -> Found:
    layers = [{"block": block, "refit_cosine": 0.5 if block == unsteady else 0.95} for block in range(8)]
    return Found(target, None, SimpleNamespace(blocks=tuple(range(8)), layers=layers))  # type: ignore[arg-type]


def at(direction: Direction, block: int, factor: float) -> Direction:
    meta = direction.meta.model_copy(update={"blocks": (block,)})
    return named(Direction.create(meta, direction.vectors.roll(int(factor), 1)), f"{direction.operation}-{block}")


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Option]]:
    """Each target's vectors are told apart by how far they are shifted: joint 0, explosion 1, spill 2."""

    def single(config: Any, base: Any, one: Found) -> dict[str, Option]:
        shift = TARGETS.index(one.target)
        made = [at(direction, block, shift) for direction in (SETPOINT, ADD) for block in one.fitted.blocks]
        return {f"{one.target.name}-{d.name}": Option(d, ((one, d.blocks[0]),)) for d in made}

    monkeypatch.setattr(concept_fits, "_at_one_block", single)
    return options(None, None, {target.name: found(target, 3 if target is SPILL else None) for target in TARGETS})  # type: ignore[arg-type]


def test_both_concepts_take_turns_over_four_blocks_each_with_its_own_vector(tried) -> None:
    turns = {name for name, option in tried["joint"].items() if len(option.basis) > 1}
    assert turns == {f"joint-{order}-{first}" for order in ("eses", "sese") for first in (0, 1, 2)}
    made = tried["joint"]["joint-eses-1"]
    assert (made.direction.blocks, made.direction.operation, made.kind) == (
        (1, 2, 3, 4),
        "setpoint",
        "setpoint in a row",
    )
    assert [one.target.name for one, _ in made.basis] == ["explosion", "spill", "explosion", "spill"]
    vectors = [SETPOINT.vectors.roll(shift, 1) for shift in (1, 2, 1, 2)]
    assert torch.equal(made.direction.vectors, torch.cat(vectors))
    assert len(made.direction.meta.statistics) == 4


def test_one_concept_is_tried_at_three_and_four_blocks_in_a_row(tried) -> None:
    made = {name: option.direction.blocks for name, option in tried["spill"].items() if len(option.basis) > 1}
    assert made["spill-sss-2"] == (2, 3, 4)
    assert made["spill-ssss-0"] == (0, 1, 2, 3)
    assert len(made) == 6
    assert {option.kind for option in tried["spill"].values()} == {"setpoint", "setpoint in a row", "add"}


def test_a_row_is_as_steady_as_the_least_of_its_fits(tried) -> None:
    assert not tried["joint"]["joint-eses-0"].steady  # the spill's fit at block 3 is not
    assert tried["joint"]["joint-eses-1"].steady
    assert tried["explosion"]["explosion-eee-2"].steady


def test_no_row_goes_beyond_the_last_block() -> None:
    chains = concept_fits._chains(("explosion",), 4)
    assert {(chain[0][1], chain[-1][1]) for chain in chains} == {(0, 2), (1, 3), (2, 4), (0, 3), (1, 4)}


def labels(name: str, hits: list[bool]) -> Labels:
    unsafe = {f"{number:02}": hit for number, hit in enumerate(hits)}
    return Labels((name,), {one: np.array([float(hit)]) for one, hit in unsafe.items()}, unsafe)


def test_a_concept_is_fitted_on_as_many_clips_with_each_combination() -> None:
    rng = np.random.default_rng(0)
    one = labels("explosion", (rng.random(60) < 0.5).tolist())
    other = labels(
        "spill", [(hit and number % 3 > 0) or number % 4 == 0 for number, hit in enumerate(one.unsafe.values())]
    )
    kept = balanced(one, [other])
    cells = [(kept.unsafe[clip], other.unsafe[clip]) for clip in kept.unsafe]
    counts = {cell: cells.count(cell) for cell in set(cells)}
    assert len(counts) == 4
    assert len(set(counts.values())) == 1
    assert max(counts.values()) > 1
    assert kept.unsafe.keys() == kept.probability.keys()
    assert all(kept.unsafe[clip] == one.unsafe[clip] for clip in kept.unsafe)
