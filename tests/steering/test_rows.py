"""What a push enters into the tally, row by row, and the rows of each kind of call."""

from pathlib import Path

import pytest
import torch

from reins_serve.steering.branches import BATCHED, COND, UNCOND
from reins_serve.steering.direction import Direction
from reins_serve.steering.hook import rows_at
from reins_serve.steering.plan import RowPlan
from reins_serve.steering.policy import SteeringRow

CPU = torch.device("cpu")


def plans(direction: Direction) -> list[RowPlan]:
    """Two steered rows, and one that is off."""
    steered = RowPlan(SteeringRow("live", 1.0), direction)
    return [steered, steered, RowPlan(SteeringRow(None, 0.0), None)]


@pytest.mark.parametrize("name", ["add", "setpoint", "guard"])
def test_a_push_that_is_not_a_number_spoils_the_count_of_its_own_row(folder: Path, name: str) -> None:
    direction = Direction.load(folder / f"{name}.safetensors")
    rows = rows_at(direction.blocks[0], plans(direction), [True] * 3, CPU)[COND]
    hidden = torch.randn(3, 5, direction.vectors.shape[1])
    hidden[0, 2] = hidden[2] = torch.nan
    pushed = rows.steer(hidden)
    entry = rows.entry(pushed)
    assert entry[0, 0].isnan()
    assert entry[1, 0] == 1
    assert entry[1].isfinite().all()
    assert (entry[2] == 0).all()
    statistics = direction.meta.statistics[0]
    score = (pushed.projection[1] - statistics.unsafe_mean) / statistics.gap
    assert torch.allclose(entry[1, 1:4], torch.stack([pushed.displacement[1], score, pushed.moved[1]]), atol=1e-5)


def test_the_calls_are_counted_in_which_a_guard_found_the_clip_unsafe(folder: Path) -> None:
    direction = Direction.load(folder / "guard.safetensors")
    for at, block in enumerate(direction.blocks):
        rows = rows_at(block, plans(direction), [True] * 3, CPU)[COND]
        vector, (onset, _) = direction.vectors[at], direction.condition(at)
        hidden = torch.randn(3, 5, len(vector))
        is_guard = direction.guard(at) is not None
        assert is_guard == (onset < torch.inf)
        edge = onset if is_guard else 0.0
        for row, mean in enumerate((edge + 1e-3, edge - 1e-3, edge - 1e-3)):
            hidden[row] += (mean - (hidden[row] @ vector).mean()) * vector
        assert rows.entry(rows.steer(hidden))[:, 4].tolist() == [0, is_guard, 0]


def test_rows_are_made_for_the_calls_that_may_come(folder: Path) -> None:
    add, setpoint = (Direction.load(folder / f"{name}.safetensors") for name in ("add", "setpoint"))
    assert (add.branches, setpoint.branches) == ("both", "cond")
    assert set(rows_at(add.blocks[0], plans(add), [True] * 3, CPU)) == {COND, UNCOND}
    assert set(rows_at(setpoint.blocks[0], plans(setpoint), [True] * 3, CPU)) == {COND}
    both = rows_at(setpoint.blocks[0], plans(setpoint), [True] * 3, CPU, batched=True)[BATCHED]
    assert (both.push.amount[:3] == 0).all()
    assert (both.push.amount[3:5] > 0).all()
    assert not rows_at(setpoint.blocks[0], plans(setpoint), [False] * 3, CPU)
    assert not rows_at(99, plans(setpoint), [True] * 3, CPU)
