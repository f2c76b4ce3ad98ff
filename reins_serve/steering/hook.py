"""The diffusers `ModelHook` that pushes the video tokens at one block, and the state that the hooks of one denoiser share.

Registered once, after loading and before caches, compilation and offload; never added or removed per request. What a call
does follows from `SteeringState`, which the host sets between denoising steps and between guidance branches:

1. No generation is open: the call raises. An attached pipeline makes no clip behind the middleware's back.
2. Nothing is due at this step and branch: the output is returned untouched.
3. Otherwise each row is pushed by its own direction and counted on the device. No value is read back in the loop.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reins_serve.errors import SteeringUnavailable
from reins_serve.models.spec import Pipeline, path_of
from reins_serve.steering.blocks import VideoHook, add_hooks
from reins_serve.steering.branches import BATCHED, COND, UNCOND
from reins_serve.steering.calls import Calls
from reins_serve.steering.direction import Direction
from reins_serve.steering.operator import Pushed, RowPush, steer
from reins_serve.steering.plan import COLUMNS, RowPlan

HOOK_NAME = "reins_steering"


class Rows(NamedTuple):
    """The rows of one call at one block: the push, and what its figures add to the tally. All tensors `[R]`, `[R, D]` or `[R, 5]`.

    Attributes:
        scale, shift: What turns the figures of a push into an entry: one push, the displacement, the score, the moved share,
            whether a guard acted. A projection enters the count with 0, so that one that is not a number spoils it, and the
            proof with it.
        operations: The operator's flags: what the host knows of the rows, and the operator need not find out.
    """

    push: RowPush
    scale: Tensor
    shift: Tensor
    operations: dict[str, bool]

    def steer(self, hidden: Tensor, shards: Any = None) -> Pushed:
        """Push `hidden` `[R, S, D]`."""
        return steer(hidden, self.push, **self.operations, shards=shards)

    def entry(self, pushed: Pushed) -> Tensor:
        """What a push adds to the tally, `[R, 5]`: zeros for rows that are off."""
        entry = torch.addcmul(self.shift, pushed.figures, self.scale)
        return entry if self.operations["all_rows"] else torch.where(self.push.amount[:, None] != 0, entry, 0)

    def spread(self, copies: int) -> "Rows":
        """The same for `copies` consecutive rows of each row."""
        scale, shift = (column.repeat_interleave(copies, dim=0) for column in (self.scale, self.shift))
        return self._replace(push=self.push.spread(copies), scale=scale, shift=shift)

    def to(self, device: torch.device) -> "Rows":
        """The same on another device."""
        push = RowPush(*(column.to(device) for column in self.push))
        return self._replace(push=push, scale=self.scale.to(device), shift=self.shift.to(device))


class SteeringState:
    """What the hooks of one pipeline share while a generation is open.

    Attributes:
        tally: float64 `[B, COLUMNS]`, per prompt: pushes, sums over them of displacement, score and moved share, and those in
            which a guard acted. None while no generation is open.
        cached: Whether a step cache may answer for a block; then hooks note what each call of theirs was computed with.
        shards: The processes that share the tokens under context parallelism.
        place: Device and dtype of the hidden states that were pushed last. To ask diffusers where a pipeline runs takes
            milliseconds, more with every module, and three times in a generation that was most of what steering cost.
    """

    def __init__(self) -> None:
        self.place: tuple[torch.device, torch.dtype] | None = None
        self.tally: Tensor | None = None
        self.cached = False
        self.shards: Any = None


class SteeringHook(VideoHook):
    """Pushes the video tokens in one block's output. `rows` is replaced by the host whenever the window opens or closes.

    Attributes:
        calls, denoiser: The calls of the block's denoiser, and its attribute in the pipeline.
        block: The block's number on the path.
        rows: What is due, by kind of call; kinds in which nothing is pushed are absent.
        computed: Under a step cache, by the call's name: the rows with which the block was computed in this step.
    """

    def __init__(self, state: SteeringState, calls: Calls, denoiser: str, block: int) -> None:
        super().__init__(calls.spec)
        self.state = state
        self.calls = calls
        self.denoiser = denoiser
        self.block = block
        self.rows: dict[str, Rows] = {}
        self.computed: dict[str, Rows | None] = {}

    def post_forward(self, module: torch.nn.Module, output: object) -> object:
        state = self.state
        if state.tally is None:
            raise SteeringUnavailable(
                "This pipeline is steered: call it inside `with steering.generation() as g:` and pass it **g.arguments."
            )
        if not self.rows and not state.cached:
            return output
        hidden = self.video(output)
        kind, copies = self.calls.layout(hidden.shape[0])
        rows = self.rows.get(kind)
        if rows is not None:
            state.place = (hidden.device, hidden.dtype)
            if rows.push.vector.device != hidden.device:  # the pipeline has moved
                self.rows = {name: one.to(hidden.device) for name, one in self.rows.items()}
                rows = self.rows[kind]
        if state.cached:
            self.computed[self.calls.name] = rows
        if rows is None:
            return output
        if copies > 1:
            rows = rows.spread(copies)
        pushed = rows.steer(hidden, state.shards)
        entry = rows.entry(pushed)
        prompts, columns = state.tally.shape
        if len(entry) != prompts:
            entry = entry.view(-1, prompts, copies, columns).mean(2).sum(0)
        if state.tally.device != hidden.device:
            state.tally = state.tally.to(hidden.device)
        state.tally += entry
        return self.replaced(output, pushed.hidden)


def register(
    pipeline: Pipeline, blocks: Sequence[int], state: SteeringState, calls: dict[str, Calls]
) -> list[SteeringHook]:
    """Register one hook at each of the numbered blocks (0 is the first) and return them."""
    path = path_of(pipeline)
    hooks = {block: SteeringHook(state, calls[path[block][0]], path[block][0], block) for block in blocks}
    add_hooks(pipeline, hooks, HOOK_NAME)
    return list(hooks.values())


class _Column(NamedTuple):
    """What one row is pushed by, as numbers that travel to the device together."""

    amount: float = 0.0
    target: float = 0.0
    onset: float = math.inf
    ramp: float = 1.0
    setpoint: bool = False
    token_norm: bool = False
    channel_norm: bool = False
    unsafe_mean: float = 0.0
    inverse_gap: float = 0.0
    both: bool = False

    @classmethod
    def of(cls, plan: RowPlan, direction: Direction, block: int) -> "_Column":
        at, meta = direction.blocks.index(block), direction.meta
        statistics, norm = meta.statistics[at], meta.norm
        onset, ramp = direction.condition(at)
        return cls(
            amount=plan.row.strength * direction.unit(at),
            target=direction.target(at),
            onset=onset,
            ramp=ramp,
            setpoint=meta.operation == "setpoint",
            token_norm=norm == "token",
            channel_norm=norm == "channel",
            unsafe_mean=statistics.unsafe_mean,
            inverse_gap=1 / statistics.gap if statistics.gap else 0.0,
            both=meta.branches == "both",
        )


def rows_at(
    block: int, plans: Sequence[RowPlan], open_rows: Sequence[bool], device: torch.device, batched: bool = False
) -> dict[str, Rows]:
    """The rows of a block by kind of call, for the rows whose window is open; kinds in which nothing is pushed are left out.

    Args:
        batched: Whether both guidance branches may come in one call.
    """
    due = [
        plan.direction if is_open and plan.direction is not None and block in plan.direction.blocks else None
        for plan, is_open in zip(plans, open_rows, strict=True)
    ]
    each = [_Column() if d is None else _Column.of(plan, d, block) for plan, d in zip(plans, due, strict=True)]
    if not any(column.amount for column in each):
        return {}
    off = torch.zeros(next(d.meta.base.width for d in due if d is not None))
    vectors = [off if d is None else d.vectors[d.blocks.index(block)] for d in due]
    conditional = _rows(each, vectors, device)
    unsteered = [column if column.both else column._replace(amount=0.0) for column in each]
    layouts = {COND: conditional}
    if any(column.both for column in each):
        layouts[UNCOND] = _rows(unsteered, vectors, device)
    if batched:
        layouts[BATCHED] = _rows([*unsteered, *each], [*vectors, *vectors], device)
    return layouts


def _rows(columns: Sequence[_Column], vectors: Sequence[Tensor], device: torch.device) -> Rows:
    """Rows from their columns and vectors `[D]`: all numbers in one tensor, which is one copy to the device."""
    numbers = torch.tensor(
        [
            (c.amount, c.target, c.onset, c.ramp, c.setpoint, c.token_norm, c.channel_norm,
             0.0, 1.0, c.inverse_gap, 1.0, 1.0, 1.0, 0.0, -c.inverse_gap * c.unsafe_mean, 0.0, 0.0)
            for c in columns
        ]
    ).to(device)  # fmt: skip
    amount, target, onset, ramp, setpoint, token, channel = numbers[:, :7].unbind(1)
    vector = torch.stack(list(vectors)).to(device)
    push = RowPush(vector, amount, target, onset, ramp, setpoint > 0, token > 0, channel > 0)
    steered = [c for c in columns if c.amount]
    operations = {
        "token_norm": any(c.token_norm for c in steered),
        "channel_norm": any(c.channel_norm for c in steered),
        "adds": not all(c.setpoint for c in steered),
        "setpoints": any(c.setpoint for c in steered),
        "guards": any(c.onset < math.inf for c in steered),
        "all_rows": len(steered) == len(columns),
    }
    return Rows(push, numbers[:, 7 : 7 + COLUMNS], numbers[:, 7 + COLUMNS :], operations)
