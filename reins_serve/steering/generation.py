"""One generation under steering: it opens the hooks, keeps the step clock, writes the ledgers, and proves at its end.

Between two steps, told by the step clock, it enters into its ledgers what the step that ended had to push, and prepares the
hooks for the next.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

import torch
import torch.distributed as dist

from reins_serve.errors import GenerationCancelled, ReinsError, SteeringNotApplied
from reins_serve.models.spec import Pipeline, denoisers_of
from reins_serve.steering.branches import UNCOND
from reins_serve.steering.calls import Calls
from reins_serve.steering.clock import StepClock, StepEnd
from reins_serve.steering.direction import Direction
from reins_serve.steering.hook import SteeringHook, SteeringState, rows_at
from reins_serve.steering.outcomes import Outcomes
from reins_serve.steering.plan import COLUMNS, GenerationRecord, Ledger, RowPlan, records

OnStep = Callable[[int, int], None]
BETWEEN_S = 0.5  # far above the time that hooks take to be registered between two generations


class Cancel(Protocol):
    """A `threading.Event`, or anything else that can say whether to stop."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True)
class Hooked:
    """A pipeline and its hooks, which one generation at a time uses.

    Attributes:
        calls: Of each denoiser, by its attribute in the pipeline.
        hooks: Those that are registered; more may be added while no generation is open.
        busy: Held by the generation that is open, or by who adds hooks.
        threads: Those in which the generation that is open was seen.
    """

    pipeline: Pipeline
    calls: dict[str, Calls]
    state: SteeringState = field(default_factory=SteeringState)
    hooks: list[SteeringHook] = field(default_factory=list)
    busy: threading.Lock = field(default_factory=threading.Lock)
    threads: set[int] = field(default_factory=set)


class Generation:
    """One pipeline call under steering: a context manager that opens the hooks, keeps the clock, and proves at its end.

    Attributes:
        arguments: Pass them to the pipeline's call.
        records: One record a row, after the block has ended without an exception.
    """

    def __init__(
        self,
        hooked: Hooked,
        plans: list[RowPlan],
        on_step: OnStep | None = None,
        cancel: Cancel | None = None,
        callback: StepEnd | None = None,
        outcomes: Outcomes | None = None,
    ) -> None:
        if not plans:
            raise ReinsError("A generation needs at least one row.")
        self._hooked = hooked
        self._plans = plans
        self._on_step = on_step
        self._cancel = cancel
        self._outcomes = outcomes
        self._clock = StepClock(hooked.pipeline, self._ended, callback)
        self._ledgers = [Ledger() for _ in plans]
        self._open: list[bool] = []
        # Under a step cache, by block and call: the rows with which its last output was computed.
        self._carried: dict[tuple[int, str], object] = {}
        self.arguments: dict[str, Any] = self._clock.arguments
        self.records: list[GenerationRecord] = []

    @property
    def record(self) -> GenerationRecord:
        """The record of the first row."""
        if not self.records:
            raise SteeringNotApplied("This generation has not ended, or failed: it has no record.")
        return self.records[0]

    @property
    def directions(self) -> list[Direction | None]:
        """What each row is steered by."""
        return [plan.direction for plan in self._plans]

    @property
    def _device(self) -> torch.device:
        """Where hidden states were pushed last; a hook that finds them elsewhere moves what it needs."""
        place = self._hooked.state.place
        device: torch.device = place[0] if place is not None else self._hooked.pipeline._execution_device
        return device

    @property
    def step(self) -> int:
        """The denoising step that is running, from 0."""
        return self._clock.step

    def __enter__(self) -> "Generation":
        hooked = self._hooked
        if not hooked.busy.acquire(timeout=BETWEEN_S):
            raise ReinsError("This pipeline is generating already; one generation at a time. Batch prompts instead.")
        try:
            self._begin()
        except BaseException:
            self._close()
            raise
        return self

    def _begin(self) -> None:
        hooked, state = self._hooked, self._hooked.state
        hooked.threads.add(threading.get_ident())
        state.tally = torch.zeros(len(self._plans), COLUMNS, dtype=torch.float64, device=self._device)
        state.cached = is_cached(hooked.pipeline)
        state.shards = shards_of(hooked.pipeline)
        for calls in hooked.calls.values():
            calls.begin(prompts=len(self._plans))
        self._prepare(0)
        self._clock.start()

    def _close(self) -> None:
        hooked, state = self._hooked, self._hooked.state
        state.tally, state.shards, state.cached = None, None, False
        for hook in hooked.hooks:
            hook.rows, hook.computed = {}, {}
        hooked.threads.clear()
        hooked.busy.release()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state, pipeline, clock = self._hooked.state, self._hooked.pipeline, self._clock
        tally, shards = state.tally, state.shards
        try:
            clock.stop(completed=error is None)
            if error is not None:
                pipeline.maybe_free_model_hooks()
                return
            if not clock.finished:
                raise SteeringNotApplied(
                    f"{clock.done} of {clock.total or '?'} denoising steps reported to steering: the clip is discarded. "
                    "Call the pipeline once inside the block, with **g.arguments."
                )
            assert tally is not None
            if shards is not None:
                dist.all_reduce(tally, group=shards)
                tally /= dist.get_world_size(shards)
            self.records = records(self._plans, self._ledgers, tally.tolist())
        finally:
            self._close()
            self._count(error)

    def judged(self, unsafe: bool, row: int = 0) -> None:
        """Say what a judge saw in a row's clip, once the block has ended: a canary compares its versions by that too."""
        if self._outcomes is not None and self.records:
            self._outcomes.judged(self._plans[row], unsafe)

    def _count(self, error: BaseException | None) -> None:
        """Count what came of it. Whoever stopped it on purpose says nothing of the direction."""
        stopped = isinstance(error, GenerationCancelled) or not isinstance(error, Exception | None)
        if self._outcomes is not None and not stopped:
            self._outcomes.ended(self._plans, self.records)

    def _prepare(self, step: int) -> None:
        """Set every hook's rows for a step, if the set of open windows changes with it."""
        opened = [plan.steered_at(step, self._clock.total) for plan in self._plans]
        if opened == self._open:
            return
        self._open = opened
        for hook in self._hooked.hooks:
            batched = hook.calls.spec.guidance == "batched"
            hook.rows = rows_at(hook.block, self._plans, opened, self._device, batched) if any(opened) else {}
        if self._hooked.state.cached:  # what was computed with other rows must not be used again
            reset_caches(self._hooked.pipeline)

    def _ended(self, step: int, total: int) -> None:
        """A step is over: write the ledgers, tell the caller, stop if asked to, prepare the next step."""
        self._hooked.threads.add(threading.get_ident())  # a pipeline may run in another thread than its `with`
        self._enter_step(step, total)
        for calls in self._hooked.calls.values():
            calls.begin()
        if self._on_step is not None:
            self._on_step(step + 1, total)
        if self._cancel is not None and self._cancel.is_set():
            raise GenerationCancelled(f"Stopped after step {step + 1} of {total}.")
        if step + 1 < total or self._clock.chunked:
            self._prepare((step + 1) % total)

    def _enter_step(self, step: int, total: int) -> None:
        """Enter what the calls of a step had to push, and which of that a step cache answered for."""
        made = {name: calls.made() for name, calls in self._hooked.calls.items()}
        if all(kind == UNCOND for calls in made.values() for _, kind in calls):
            raise SteeringNotApplied(f"No conditional call of the denoiser was seen in step {step}: its spec is wrong.")
        within = [plan.steered_at(step, total) for plan in self._plans]
        for ledger, is_within in zip(self._ledgers, within, strict=True):
            ledger.steps += is_within
        for hook in self._hooked.hooks:
            for name, kind in made[hook.denoiser]:
                reused = self._reused(hook, name, kind)
                for plan, ledger, is_within in zip(self._plans, self._ledgers, within, strict=True):
                    direction = plan.direction
                    if is_within and direction is not None and hook.block in direction.blocks:
                        guards = direction.guard(direction.blocks.index(hook.block)) is not None
                        ledger.enter(plan.pushes(kind), reused, guards)
            hook.computed = {}

    def _reused(self, hook: SteeringHook, name: str, kind: str) -> bool:
        """Whether a step cache answered for a hook's block in a call. Raises SteeringNotApplied if its answer is stale."""
        if not self._hooked.state.cached:
            return False
        if name in hook.computed:
            self._carried[hook.block, name] = hook.computed[name]
            return False
        if self._carried.get((hook.block, name), _NOTHING) is not hook.rows.get(kind):
            raise SteeringNotApplied(
                f"A step cache answered for block {hook.block} with an output that was computed under another steering: the "
                "clip is discarded. The cache must be reset at each edge of the window."
            )
        return True


_NOTHING = object()


def is_cached(pipeline: Pipeline) -> bool:
    """Whether a step cache may answer for a block of a denoiser."""
    return any(getattr(denoiser, "is_cache_enabled", False) for denoiser in denoisers_of(pipeline).values())


def reset_caches(pipeline: Pipeline) -> None:
    """Make every step cache of the denoisers compute anew."""
    for denoiser in denoisers_of(pipeline).values():
        denoiser._reset_stateful_cache()


def shards_of(pipeline: Pipeline) -> Any:
    """The process group that shares the tokens of a row under context parallelism; None without it."""
    for denoiser in denoisers_of(pipeline).values():
        parallel = getattr(denoiser, "_parallel_config", None)
        context = getattr(parallel, "context_parallel_config", None)
        if context is not None:
            return context._flattened_mesh.get_group()
    return None
