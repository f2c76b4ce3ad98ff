"""The push once more: in float64, from the direction file alone, written independently of the operator that is checked by it."""

import torch
from torch import Tensor

from reins_serve.steering.direction import Direction

# Largest deviation of a pushed hidden state, relative to the largest hidden value: rounding of the output's own dtype.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def expected(h: Tensor, direction: Direction, at: int, strength: float) -> Tensor:
    """The formula of `method.md` for one row `[S, D]` in float64, at the block `meta.blocks[at]`."""
    d = direction.vectors[at].double().to(h.device)
    length: float | Tensor = strength * direction.unit(at)
    if direction.operation == "setpoint":
        statistics = direction.meta.statistics[at]
        projection, gap, guard = h @ d, statistics.safe_mean - statistics.unsafe_mean, direction.meta.guard
        if guard is not None and direction.meta.blocks[at] in guard.blocks:
            target = statistics.safe_mean
            short = (statistics.safe_mean - projection.mean()) / gap
            length = length * (short / guard.shortfall - 1).clamp(0, 1)
        else:
            target = statistics.safe_mean - direction.meta.margin * gap
        push = torch.outer(length * torch.relu(target - projection), d)
    else:
        push = (length * d).expand_as(h)
    dim = {"token": 1, "channel": 0}.get(direction.meta.norm)
    moved = h + push
    return moved if dim is None else moved * (h.norm(dim=dim, keepdim=True) / moved.norm(dim=dim, keepdim=True))


def deviation(found: Tensor, wanted: Tensor) -> float:
    """How far a pushed hidden state is from the expected one, relative to the largest expected value."""
    return ((found.double() - wanted).abs().max() / wanted.abs().max()).item()
