"""Pooled activations of un-steered generations: per clip and block, the mean over the video tokens and the window's steps.

Only the conditional branch is read. Sums are kept in float32 on the device; nothing is read back inside the loop.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.hooks import ModelHook
from torch import Tensor

from reins_serve.errors import ReinsError
from reins_serve.models.spec import Pipeline, spec_of
from reins_serve.steering.blocks import add_hooks, remove_hooks
from reins_serve.steering.calls import BATCHED, UNCOND, BranchListener, Calls
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


class CaptureHook(ModelHook):
    """Adds one block's output to running sums while `open` says so."""

    _is_stateful = True  # so that the pipeline's cache_context reaches the listener

    def __init__(self, capture: "Capture", place: int, video: int | None) -> None:
        super().__init__()
        self.capture = capture
        self.place = place
        self.video = video
        self.listener = BranchListener(capture.calls)

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        """Nothing is kept between calls that a cache reset would have to clear."""
        return module

    def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
        capture = self.capture
        if not capture.open:
            return output
        hidden: Tensor = output if self.video is None else output[self.video]
        layout = capture.calls.layout(hidden.shape[0])
        if layout == UNCOND:
            return output
        if layout == BATCHED:
            hidden = hidden[capture.calls.prompts :]
        capture.add(self.place, hidden.float())
        return output


class Capture:
    """Reads activations while a bare pipeline generates: `with Capture(pipeline, B, blocks) as c: pipeline(..., **c.arguments)`.

    Args:
        prompts: B, the rows of the call.
        blocks: Numbers of the blocks to read, in the order of the result's axis L.
        window: The share of the steps to read; the steering window of the direction that is to be fitted.
    """

    def __init__(self, pipeline: Pipeline, prompts: int, blocks: Sequence[int], window: Window | None = None) -> None:
        self.pipeline = pipeline
        self.blocks = tuple(blocks)
        self.window = window or Window()
        self.calls = Calls(spec_of(pipeline.transformer).guidance)
        self.calls.prompts = prompts
        self.open = self.window.start == 0
        self.arguments: dict[str, Any] = {"callback_on_step_end": self._step_end}
        self._pooled: Tensor | None = None
        self._norm: Tensor | None = None
        self._steps = 0

    def __enter__(self) -> "Capture":
        denoiser = self.pipeline.transformer
        video = spec_of(denoiser).video
        hooks = {block: CaptureHook(self, place, video) for place, block in enumerate(self.blocks)}
        add_hooks(denoiser, hooks, HOOK_NAME)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        remove_hooks(self.pipeline.transformer, HOOK_NAME)

    def add(self, place: int, hidden: Tensor) -> None:
        """Add one call's conditional rows `[B, S, D]`, float32, to the sums of a place."""
        if self._pooled is None:
            shape = (hidden.shape[0], len(self.blocks), hidden.shape[2])
            self._pooled = torch.zeros(shape, device=hidden.device)
            self._norm = torch.zeros(shape[:2], device=hidden.device)
        assert self._norm is not None
        self._pooled[:, place] += hidden.mean(dim=1)
        self._norm[:, place] += hidden.norm(dim=2).median(dim=1).values
        self._steps += place == 0

    @property
    def activations(self) -> Activations:
        """The means. Raises ReinsError when nothing was captured."""
        if self._pooled is None or self._norm is None:
            raise ReinsError("Nothing was captured: call the pipeline once inside the block, with **capture.arguments.")
        return Activations(*((t / self._steps).cpu().numpy() for t in (self._pooled, self._norm)))

    def _step_end(self, pipeline: Pipeline, step: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:
        self.open = step + 1 in self.window.steps(int(pipeline.num_timesteps))
        return kwargs
