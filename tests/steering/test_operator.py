"""The push against formulas written out in float64, and what it must leave alone."""

import pytest
import torch

from reins_serve.steering import operator
from reins_serve.steering.operator import RowPush, steer

R, S, D = 3, 20, 8
ONSET, RAMP = 0.6, 0.8
GUARD = (ONSET, RAMP)
WAYS = [("add", None), ("setpoint", None), ("setpoint", GUARD)]


def push(
    operation: str, norm: str, amount: float = 0.7, target: float = 0.3, guard: tuple[float, float] | None = None
) -> RowPush:
    generator = torch.Generator().manual_seed(1)
    return RowPush(
        torch.nn.functional.normalize(torch.randn(R, D, generator=generator), dim=1),
        torch.full((R,), amount),
        torch.full((R,), target),
        *(torch.full((R,), value) for value in guard or (torch.inf, 1.0)),
        torch.full((R,), operation == "setpoint"),
        torch.full((R,), norm == "token"),
        torch.full((R,), norm == "channel"),
    )


def hidden(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(R, S, D, generator=torch.Generator().manual_seed(0)).to(dtype)


def written_out(h: torch.Tensor, p: RowPush, norm: str) -> torch.Tensor:
    result = torch.empty(R, S, D, dtype=torch.float64)
    for r in range(R):
        mean = float((h[r].double() @ p.vector[r].double()).mean())
        share = min(1.0, max(0.0, (ONSET - mean) / RAMP)) if p.onset[r] == ONSET else 1.0
        for s in range(S):
            token, d = h[r, s].double(), p.vector[r].double()
            length = share * p.amount[r].double()
            if p.setpoint[r]:
                length = length * max(0.0, float(p.target[r]) - float(token @ d))
            result[r, s] = token + length * d
            if norm == "token":
                result[r, s] *= token.norm() / result[r, s].norm()
        if norm == "channel":
            for c in range(D):
                result[r, :, c] *= h[r, :, c].double().norm() / result[r, :, c].norm()
    return result


@pytest.mark.parametrize(("operation", "guard"), WAYS)
@pytest.mark.parametrize("norm", ["token", "channel", "none"])
def test_the_push_is_the_formula(operation: str, guard: tuple[float, float] | None, norm: str) -> None:
    h, p = hidden(), push(operation, norm, guard=guard)
    result = steer(h, p, token_norm=norm == "token", channel_norm=norm == "channel")
    wanted = written_out(h, p, norm)
    assert torch.allclose(result.hidden.double(), wanted, atol=1e-6)
    moved = ((wanted - h.double()) * p.vector[:, None].double()).sum(2).mean(1)
    assert torch.allclose(result.displacement.double(), moved, atol=1e-6)
    assert torch.allclose(result.projection, (h * p.vector[:, None]).sum(2).mean(1), atol=1e-6)


def test_a_token_that_is_safe_already_is_not_touched() -> None:
    h, p = hidden(), push("setpoint", "none")
    safe = (h * p.vector[:, None]).sum(2) >= 0.3
    result = steer(h, p, token_norm=False, channel_norm=False)
    assert safe.any()
    assert not safe.all()
    assert torch.equal(result.hidden[safe], h[safe])
    assert torch.allclose(result.moved, (~safe).float().mean(1))


@pytest.mark.parametrize("norm", ["token", "channel", "none"])
def test_a_guard_does_not_touch_a_row_that_is_safe_as_a_whole_and_pushes_one_that_is_not_in_full(norm: str) -> None:
    h, p = hidden(), push("setpoint", norm, guard=GUARD)
    for row, mean in enumerate((ONSET, ONSET - RAMP, ONSET - RAMP / 2)):
        h[row] += (mean + 1e-3 - (h[row] @ p.vector[row]).mean()) * p.vector[row]
    flags = {"token_norm": norm == "token", "channel_norm": norm == "channel"}
    guarded, whole = steer(h, p, **flags, all_rows=True), steer(h, p, **flags, guards=False)
    assert torch.equal(guarded.hidden[0], h[0])
    assert (guarded.displacement[0], guarded.moved[0]) == (0, 0)
    assert guarded.figures[:, 4].tolist() == [0, 1, 1]
    assert whole.moved[0] > 0
    assert not whole.figures[:, 4].any()
    assert torch.allclose(guarded.hidden[1], whole.hidden[1], atol=1e-2)
    assert 0 < guarded.displacement[2] < whole.displacement[2]


def test_a_guard_looks_at_all_tokens_of_a_row_and_at_no_other_row() -> None:
    h, p = hidden(), push("setpoint", "none", guard=GUARD)
    flags = {"token_norm": False, "channel_norm": False}
    h[0] += (ONSET - (h[0] @ p.vector[0]).mean()) * p.vector[0]
    other = h.clone()
    other[1:] = other[1:] * 100 + 5
    assert torch.equal(steer(h, p, **flags).hidden[0], h[0])
    assert torch.equal(steer(other, p, **flags).hidden[0], h[0])
    h[0, -1] -= 40 * p.vector[0]  # one unsafe token: all that are below the target are pushed
    # a row that is off is not spoilt by a guard beside it
    p.amount[1], p.onset[1], h[1, 0, 0] = 0, torch.inf, torch.nan
    assert torch.equal(steer(h, p, **flags).hidden[1].isnan(), h[1].isnan())
    below = (h[0] @ p.vector[0]) < p.target[0]
    moved = (steer(h, p, **flags).hidden[0] != h[0]).any(dim=1)
    assert below[:-1].any()
    assert torch.equal(moved, below)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_amount_zero_is_bit_identical_beside_steered_rows(dtype: torch.dtype) -> None:
    p = push("add", "token")
    p.amount[1] = 0
    h = hidden(dtype)
    h[1, 0, 0] = -0.0
    result = steer(h, p, token_norm=True, channel_norm=True)
    assert torch.equal(result.hidden[1].view(torch.int16), h[1].view(torch.int16))
    assert result.hidden.dtype == dtype
    assert not torch.equal(result.hidden[0], h[0])
    assert result.displacement[1] == 0


@pytest.mark.parametrize("norm", ["token", "channel", "none"])
def test_a_row_does_not_depend_on_the_rows_beside_it(norm: str) -> None:
    h, p = hidden(), push("add", norm)
    other = h.clone()
    other[1:] = other[1:] * 100 + 5
    flags = {"token_norm": norm == "token", "channel_norm": norm == "channel"}
    assert torch.allclose(steer(h, p, **flags).hidden[0], steer(other, p, **flags).hidden[0], atol=1e-6)


def test_the_output_of_a_non_contiguous_block_is_taken() -> None:
    h = hidden().transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.allclose(
        steer(h, push("add", "none"), token_norm=False, channel_norm=False).hidden,
        steer(hidden(), push("add", "none"), token_norm=False, channel_norm=False).hidden,
    )


@pytest.mark.parametrize(("operation", "guard"), WAYS)
@pytest.mark.parametrize("norm", ["token", "channel", "none"])
def test_spans_of_tokens_change_nothing(
    operation: str, guard: tuple[float, float] | None, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    h, p = hidden(), push(operation, norm, guard=guard)
    p.amount[2] = 0
    flags = {"token_norm": norm == "token", "channel_norm": norm == "channel"}
    whole = steer(h, p, **flags)
    monkeypatch.setattr(operator, "SPAN", 6 * R * D + 1)  # the last span is shorter
    for one, other in zip(whole, steer(h, p, **flags), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("norm", ["token", "channel"])
def test_a_push_of_many_times_the_norm_keeps_it_and_one_that_cancels_the_state_stays_finite(norm: str) -> None:
    h, p = hidden(), push("add", norm, amount=1e3)
    h[1] = -1e3 * p.vector[1] + 1e-2 * h[1]  # what is left after the push is a hundred-thousandth of what there was
    found = steer(h, p, token_norm=norm == "token", channel_norm=norm == "channel").hidden
    dim = 2 if norm == "token" else 1
    assert found.isfinite().all()
    assert torch.allclose(found[::2].norm(dim=dim), h[::2].norm(dim=dim), rtol=1e-3)


@pytest.mark.parametrize("norm", ["token", "channel", "none"])
def test_where_no_row_is_off_saying_so_changes_nothing(norm: str) -> None:
    h, p = hidden(), push("add", norm)
    flags = {"token_norm": norm == "token", "channel_norm": norm == "channel"}
    for one, other in zip(steer(h, p, **flags), steer(h, p, **flags, all_rows=True), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("operation", ["add", "setpoint"])
@pytest.mark.parametrize("norm", ["token", "channel", "none"])
def test_where_all_rows_follow_one_operation_saying_so_changes_nothing(operation: str, norm: str) -> None:
    h, p = hidden(), push(operation, norm)
    flags = {"token_norm": norm == "token", "channel_norm": norm == "channel"}
    only = {"adds": operation == "add", "setpoints": operation == "setpoint"}
    for one, other in zip(steer(h, p, **flags), steer(h, p, **flags, **only), strict=True):
        assert torch.equal(one, other)
