"""The push, as pure functions of tensors: `h' = N(h + a d)`, row by row, in float32, in the input's dtype again at the end.

Nothing here reduces over the batch axis: what happens to one row does not depend on the others.

A block's output is larger than any cache, and every pass over it costs what a copy does. Therefore the tokens are taken in spans
that fit, and all that is needed is done with one before the next. No norm is taken of pushed states: with d of unit length,
`|h + a d|^2 = (|h|^2 - (h·d)^2) + (h·d + a)^2`, what lies across d and what lies along it, both known before the push.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-12
# Elements of a span. 2 MiB of float32 stay in a processor's cache; on an accelerator, where a kernel's launch is dear, a span
# only bounds the memory beside the activation.
SPAN, SPAN_ON_ACCELERATOR = 2**19, 2**26

LengthOf = Callable[[Tensor], Tensor]
"""From the projections `[R, s, 1]` of some tokens to how far each is pushed along d, alike."""


class RowPush(NamedTuple):
    """What one block does to each of R rows; all float32 unless said otherwise.

    Attributes:
        vector: `[R, D]` unit directions; zeros for rows that are off.
        amount: `[R]`: the length `a` of an addition, the factor `beta` of a set-point, 0 for rows that are off.
        target: `[R]`: the set-point m, in the hidden states' scale.
        onset, ramp: `[R]`: below which mean projection over its tokens a row is pushed, and how much further below in full. An
            infinite onset is no condition.
        setpoint: bool `[R]`: set-point rows; the others add.
        token_norm, channel_norm: bool `[R]`: which norm rule a row follows.
    """

    vector: Tensor
    amount: Tensor
    target: Tensor
    onset: Tensor
    ramp: Tensor
    setpoint: Tensor
    token_norm: Tensor
    channel_norm: Tensor

    def spread(self, copies: int) -> "RowPush":
        """The same push for `copies` consecutive rows of each row: `[R, ...]` becomes `[R * copies, ...]`."""
        return RowPush(*(column.repeat_interleave(copies, dim=0) for column in self))


class Pushed(NamedTuple):
    """Result of `steer`.

    Attributes:
        hidden: `[R, S, D]` in the input's dtype; rows with amount 0 are the input's, bit for bit.
        figures: `[R, 5]`, means over the tokens: the projection before the push, the movement along d, the projection again,
            whether the push is not zero; and whether a guard found the row below its onset. They stay together, because on so
            few numbers every operation costs the same; the first column becomes the count of pushes, which a state that is not
            a number shall spoil.
    """

    hidden: Tensor
    figures: Tensor

    @property
    def displacement(self) -> Tensor:
        """`[R]` mean of `(h' - h)·d` over the tokens."""
        return self.figures[:, 1]

    @property
    def projection(self) -> Tensor:
        """`[R]` mean of `h·d` over the tokens, before the push."""
        return self.figures[:, 2]

    @property
    def moved(self) -> Tensor:
        """`[R]` share of the tokens whose push is not zero."""
        return self.figures[:, 3]


class _Span(NamedTuple):
    """Pushed states `[R, s, D]` of some tokens, and the figures of each `[R, s, 4]`."""

    hidden: Tensor
    figures: Tensor


def steer(
    hidden: Tensor,
    push: RowPush,
    *,
    token_norm: bool,
    channel_norm: bool,
    all_rows: bool = False,
    adds: bool = True,
    setpoints: bool = True,
    guards: bool = True,
    shards: "dist.ProcessGroup | None" = None,
) -> Pushed:
    """Push every row of `hidden` `[R, S, D]` along its own direction.

    `add`: `h' = N(h + a d)`, the paper's. `setpoint`: `h' = N(h + beta max(0, m - h·d) d)` per token; a token that is safe
    already is not touched. A guard multiplies its row's push by `min(1, max(0, (onset - mean of h·d over the row) / ramp))`,
    which takes another pass over the states: a clip that is safe as a whole is not touched. `N` keeps each token's L2 norm over
    the channels (`token`), each channel's L2 norm over the tokens of its row (`channel`), or nothing (`none`).

    Args:
        token_norm, channel_norm: Whether any row follows that rule; False saves the work.
        all_rows: Whether no row is off, so that none has to be kept as it is.
        adds, setpoints: Whether any row adds, or follows a set-point; False for one of them saves the choice.
        guards: Whether any row has a condition; False saves the pass.
        shards: The processes that hold the other tokens of the same rows, under context parallelism. The channel rule then
            sums its squares over all of them, and a guard its projections; the figures beside the hidden states remain those
            of this shard.
    """
    tokens = _tokens_of_a_span(hidden)
    if guards:
        mean = _mean_projection(hidden.split(tokens, dim=1), push, shards)
        share = ((push.onset - mean) / push.ramp).clamp(0, 1)
        is_guard = push.onset.isfinite()
        push = push._replace(amount=torch.where(is_guard, push.amount * share, push.amount))
        all_rows = False  # a row that a guard lets pass is off
    length = partial(_length, push, adds, setpoints)
    scale = _channel_scale(hidden.split(tokens, dim=1), push, length, shards) if channel_norm else None
    if tokens == hidden.shape[1]:
        steered, figures = _span(hidden, push, length, token_norm, scale, all_rows)
    else:
        steered, found = torch.empty_like(hidden), []
        # float32 is written where it belongs; other types are rounded there, and autograd knows no `out`
        in_place = hidden.dtype == torch.float32 and not torch.is_grad_enabled()
        for before, after in zip(hidden.split(tokens, dim=1), steered.split(tokens, dim=1), strict=True):
            span = _span(before, push, length, token_norm, scale, all_rows, after if in_place else None)
            if not in_place:
                after.copy_(span.hidden)
            found.append(span.figures)
        figures = torch.cat(found, dim=1)
    figures = figures.mean(dim=1)
    if guards:
        return Pushed(steered, torch.cat([figures, (is_guard & (share > 0))[:, None]], dim=1))
    return Pushed(steered, F.pad(figures, (0, 1)))


def _tokens_of_a_span(hidden: Tensor) -> int:
    """All of them where they fit, and under compilation, which makes one kernel of the passes itself."""
    rows, tokens, width = hidden.shape
    if hidden.numel() <= SPAN or torch.compiler.is_compiling():
        return tokens
    elements = SPAN if hidden.device.type == "cpu" else SPAN_ON_ACCELERATOR
    return min(tokens, max(1, elements // (rows * width)))


def _along(h: Tensor, vector: Tensor) -> Tensor:
    """`h·d` `[R, s, 1]`. A processor does a batch of matrices by vectors one after the other, five times as slowly."""
    if h.device.type == "cpu" and len(h) > 1:
        return torch.linalg.vecdot(h, vector.unsqueeze(1)).unsqueeze(2)
    return torch.bmm(h, vector.unsqueeze(2))


def _mean_projection(spans: Sequence[Tensor], push: RowPush, shards: "dist.ProcessGroup | None") -> Tensor:
    """Mean of `h·d` over each row's tokens, `[R]`, those of every shard."""
    sums = torch.stack([_along(span.float(), push.vector).sum(dim=(1, 2)) for span in spans]).sum(dim=0)
    sums = torch.cat([sums, sums.new_tensor([sum(span.shape[1] for span in spans)])])  # the last one: how many tokens
    if shards is not None:
        dist.all_reduce(sums, group=shards)
    return sums[:-1] / sums[-1]


def _length(push: RowPush, adds: bool, setpoints: bool, projection: Tensor) -> Tensor:
    """How far each token `[R, s, 1]` is pushed along d."""
    amount = push.amount.view(-1, 1, 1)
    if not setpoints:
        return amount.expand_as(projection)
    deficit = amount * (push.target.view(-1, 1, 1) - projection).clamp_min(0)
    return torch.where(push.setpoint.view(-1, 1, 1), deficit, amount) if adds else deficit


def _span(
    hidden: Tensor,
    push: RowPush,
    length_of: LengthOf,
    token_norm: bool,
    channel_scale: Tensor | None,
    all_rows: bool,
    out: Tensor | None = None,
) -> _Span:
    """Push some tokens, of which nothing depends on the others but through the channels' scale `[R, 1, D]`.

    Args:
        out: Where the result is written, for float32; None: a new tensor.
    """
    h = hidden.float()
    projection = _along(h, push.vector)
    length = length_of(projection)
    steered = torch.addcmul(h, length, push.vector.unsqueeze(1), out=out)
    moved_by = length
    if token_norm:
        square = torch.linalg.vector_norm(h, dim=2, keepdim=True).square()
        along = projection + length
        scale = _scale(square, square - projection.square(), along.square())
        scale = torch.where(push.token_norm.view(-1, 1, 1) & (length != 0), scale, 1)
        steered *= scale
        moved_by = along * scale - projection
    if channel_scale is not None:
        steered *= channel_scale
        moved_by = _along(steered, push.vector) - projection
    steered = steered.to(hidden.dtype)
    if not all_rows:
        active = (push.amount != 0).view(-1, 1, 1)
        steered = torch.where(active, steered, hidden, out=out)
        moved_by = torch.where(active, moved_by, 0)
    return _Span(steered, torch.cat([projection, moved_by, projection, length != 0], dim=2))


def _channel_scale(
    spans: Sequence[Tensor], push: RowPush, length_of: LengthOf, shards: "dist.ProcessGroup | None"
) -> Tensor:
    """What keeps each channel's norm `[R, 1, D]`; 1 for rows of other rules. Here `d` is the vector of pushes, over the tokens."""
    rows, width = push.vector.shape
    sums = push.vector.new_zeros(3, rows, 1, width)  # squares; products with the pushes; squares of the pushes
    for span in spans:
        h = span.float()
        length = length_of(_along(h, push.vector))
        sums[0] += h.square().sum(dim=1, keepdim=True)
        sums[1] += torch.bmm(length.mT, h)
        sums[2] += length.square().sum(dim=1, keepdim=True)
    if shards is not None:
        dist.all_reduce(sums, group=shards)
    squares, products, pushes = sums
    along = products / pushes.clamp_min(EPSILON**2)
    across = squares - along.square() * pushes
    scale = _scale(squares, across, (along + push.vector.unsqueeze(1)).square() * pushes)
    return torch.where(push.channel_norm.view(-1, 1, 1), scale, 1)


def _scale(before: Tensor, across: Tensor, along: Tensor) -> Tensor:
    """The factor that gives back its norm to what was pushed, from squared norms: before, across the push, along it after."""
    return (before / (across.clamp_min(0) + along).clamp_min(EPSILON**2)).sqrt()
