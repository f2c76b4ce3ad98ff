"""The push, as pure functions of tensors: `h' = N(h + a d)`, row by row, in float32, in the input's dtype again at the end.

Nothing here reduces over the batch axis: what happens to one row does not depend on the others.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

EPSILON = 1e-12


class RowPush(NamedTuple):
    """What one block does to each of R rows; all float32 unless said otherwise.

    Attributes:
        vector: `[R, D]` unit directions; zeros for rows that are off.
        amount: `[R]`: the length `a` of an addition, the factor `beta` of a set-point, 0 for rows that are off.
        target: `[R]`: the set-point m, in the hidden states' scale.
        setpoint: bool `[R]`: set-point rows; the others add.
        token_norm, channel_norm: bool `[R]`: which norm rule a row follows.
    """

    vector: Tensor
    amount: Tensor
    target: Tensor
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
        projection: `[R]` mean of `h·d` over the tokens, before the push.
        displacement: `[R]` mean of `(h' - h)·d` over the tokens.
        moved: `[R]` share of the tokens whose push is not zero.
    """

    hidden: Tensor
    projection: Tensor
    displacement: Tensor
    moved: Tensor


def steer(
    hidden: Tensor,
    push: RowPush,
    *,
    token_norm: bool,
    channel_norm: bool,
    shards: "dist.ProcessGroup | None" = None,
) -> Pushed:
    """Push every row of `hidden` `[R, S, D]` along its own direction.

    `add`: `h' = N(h + a d)`, the paper's. `setpoint`: `h' = N(h + beta max(0, m - h·d) d)` per token; a token that is safe
    already is not touched. `N` keeps each token's L2 norm over the channels (`token`), each channel's L2 norm over the
    tokens of its row (`channel`), or nothing (`none`).

    Args:
        token_norm, channel_norm: Whether any row follows that rule; False saves the work.
        shards: The processes that hold the other tokens of the same rows, under context parallelism. The channel rule then
            sums its squares over all of them; the figures beside the hidden states remain those of this shard.
    """
    h = hidden.float()
    vector = push.vector[:, :, None]
    projection = torch.bmm(h, vector)  # [R, S, 1]
    amount = push.amount[:, None, None]
    deficit = (push.target[:, None, None] - projection).clamp_min(0)
    length = torch.where(push.setpoint[:, None, None], amount * deficit, amount.expand_as(deficit))
    steered = torch.baddbmm(h, length, push.vector[:, None, :])
    if token_norm:
        scale = h.norm(dim=2, keepdim=True) / steered.norm(dim=2, keepdim=True).clamp_min(EPSILON)
        steered = torch.where(push.token_norm[:, None, None], steered * scale, steered)
    if channel_norm:
        before, after = _channel_norms(h, steered, shards)
        scale = before / after.clamp_min(EPSILON)
        steered = torch.where(push.channel_norm[:, None, None], steered * scale, steered)
    moved_by = torch.bmm(steered, vector) - projection if token_norm or channel_norm else length
    active = (push.amount != 0)[:, None, None]
    return Pushed(
        torch.where(active, steered.to(hidden.dtype), hidden),
        projection.mean(dim=(1, 2)),
        torch.where(active, moved_by, 0).mean(dim=(1, 2)),
        (length != 0).float().mean(dim=(1, 2)),
    )


def _channel_norms(before: Tensor, after: Tensor, shards: "dist.ProcessGroup | None") -> tuple[Tensor, Tensor]:
    """L2 norms `[R, 1, D]` over the tokens of `[R, S, D]`, those of all shards included."""
    if shards is None:
        return before.norm(dim=1, keepdim=True), after.norm(dim=1, keepdim=True)
    squares = torch.stack([before.square().sum(1, keepdim=True), after.square().sum(1, keepdim=True)])
    dist.all_reduce(squares, group=shards)
    both = squares.sqrt()
    return both[0], both[1]
