"""The diffusers `ModelHook` that pushes the video tokens at one block, and the state that the hooks of one denoiser share.

Registered once, after loading and before caches, compilation and offload; never added or removed per request. What a call
does follows from `SteeringState`, which the host sets between denoising steps and between guidance branches:

1. No generation is open: the call raises. An attached pipeline makes no clip behind the middleware's back.
2. Nothing is due at this step and branch: the output is returned untouched.
3. Otherwise each row is pushed by its own direction and counted on the device. No value is read back in the loop.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers.hooks import ModelHook
from torch import Tensor

from reins_serve.errors import SteeringUnavailable
from reins_serve.models.spec import Denoiser, Guidance, spec_of
from reins_serve.steering.blocks import add_hooks
from reins_serve.steering.calls import BATCHED, COND, UNCOND, BranchListener, Calls
from reins_serve.steering.operator import RowPush, steer
from reins_serve.steering.plan import RowPlan

HOOK_NAME = "reins_steering"


class Rows(NamedTuple):
    """The rows of one call at one block: the push, and what turns a projection into a score. All tensors `[R]` or `[R, D]`."""

    push: RowPush
    unsafe_mean: Tensor
    inverse_gap: Tensor
    token_norm: bool
    channel_norm: bool


class SteeringState:
    """What the hooks of one denoiser share: the calls' layout, the device's tally, and whether a generation is open."""

    def __init__(self, guidance: Guidance) -> None:
        self.calls = Calls(guidance)
        self.tally: Tensor | None = None  # float64 [B, 4]: pushes, and sums of displacement, score, moved share


class SteeringHook(ModelHook):
    """Pushes the video tokens in one block's output. `rows` is replaced by the host whenever the window opens or closes."""

    _is_stateful = True  # so that the pipeline's cache_context reaches the listener

    def __init__(self, state: SteeringState, block: int, video: int | None) -> None:
        super().__init__()
        self.state = state
        self.block = block
        self.video = video
        self.listener = BranchListener(state.calls)
        self.rows: dict[str, Rows] = {}

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        """Nothing is kept between calls that a cache reset would have to clear."""
        return module

    def post_forward(self, module: torch.nn.Module, output: object) -> object:
        state = self.state
        if state.tally is None:
            raise SteeringUnavailable(
                "This pipeline is steered: call it inside `with steering.generation() as g:` and pass it **g.arguments."
            )
        hidden: Tensor = output if self.video is None else output[self.video]  # type: ignore[assignment, index]
        rows = self.rows.get(state.calls.layout(hidden.shape[0]))
        if rows is None:
            return output
        pushed = steer(hidden, rows.push, token_norm=rows.token_norm, channel_norm=rows.channel_norm)
        active = (rows.push.amount != 0).double()
        score = (pushed.projection - rows.unsafe_mean) * rows.inverse_gap
        counted = (
            torch.stack([torch.ones_like(active), pushed.displacement, score, pushed.moved], dim=1) * active[:, None]
        )
        state.tally += counted.reshape(-1, *state.tally.shape).sum(0)
        if self.video is None:
            return pushed.hidden
        return (*output[: self.video], pushed.hidden, *output[self.video + 1 :])  # type: ignore[index]


def register(denoiser: Denoiser, blocks: Sequence[int], state: SteeringState) -> list[SteeringHook]:
    """Register one hook at each of the numbered blocks (0 is the first) and return them."""
    video = spec_of(denoiser).video
    hooks = {block: SteeringHook(state, block, video) for block in blocks}
    add_hooks(denoiser, hooks, HOOK_NAME)
    return list(hooks.values())


def rows_at(block: int, plans: Sequence[RowPlan], open_rows: Sequence[bool], device: torch.device) -> dict[str, Rows]:
    """The rows of a block by layout, for the rows whose window is open; layouts in which nothing is pushed are left out."""
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
    norms = {"token_norm": any(columns["token"]), "channel_norm": any(columns["channel"])}

    def rows(amount: Tensor, times: int) -> Rows:
        r = {name: column.repeat(times) for name, column in c.items()}
        push = RowPush(
            vector.repeat(times, 1), amount, r["target"], r["setpoint"] > 0, r["token"] > 0, r["channel"] > 0
        )
        return Rows(push, r["unsafe"], r["gap"], **norms)

    unconditional = c["amount"] * torch.tensor(both, device=device)
    layouts = {COND: rows(c["amount"], 1), BATCHED: rows(torch.cat([unconditional, c["amount"]]), 2)}
    if any(both):
        layouts[UNCOND] = rows(unconditional, 1)
    return layouts
