"""The diffusers `ModelHook` that pushes the video tokens at one block, and the state that the hooks of one denoiser share.

Registered once, after loading and before caches, compilation and offload; never added or removed per request. What a call
does follows from `SteeringState`, which the host sets between denoising steps and between guidance branches:

1. No generation is open: the call raises. An attached pipeline makes no clip behind the middleware's back.
2. Nothing is due at this step and branch: the output is returned untouched.
3. Otherwise each row is pushed by its own direction and counted on the device. No value is read back in the loop.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reins_serve.errors import SteeringUnavailable
from reins_serve.models.spec import Pipeline, path_of
from reins_serve.steering.blocks import VideoHook, add_hooks
from reins_serve.steering.calls import BATCHED, COND, UNCOND, Calls
from reins_serve.steering.operator import Pushed, RowPush, steer
from reins_serve.steering.plan import RowPlan

HOOK_NAME = "reins_steering"


class Rows(NamedTuple):
    """The rows of one call at one block: the push, and what its figures add to the tally. All tensors `[R]`, `[R, D]` or `[R, 4]`.

    Attributes:
        scale, shift: What turns the figures of a push into an entry: one push, the displacement, the score, the moved share.
            The push itself enters with 0, so that one that is not a number spoils the count, and the proof with it.
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
        """What a push adds to the tally, `[R, 4]`: zeros for rows that are off."""
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
        tally: float64 `[B, 4]`, per prompt: pushes, and sums over them of displacement, score and moved share. None while
            no generation is open.
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


def rows_at(block: int, plans: Sequence[RowPlan], open_rows: Sequence[bool], device: torch.device) -> dict[str, Rows]:
    """The rows of a block by kind of call, for the rows whose window is open; kinds in which nothing is pushed are left out."""
    columns: dict[str, list[float]] = {
        n: [] for n in ("amount", "target", "setpoint", "token", "channel", "unsafe", "gap")
    }
    both, vectors = [], []
    width = next(p.direction.meta.base.width for p in plans if p.direction is not None)
    for plan, is_open in zip(plans, open_rows, strict=True):
        direction = plan.direction
        if direction is None or not is_open or block not in direction.blocks:
            values, vector = (0.0,) * len(columns), torch.zeros(width)
            both.append(False)
        else:
            at = direction.blocks.index(block)
            statistics, meta = direction.meta.statistics[at], direction.meta
            values = (
                plan.row.strength * direction.unit(at),
                statistics.safe_mean,
                float(meta.operation == "setpoint"),
                float(meta.norm == "token"),
                float(meta.norm == "channel"),
                statistics.unsafe_mean,
                1 / statistics.gap if statistics.gap else 0.0,
            )
            vector = direction.vectors[at]
            both.append(meta.branches == "both")
        vectors.append(vector)
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    if not any(columns["amount"]):
        return {}
    c = {name: torch.tensor(column, dtype=torch.float32, device=device) for name, column in columns.items()}
    vector = torch.stack(vectors).to(device)
    each = (c["amount"] != 0).float()
    scale = torch.stack([0 * each, each, each * c["gap"], each], dim=1)
    shift = torch.stack([each, 0 * each, -each * c["gap"] * c["unsafe"], 0 * each], dim=1)
    steered = [index for index, amount in enumerate(columns["amount"]) if amount]
    operations = {
        "token_norm": any(columns["token"]),
        "channel_norm": any(columns["channel"]),
        "adds": any(not columns["setpoint"][index] for index in steered),
        "setpoints": any(columns["setpoint"][index] for index in steered),
    }
    every = len(steered) == len(plans)
    every_branch = every and all(both)

    def rows(amount: Tensor, times: int, all_rows: bool) -> Rows:
        r = {name: column.repeat(times) for name, column in c.items()}
        push = RowPush(
            vector.repeat(times, 1), amount, r["target"], r["setpoint"] > 0, r["token"] > 0, r["channel"] > 0
        )
        return Rows(push, scale.repeat(times, 1), shift.repeat(times, 1), operations | {"all_rows": all_rows})

    unconditional = c["amount"] * torch.tensor(both, device=device)
    layouts = {
        COND: rows(c["amount"], 1, every),
        BATCHED: rows(torch.cat([unconditional, c["amount"]]), 2, every_branch),
    }
    if any(both):
        layouts[UNCOND] = rows(unconditional, 1, every_branch)
    return layouts
