"""SteeringMiddleware: joins a loaded pipeline, its current directions and a request's plan, one generation at a time.

A generation takes one snapshot of the directions when it opens and keeps it to its end. Between two steps, told by the step
clock, it enters into its ledgers what the step that ended had to push, and prepares the hooks for the next.
"""

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Protocol

import torch
import torch.distributed as dist

from reins_serve.errors import DirectionError, GenerationCancelled, ReinsError, SteeringNotApplied, SteeringUnavailable
from reins_serve.models.spec import Pipeline, denoisers_of, path_of
from reins_serve.steering.calls import UNCOND, watch
from reins_serve.steering.clock import StepClock, StepEnd
from reins_serve.steering.direction import Direction
from reins_serve.steering.fit import base_of, check_fit
from reins_serve.steering.hook import HOOK_NAME, SteeringHook, SteeringState, register, rows_at
from reins_serve.steering.plan import GenerationRecord, Ledger, RowPlan, records
from reins_serve.steering.policy import (
    CANDIDATE,
    LIVE,
    SteeringChoice,
    SteeringPolicy,
    SteeringRow,
    check_policy,
    resolve,
    takes_candidate,
)

OnStep = Callable[[int, int], None]
BETWEEN_S = 0.5  # far above the time that hooks take to be registered between two generations


class Cancel(Protocol):
    """A `threading.Event`, or anything else that can say whether to stop."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True)
class _Serving:
    """What a generation takes its snapshot of: directions by name, and the share of the candidate among them."""

    directions: Mapping[str, Direction]
    fraction: float = 0.0


class SteeringMiddleware:
    """Steering of one pipeline. Made by `reins_serve.attach`, which also proves it.

    Attributes:
        model: The catalogue's name of the pipeline's checkpoint.
        policy: What requests may ask for.
        proof: Figures of the start-up proof; None until it has passed.
        base, path: What a direction must say of its base model, and the blocks that can be steered.
        max_batch: Most rows of one call; None: as many as memory allows.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        model: str,
        directions: Mapping[str, Direction],
        policy: SteeringPolicy,
        fraction: float = 0.0,
    ) -> None:
        if is_cached(pipeline):
            raise ReinsError(
                "Attach steering before enabling a step cache: a hook above the cache steers cached steps twice."
            )
        self.pipeline = pipeline
        self.model = model
        self.policy = policy
        self.base = base_of(pipeline)
        self.path = path_of(pipeline)
        self._serving = _Serving({})
        self._armed = False
        self.watcher: Any = None  # keeps the directions up to date, if `attach` was told where they come from
        self._busy = threading.Lock()
        self.proof: Any = None
        self.max_batch: int | None = None
        self.state = SteeringState()
        self.calls = watch(pipeline, HOOK_NAME)
        self.hooks: list[SteeringHook] = []
        self.swap(directions, fraction)

    @property
    def directions(self) -> Mapping[str, Direction]:
        """The directions that the next generation will take its snapshot of, by name; `live` is the default one."""
        return self._serving.directions

    @property
    def fraction(self) -> float:
        """The share of the generations that the direction `candidate` gets beside `live`."""
        return self._serving.fraction

    def swap(self, directions: Mapping[str, Direction], fraction: float = 0.0) -> None:
        """Validate and take up directions; a generation that is running keeps those it began with.

        Blocks that have no hook yet get one between two generations: this waits for the one that is running, so call it from
        another thread than that one's.

        Args:
            fraction: Share of the generations that `candidate`, which must then be among them, gets in place of `live`.

        Raises:
            DirectionError: a direction belongs to another model, or needs a hook that can no longer be registered; nothing is
                changed.
            PolicyError, SteeringUnavailable: the policy cannot be carried out with them; nothing is changed.
        """
        if fraction and CANDIDATE not in directions:
            raise DirectionError("A share is given to a candidate, and there is no direction of that name.")
        for direction in directions.values():
            check_fit(direction, self.pipeline, self.base)
        check_policy(self.policy, directions)
        if self._armed and (missing := self._unhooked(directions)):
            self._require_plain(missing)
            with self._busy:
                self.hooks += register(self.pipeline, missing, self.state, self.calls)
        self._serving = _Serving(MappingProxyType(dict(directions)), fraction)

    def arm(self) -> None:
        """Register hooks at all blocks of the current directions that have none yet."""
        self.hooks += register(self.pipeline, self._unhooked(self.directions), self.state, self.calls)
        self._armed = True

    def _unhooked(self, directions: Mapping[str, Direction]) -> list[int]:
        wanted = {block for direction in directions.values() for block in direction.blocks}
        return sorted(wanted - {hook.block for hook in self.hooks})

    def _require_plain(self, blocks: Sequence[int]) -> None:
        """Refuse new hooks on a compiled or cached pipeline: they would be left out, or steer twice. Raises DirectionError."""
        for denoiser in denoisers_of(self.pipeline).values():
            compiled = any(module._compiled_call_impl is not None for module in denoiser.modules())
            if compiled or getattr(denoiser, "is_cache_enabled", False):
                raise DirectionError(
                    f"The direction steers block {', '.join(map(str, blocks))}, which has no hook, and this pipeline is "
                    f"{'compiled' if compiled else 'under a step cache'}: it would not be steered there. Restart the replicas "
                    "with this direction, or publish one for the blocks that are steered now."
                )

    def generation(
        self,
        *,
        prompts: int = 1,
        strength: float | None = None,
        policy: str | None = None,
        rows: Sequence[SteeringRow] | None = None,
        key: str | None = None,
        on_step: OnStep | None = None,
        cancel: Cancel | None = None,
        callback_on_step_end: StepEnd | None = None,
    ) -> "Generation":
        """Open a generation: `with steering.generation(...) as g: pipeline(prompt, **g.arguments)`; then `g.record`.

        Args:
            prompts: Number of prompts of the call (times videos per prompt), all steered alike.
            strength: Multiple of the direction's unit, within the policy; None: the serving strength.
            policy: Name of one of the operator's policies.
            rows: Instead of the three above: what each row gets, as `resolve` returned it.
            key: Equal keys get the same side of a canary; None leaves it to chance. Rows may bring keys of their own.
            on_step: Called with (steps done, steps in all) after each step.
            cancel: When set, the generation stops at the end of the current step with GenerationCancelled.
            callback_on_step_end: Your own callback of the pipeline, called before steering's.

        Raises:
            PolicyError, SteeringUnavailable: the choice is not allowed, or a direction is missing.
            ReinsError: more rows than the pipeline can make in one call.
        """
        serving = self._serving
        if rows is None:
            choice = SteeringChoice(policy=policy, strength=strength)
            rows = [resolve(choice, self.policy, serving.directions)] * prompts
        key = key if key is not None else secrets.token_hex(8)
        plans = [self._plan(row, serving, row.key or key) for row in rows]
        if self.max_batch is not None and len(plans) > self.max_batch:
            raise ReinsError(
                f"{self.model} makes at most {self.max_batch} clips in one call; {len(plans)} were asked for."
            )
        return Generation(self, plans, on_step, cancel, callback_on_step_end)

    def _plan(self, row: SteeringRow, serving: _Serving, key: str) -> RowPlan:
        """Join a row with its direction. A strength that a request chose is in the live direction's unit: no canary for it."""
        if row.direction is None:
            return RowPlan(row, None)
        canary = row.direction == LIVE and row.basis == "serving" and takes_candidate(key, serving.fraction)
        direction = serving.directions.get(CANDIDATE if canary else row.direction)
        if direction is None:
            raise SteeringUnavailable(
                f"The direction {row.direction!r} is not loaded. Publish it, or choose another policy."
            )
        return RowPlan(row.settled(self.policy, direction), direction)


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
        on_step: OnStep | None = None,
        cancel: Cancel | None = None,
        callback: StepEnd | None = None,
    ) -> None:
        if not plans:
            raise ReinsError("A generation needs at least one row.")
        self._middleware = middleware
        self._plans = plans
        self._on_step = on_step
        self._cancel = cancel
        self._clock = StepClock(middleware.pipeline, self._ended, callback)
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
    def step(self) -> int:
        """The denoising step that is running, from 0."""
        return self._clock.step

    def __enter__(self) -> "Generation":
        middleware = self._middleware
        if not middleware._busy.acquire(timeout=BETWEEN_S):
            raise ReinsError("This pipeline is generating already; one generation at a time. Batch prompts instead.")
        state = middleware.state
        state.tally = torch.zeros(
            len(self._plans), 4, dtype=torch.float64, device=middleware.pipeline._execution_device
        )
        state.cached = is_cached(middleware.pipeline)
        state.shards = shards_of(middleware.pipeline)
        for calls in middleware.calls.values():
            calls.begin(prompts=len(self._plans))
        self._prepare(0)
        self._clock.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state, pipeline, clock = self._middleware.state, self._middleware.pipeline, self._clock
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
            state.tally, state.shards, state.cached = None, None, False
            for hook in self._middleware.hooks:
                hook.rows, hook.computed = {}, {}
            self._middleware._busy.release()

    def _prepare(self, step: int) -> None:
        """Set every hook's rows for a step, if the set of open windows changes with it."""
        opened = [plan.steered_at(step, self._clock.total) for plan in self._plans]
        if opened == self._open:
            return
        self._open = opened
        device = self._middleware.pipeline._execution_device
        for hook in self._middleware.hooks:
            hook.rows = rows_at(hook.block, self._plans, opened, device) if any(opened) else {}
        if self._middleware.state.cached:  # what was computed with other rows must not be used again
            reset_caches(self._middleware.pipeline)

    def _ended(self, step: int, total: int) -> None:
        """A step is over: write the ledgers, tell the caller, stop if asked to, prepare the next step."""
        self._enter_step(step, total)
        for calls in self._middleware.calls.values():
            calls.begin()
        if self._on_step is not None:
            self._on_step(step + 1, total)
        if self._cancel is not None and self._cancel.is_set():
            raise GenerationCancelled(f"Stopped after step {step + 1} of {total}.")
        self._prepare((step + 1) % total)

    def _enter_step(self, step: int, total: int) -> None:
        """Enter what the calls of a step had to push, and which of that a step cache answered for."""
        made = {name: calls.made() for name, calls in self._middleware.calls.items()}
        if all(kind == UNCOND for calls in made.values() for _, kind in calls):
            raise SteeringNotApplied(f"No conditional call of the denoiser was seen in step {step}: its spec is wrong.")
        within = [plan.steered_at(step, total) for plan in self._plans]
        for ledger, is_within in zip(self._ledgers, within, strict=True):
            ledger.steps += is_within
        for hook in self._middleware.hooks:
            for name, kind in made[hook.denoiser]:
                reused = self._reused(hook, name, kind)
                for plan, ledger, is_within in zip(self._plans, self._ledgers, within, strict=True):
                    if is_within and plan.direction is not None and hook.block in plan.direction.blocks:
                        ledger.planned += plan.pushes(kind)
                        ledger.reused += plan.pushes(kind) * reused
            hook.computed = {}

    def _reused(self, hook: SteeringHook, name: str, kind: str) -> bool:
        """Whether a step cache answered for a hook's block in a call. Raises SteeringNotApplied if its answer is stale."""
        if not self._middleware.state.cached:
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
