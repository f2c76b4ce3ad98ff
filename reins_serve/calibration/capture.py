"""Pooled activations of un-steered generations: per clip and block, the mean over the video tokens and the window's steps.

Only the conditional branch is read. Sums are kept in float32 on the device; nothing is read back inside the loop.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from reins_serve.errors import ReinsError
from reins_serve.models.spec import Pipeline, path_of
from reins_serve.steering.blocks import VideoHook, add_hooks, remove_hooks
from reins_serve.steering.branches import UNCOND
from reins_serve.steering.calls import PLAIN, Calls, watch
from reins_serve.steering.clock import StepClock
from reins_serve.steering.direction import Window

HOOK_NAME = "reins_capture"


class Activations(NamedTuple):
    """What was captured of B clips at L blocks.

    Attributes:
        pooled: float32 `[B, L, D]`.
        token_norm: float32 `[B, L]`: median L2 norm of a token, averaged over the window's steps.
    """

    pooled: np.ndarray
    token_norm: np.ndarray


class CaptureHook(VideoHook):
    """Adds one block's output to running sums while `open` says so."""

    def __init__(self, capture: "Capture", calls: Calls, place: int) -> None:
        super().__init__(calls.spec)
        self.capture = capture
        self.calls = calls
        self.place = place

    def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
        calls, hidden = self.calls, self.video(output)
        kind, copies = calls.layout(hidden.shape[0])
        if self.capture.open and kind != UNCOND and calls.name in PLAIN:
            # [branch][prompt][frame] rows; the conditional branch is the last.
            rows = hidden.reshape(-1, calls.prompts, copies * hidden.shape[1], hidden.shape[2])[-1]
            self.capture.add(self.place, rows.float())
        return output


class Capture:
    """Reads activations while a bare pipeline generates: `with Capture(pipeline, B, blocks) as c: pipeline(..., **c.arguments)`.

    Args:
        prompts: B, the rows of the call.
        blocks: Numbers of the blocks to read, in the order of the result's axis L.
        window: The share of the steps to read; the steering window of the direction that is to be fitted. Of two experts
            each is read in those steps of the window that it makes.
        clock: Whether it keeps a step clock of its own. A generation of an attached pipeline has one already: then call
            `ended` from its `on_step`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        prompts: int,
        blocks: Sequence[int],
        window: Window | None = None,
        *,
        clock: bool = True,
    ) -> None:
        self.pipeline = pipeline
        self.prompts = prompts
        self.blocks = tuple(blocks)
        self.window = window or Window()
        self.open = self.window.start == 0
        self._clock = StepClock(pipeline, self.ended) if clock else None
        self.arguments: dict[str, Any] = self._clock.arguments if self._clock is not None else {}
        self._calls: dict[str, Calls] = {}
        self._pooled: Tensor | None = None
        self._norm: Tensor | None = None
        self._added = [0] * len(self.blocks)

    def __enter__(self) -> "Capture":
        self._calls = watch(self.pipeline, HOOK_NAME)
        for calls in self._calls.values():
            calls.begin(prompts=self.prompts)
        path = path_of(self.pipeline)
        hooks = {
            block: CaptureHook(self, self._calls[path[block][0]], place) for place, block in enumerate(self.blocks)
        }
        add_hooks(self.pipeline, hooks, HOOK_NAME)
        if self._clock is not None:
            self._clock.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._clock is not None:
            self._clock.stop(completed=error is None)
        remove_hooks(self.pipeline, HOOK_NAME)

    def add(self, place: int, hidden: Tensor) -> None:
        """Add one call's conditional rows `[B, S, D]`, float32, to the sums of a place."""
        if self._pooled is None:
            shape = (hidden.shape[0], len(self.blocks), hidden.shape[2])
            self._pooled = torch.zeros(shape, device=hidden.device)
            self._norm = torch.zeros(shape[:2], device=hidden.device)
        assert self._norm is not None
        self._pooled[:, place] += hidden.mean(dim=1)
        self._norm[:, place] += hidden.norm(dim=2).median(dim=1).values
        self._added[place] += 1

    @property
    def activations(self) -> Activations:
        """The means. Raises ReinsError when a block was never read in the window."""
        unread = [block for block, added in zip(self.blocks, self._added, strict=True) if not added]
        if self._pooled is None or self._norm is None or unread:
            raise ReinsError(
                f"Nothing was captured at the blocks {unread}: call the pipeline once inside the block, with "
                "**capture.arguments, and with so many steps that each expert makes one in the window."
            )
        added = torch.tensor(self._added, dtype=torch.float32, device=self._norm.device)
        return Activations((self._pooled / added[:, None]).cpu().numpy(), (self._norm / added).cpu().numpy())

    def ended(self, step: int, total: int) -> None:
        """A step is over: decide whether the next one is read."""
        self.open = (step + 1) % total in self.window.steps(total)
        for calls in self._calls.values():
            calls.begin()
