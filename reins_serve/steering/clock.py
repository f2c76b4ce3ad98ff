"""The step clock: which denoising step a pipeline is in, told by the pipeline itself.

`callback_on_step_end` fires at the end of step i in 20 of the 21 pipelines that were tried; where a pipeline has none, its
guider's `set_state` says at the start of step i that step i - 1 is over. Forward calls, the scheduler and the timestep
argument are no clocks: guidance multiplies calls, some schedulers step twice, and timesteps have many shapes.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch

from reins_serve.errors import ReinsError, SteeringNotApplied
from reins_serve.models.spec import Pipeline, denoisers_of, spec_of

StepEnd = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


class StepClock:
    """Reports the end of every step of one pipeline call, in order.

    Args:
        ended: Called with (number of the step that ended, steps in all); what it raises stops the pipeline.
        callback: The caller's own `callback_on_step_end`, called before.

    Attributes:
        arguments: Pass them to the pipeline's call.
        chunked: Whether a denoiser of the pipeline makes a clip in chunks, each with all steps.
        done, total: Steps done and steps in all, of the current chunk; total is None until the first step has ended.
    """

    def __init__(self, pipeline: Pipeline, ended: Callable[[int, int], None], callback: StepEnd | None = None) -> None:
        self.done = 0
        self.total: int | None = None
        self.arguments: dict[str, Any] = {}
        self._ended = ended
        self._callback = callback
        self._guider: Any = None
        self.chunked = any(spec_of(denoiser).chunked for denoiser in denoisers_of(pipeline).values())
        if "callback_on_step_end" in inspect.signature(type(pipeline).__call__).parameters:
            self.arguments = {"callback_on_step_end": self._step_end}
        elif getattr(pipeline, "guider", None) is not None and callback is None:
            self._guider = pipeline.guider
        else:
            raise ReinsError(
                f"{type(pipeline).__name__} has neither a step callback nor a guider"
                + (" (and a callback was given)" if callback else "")
                + ": steering cannot tell its steps apart."
            )

    @property
    def step(self) -> int:
        """The step that is running, from 0; after the last one of a chunk, the first of the next."""
        return 0 if self.finished else self.done

    @property
    def finished(self) -> bool:
        """Whether every step of the last chunk has ended."""
        return self.total is not None and self.done == self.total

    def start(self) -> None:
        """Begin to listen."""
        if self._guider is not None:
            self._guider.set_state = self._set_state

    def stop(self, completed: bool) -> None:
        """Cease to listen; `completed` says that the pipeline returned, which ends its last step."""
        if self._guider is None:
            return
        vars(self._guider).pop("set_state", None)
        if completed and self.total is not None:
            self._end(self.done, self.total)

    def _set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        if step > 0:
            self._end(step - 1, num_inference_steps)
        elif self.total is not None:
            self._end(self.done, self.total)
            raise _twice()
        self.total = num_inference_steps
        type(self._guider).set_state(self._guider, step, num_inference_steps, timestep)

    def _step_end(self, pipeline: Pipeline, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        per_frame = isinstance(timestep, torch.Tensor) and timestep.numel() > 1
        if per_frame and pipeline.num_timesteps != pipeline.scheduler.num_inference_steps:
            raise SteeringNotApplied(
                "The frames of this call are at different noise levels in one step (asynchronous diffusion forcing), so it has "
                "no first half of denoising. Call the pipeline with ar_step=0."
            )
        if self._callback is not None:
            kwargs = self._callback(pipeline, step, timestep, kwargs) or kwargs
        self._end(step, int(pipeline.num_timesteps))
        return kwargs

    def _end(self, step: int, total: int) -> None:
        if step == 0 and self.chunked and self.finished:
            self.done = 0
        if step != self.done:
            raise _twice()
        self.total, self.done = total, step + 1
        self._ended(step, total)


def _twice() -> SteeringNotApplied:
    return SteeringNotApplied("The pipeline was called twice in one generation; open one generation per call.")
