"""What is attacked: the set-point without its guards, and set-points of other fits at its blocks."""

import numpy as np
import torch

from benchmarks.attack_ways import by_name, refits, unguarded
from reins_serve.calibration.config import RecalibrateConfig
from reins_serve.steering.direction import Direction, Guard
from tests.calibration.test_options import EACH, basis

EASY = Direction.load("directions/embedded/setpoint.safetensors")
HARD = RecalibrateConfig.load("directions/embedded-hard/recalibrate.yaml")


def a_row(blocks: int) -> Direction:
    """A guarded row of set-points at the first blocks."""
    statistics = tuple(EASY.meta.statistics[0].model_copy(update={"safe_mean": 10.0 + at}) for at in range(blocks))
    update = {
        "name": "row",
        "blocks": tuple(range(blocks)),
        "statistics": statistics,
        "guard": Guard(blocks=(blocks - 1,), shortfall=0.25),
    }
    return Direction.create(EASY.meta.model_copy(update=update), torch.eye(EASY.meta.base.width)[:blocks])


def test_without_its_guards_a_set_point_is_the_same_at_the_other_blocks() -> None:
    row = a_row(4)
    found = unguarded(row)
    assert (found.blocks, found.meta.guard) == ((0, 1, 2), None)
    assert torch.equal(found.vectors, row.vectors[:3])
    assert found.meta.statistics == row.meta.statistics[:3]
    assert by_name({"a": ((row, 1.0),), "b": ((row, 1.0), (found, 1.0))}).keys() == {"row", "row-unguarded"}


def test_refits_stand_at_the_blocks_of_what_ships_and_begin_with_either_label() -> None:
    width = basis(0).fitted.model.direction_.shape[1]
    row = a_row(5)
    base = row.meta.base.model_copy(update={"width": width})
    live = Direction.create(row.meta.model_copy(update={"base": base}), torch.eye(width)[:1].expand(5, -1))
    found = refits(HARD, live, basis(0), EACH)
    assert [one.blocks for one in found] == [live.blocks] * 2
    assert [np.argmax(one.vectors, axis=1).tolist() for one in found] == [[1, 2, 1, 2, 1], [2, 1, 2, 1, 1]]
    assert all(one.meta.guard == live.meta.guard for one in found)
