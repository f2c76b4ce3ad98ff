"""SteeringMiddleware: joins a loaded pipeline, its current directions and a request's plan, one generation at a time.

A generation takes one snapshot of the directions when it opens and keeps it to its end. Its step clock is the pipeline's
`callback_on_step_end`, which fires at the end of step i and so prepares step i + 1; the total is `pipeline.num_timesteps`.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any

import torch

from reins_serve.errors import (
    DirectionError,
    GenerationCancelled,
    ReinsError,
    SteeringNotApplied,
    SteeringUnavailable,
)
from reins_serve.models.fingerprint import fingerprint
from reins_serve.models.spec import Pipeline, blocks_of, spec_of, width_of
from reins_serve.steering.direction import Direction
from reins_serve.steering.hook import SteeringHook, SteeringState, register, rows_at
from reins_serve.steering.plan import GenerationRecord, RowPlan, records
from reins_serve.steering.policy import (
    SteeringChoice,
    SteeringPolicy,
    SteeringRow,
    check_policy,
    resolve,
)

OnStep = Callable[[int, int], None]


def check_fit(direction: Direction, denoiser: torch.nn.Module, found: str) -> None:
    """Refuse a direction of another model. Raises DirectionError.

    Args:
        found: The denoiser's fingerprint.
    """
    base = direction.meta.base
    facts = [
        ("denoiser class", base.denoiser_class, type(denoiser).__name__),
        ("width", base.width, width_of(denoiser)),
        ("number of blocks", base.num_blocks, len(blocks_of(denoiser))),
        ("fingerprint of the weights", base.fingerprint, found),
    ]
    for what, wanted, actual in facts:
        if wanted != actual:
            raise DirectionError(
                f"The direction {direction.name} was fitted for another model: its {what} is {wanted}, the loaded model's is "
                f"{actual}. Load the model it belongs to, or refit it with `reins-serve recalibrate`."
            )


class SteeringMiddleware:
    """Steering of one pipeline. Made by `reins_serve.attach`, which also proves it.

    Attributes:
        model: The catalogue's name of the pipeline's checkpoint.
        policy: What requests may ask for.
        proof: Figures of the start-up proof; None until it has passed.
    """

    def __init__(
        self, pipeline: Pipeline, model: str, directions: Mapping[str, Direction], policy: SteeringPolicy
    ) -> None:
        denoiser = pipeline.transformer
        if getattr(pipeline, "transformer_2", None) is not None:
            raise ReinsError(f"{model} has two denoisers, each of which needs a direction; that is not offered yet.")
        if getattr(denoiser, "is_cache_enabled", False):
            raise ReinsError(
                "Attach steering before enabling a step cache: a hook above the cache steers cached steps twice."
            )
        self.pipeline = pipeline
        self.model = model
        self.policy = policy
        self.denoiser = denoiser
        self.fingerprint = fingerprint(denoiser)
        self._directions: Mapping[str, Direction] = {}
        self._busy = threading.Lock()
        self.proof: Any = None
        self.state = SteeringState(spec_of(denoiser).guidance)
        self.hooks: list[SteeringHook] = []
        self.swap(directions)

    @property
    def directions(self) -> Mapping[str, Direction]:
        """The directions that the next generation will take its snapshot of, by name; `live` is the default one."""
        return self._directions

    def swap(self, directions: Mapping[str, Direction]) -> None:
        """Validate and take up directions; a generation that is running keeps those it began with.

        Raises:
            DirectionError: a direction belongs to another model; nothing is changed.
            PolicyError, SteeringUnavailable: the policy cannot be carried out with them; nothing is changed.
        """
        for direction in directions.values():
            check_fit(direction, self.denoiser, self.fingerprint)
        check_policy(self.policy, directions)
        self._directions = MappingProxyType(dict(directions))

    def arm(self) -> None:
        """Register hooks at all blocks of the current directions that have none yet."""
        have = {hook.block for hook in self.hooks}
        wanted = {block for direction in self._directions.values() for block in direction.blocks}
        self.hooks += register(self.denoiser, sorted(wanted - have), self.state)

    def generation(
        self,
        *,
        prompts: int = 1,
        strength: float | None = None,
        policy: str | None = None,
        rows: Sequence[SteeringRow] | None = None,
        on_step: OnStep | None = None,
        cancel: threading.Event | None = None,
    ) -> "Generation":
        """Open a generation: `with steering.generation(...) as g: pipeline(prompt, **g.arguments)`; then `g.record`.

        Args:
            prompts: Number of prompts of the call (times videos per prompt), all steered alike.
            strength: Multiple of the direction's unit, within the policy; None: the serving strength.
            policy: Name of one of the operator's policies.
            rows: Instead of the three above: what each row gets, as `resolve` returned it.
            on_step: Called with (steps done, steps in all) after each step.
            cancel: When set, the generation stops at the end of the current step with GenerationCancelled.

        Raises:
            PolicyError, SteeringUnavailable: the choice is not allowed, or a direction is missing.
        """
        if rows is None:
            rows = [resolve(SteeringChoice(policy=policy, strength=strength), self.policy, self._directions)] * prompts
        snapshot = self._directions
        plans = []
        for row in rows:
            if row.direction is not None and row.direction not in snapshot:
                raise SteeringUnavailable(
                    f"The direction {row.direction!r} is not loaded. Publish it, or choose another policy."
                )
            plans.append(RowPlan(row, snapshot[row.direction] if row.direction is not None else None))
        return Generation(self, plans, on_step, cancel)


class Generation:
    """One pipeline call under steering: a context manager that opens the hooks, keeps the clock, and proves at its end.

    Attributes:
        arguments: Pass them to the pipeline's call.
        records: One record a row, after the block has ended without an exception.
    """

    def __init__(
        self,
        middleware: SteeringMiddleware,
        plans: list[RowPlan],
        on_step: OnStep | None,
        cancel: threading.Event | None,
    ) -> None:
        if not plans:
            raise ReinsError("A generation needs at least one row.")
        self._middleware = middleware
        self._plans = plans
        self._on_step = on_step
        self._cancel = cancel
        self._total: int | None = None
        self._done = 0
        self._open: list[bool] = []
        self.arguments: dict[str, Any] = {"callback_on_step_end": self._step_end}
        self.records: list[GenerationRecord] = []

    @property
    def record(self) -> GenerationRecord:
        """The record of the first row."""
        if not self.records:
            raise SteeringNotApplied("This generation has not ended, or failed: it has no record.")
        return self.records[0]

    def __enter__(self) -> "Generation":
        middleware = self._middleware
        if not middleware._busy.acquire(blocking=False):
            raise ReinsError("This pipeline is generating already; one generation at a time. Batch prompts instead.")
        state = middleware.state
        state.tally = torch.zeros(
            len(self._plans), 4, dtype=torch.float64, device=middleware.pipeline._execution_device
        )
        state.calls.prompts = len(self._plans)
        self._prepare(0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state, pipeline = self._middleware.state, self._middleware.pipeline
        tally = state.tally
        state.tally, state.calls.prompts = None, 0
        for hook in self._middleware.hooks:
            hook.rows = {}
        try:
            if error is not None:
                pipeline.maybe_free_model_hooks()
                return
            if self._total is None or self._done != self._total:
                raise SteeringNotApplied(
                    f"{self._done} of {self._total or '?'} denoising steps reported to steering: the clip is discarded. "
                    "Call the pipeline once inside the block, with **g.arguments."
                )
            assert tally is not None
            guided = bool(getattr(pipeline, "do_classifier_free_guidance", False))
            self.records = records(self._plans, self._total, guided, tally.tolist())
        finally:
            self._middleware._busy.release()

    def _prepare(self, step: int) -> None:
        """Set every hook's rows for a step, if the set of open windows changes with it."""
        opened = [plan.steered_at(step, self._total) for plan in self._plans]
        if opened == self._open:
            return
        self._open = opened
        device = self._middleware.pipeline._execution_device
        for hook in self._middleware.hooks:
            hook.rows = rows_at(hook.block, self._plans, opened, device) if any(opened) else {}

    def _step_end(self, pipeline: Pipeline, step: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step != self._done:
            raise SteeringNotApplied("The pipeline was called twice in one generation; open one generation per call.")
        self._total = int(pipeline.num_timesteps)
        self._done = step + 1
        if self._on_step is not None:
            self._on_step(self._done, self._total)
        if self._cancel is not None and self._cancel.is_set():
            raise GenerationCancelled(f"Stopped after step {self._done} of {self._total}.")
        if self._done < self._total:
            self._prepare(self._done)
        return kwargs
