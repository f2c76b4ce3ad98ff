"""The dry run: before a direction is taken up by a pipeline that serves, its push is tried on random hidden states.

The start-up proof saw other directions. A file can be valid and still be none that this pipeline can carry out: a strength that
overflows the hidden states' dtype makes black clips, one that vanishes in it steers nothing, and the counter would call both
steered. The dry run finds that in milliseconds, on the pipeline's device and in its dtype, with tensors of its own: neither the
pipeline nor a generation that is running notices.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from reins_serve.errors import DirectionError
from reins_serve.models.spec import Pipeline, denoisers_of
from reins_serve.steering.branches import COND
from reins_serve.steering.direction import Direction
from reins_serve.steering.formula import TOLERANCE, deviation, expected
from reins_serve.steering.hook import rows_at
from reins_serve.steering.plan import RowPlan
from reins_serve.steering.policy import LIVE, SteeringRow

TOKENS = 8
LOST = 0.9  # share of a push that rounding may take: in bfloat16 it takes 0.8 of one of 0.1 % of a token's norm, 0.16 of one of 1 %


def dry_run(direction: Direction, pipeline: Pipeline, place: tuple[torch.device, torch.dtype] | None = None) -> None:
    """Push random hidden states at each of a direction's blocks, with its serving and its greatest strength.

    Args:
        place: Device and dtype of the hidden states; None: those of the pipeline, which takes milliseconds to find out.

    Raises:
        DirectionError: the result is not finite, is not what the formula predicts, or hardly nearer to that than without a push.
    """
    device, dtype = place or (pipeline._execution_device, next(iter(denoisers_of(pipeline).values())).dtype)
    with _aside(device):
        for at, block in enumerate(direction.blocks):
            _try(
                direction, at, block, _hidden(direction, at).to(device, dtype if dtype in TOLERANCE else torch.float32)
            )


def _try(direction: Direction, at: int, block: int, hidden: Tensor) -> None:
    """One block, with hidden states `[S, D]` for each of the two strengths."""
    strengths = (direction.serving_strength, direction.max_strength)
    plans = [RowPlan(SteeringRow(LIVE, strength), direction) for strength in strengths]
    rows = rows_at(block, plans, [True, True], hidden.device).get(COND)
    both = hidden.expand(2, -1, -1)
    if rows is not None:
        both = rows.steer(both).hidden
    for strength, pushed in zip(strengths, both, strict=True):
        tried = f"Tried before it serves, {direction.name} does not steer at block {block} with strength {strength:g}:"
        if not torch.isfinite(pushed).all():
            raise DirectionError(
                f"{tried} it makes hidden states that are not finite in {hidden.dtype}, because its strength or its statistics "
                "are too large for this model. Refit it."
            )
        wanted = expected(hidden.double(), direction, at, strength)
        error = deviation(pushed, wanted)
        if not error <= TOLERANCE[hidden.dtype]:
            raise DirectionError(
                f"{tried} the hidden states are {error:.2g} (relative) away from what its file says. Look whether the device is "
                "sound, then publish it again."
            )
        if not (pushed.double() - wanted).norm() < LOST * (hidden.double() - wanted).norm():
            raise DirectionError(
                f"{tried} its push is lost in the rounding of {hidden.dtype}, because it is too small. Refit it."
            )


def _hidden(direction: Direction, at: int) -> Tensor:
    """Tokens `[S, D]` of the usual norm, whose projections lie below and above the target alike, or at a guard the unsafe mean."""
    statistics, d = direction.meta.statistics[at], direction.vectors[at]
    random = torch.randn(TOKENS, len(d), generator=torch.Generator().manual_seed(0))
    h = statistics.ref_norm * torch.nn.functional.normalize(random, dim=1)
    middle = direction.target(at) if direction.guard(at) is None else statistics.unsafe_mean
    wanted = middle + statistics.ref_norm * torch.linspace(-1, 1, TOKENS)
    return h + torch.outer(wanted - h @ d, d)


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """On a GPU, a stream of one's own: not behind the kernels of the generation that is running."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.stream(torch.cuda.Stream(device)):
        yield
