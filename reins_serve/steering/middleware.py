"""SteeringMiddleware: joins a loaded pipeline, its current directions and a request's plan, one generation at a time.

A generation takes one snapshot of the directions when it opens and keeps it to its end.
"""

import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from reins_serve.errors import DirectionError, ReinsError, SteeringUnavailable
from reins_serve.models.spec import Pipeline, denoisers_of, path_of
from reins_serve.steering.calls import watch
from reins_serve.steering.clock import StepEnd
from reins_serve.steering.direction import Direction
from reins_serve.steering.dry_run import dry_run
from reins_serve.steering.fit import base_of, check_fit
from reins_serve.steering.generation import Cancel, Generation, Hooked, OnStep, is_cached
from reins_serve.steering.hook import HOOK_NAME, SteeringHook, register
from reins_serve.steering.outcomes import Outcomes
from reins_serve.steering.plan import RowPlan
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


@dataclass(frozen=True)
class _Serving:
    """What a generation takes its snapshot of: directions by name, the share of the candidate among them, and their counts."""

    directions: Mapping[str, Direction]
    fraction: float = 0.0
    outcomes: Outcomes = field(default_factory=Outcomes)


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
        epoch: int = 0,
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
        self.proof: Any = None
        self.max_batch: int | None = None
        self.hooked = Hooked(pipeline, watch(pipeline, HOOK_NAME))
        self.swap(directions, fraction, epoch)

    @property
    def directions(self) -> Mapping[str, Direction]:
        """The directions that the next generation will take its snapshot of, by name; `live` is the default one."""
        return self._serving.directions

    @property
    def fraction(self) -> float:
        """The share of the generations that the direction `candidate` gets beside `live`."""
        return self._serving.fraction

    @property
    def outcomes(self) -> Outcomes:
        """What became of the generations of each version, as far as they say something of the one beside the other."""
        return self._serving.outcomes

    def swap(self, directions: Mapping[str, Direction], fraction: float = 0.0, epoch: int = 0) -> None:
        """Validate and take up directions; a generation that is running keeps those it began with.

        Blocks that have no hook yet get one between two generations: this waits for the one that is running.

        Args:
            fraction: Share of the generations that `candidate`, which must then be among them, gets in place of `live`.
            epoch: Names the arrangement; outcomes go on being counted while it stays the same.

        Raises:
            DirectionError: a direction belongs to another model, fails its dry run, or needs a hook that can no longer be
                registered; nothing is changed.
            PolicyError, SteeringUnavailable: the policy cannot be carried out with them; nothing is changed.
            ReinsError: it would wait for the generation that called it; nothing is changed.
        """
        if fraction and CANDIDATE not in directions:
            raise DirectionError("A share is given to a candidate, and there is no direction of that name.")
        known = {direction.sha256 for direction in self.directions.values()}
        for direction in directions.values():
            check_fit(direction, self.pipeline, self.base)
            if self._armed and direction.sha256 not in known:  # before that, the start-up proof is to come
                dry_run(direction, self.pipeline, self.hooked.state.place)
        check_policy(self.policy, directions)
        if self._armed and (missing := self._unhooked(directions)):
            self._require_plain(missing)
            if threading.get_ident() in self.hooked.threads:
                raise ReinsError(
                    f"Block {', '.join(map(str, missing))} gets its hook between two generations, and this swap was called from "
                    "inside one, which cannot end before it. Swap after the generation, or from another thread."
                )
            with self.hooked.busy:
                self._register(missing)
        outcomes = self.outcomes if self.outcomes.epoch == epoch else Outcomes(epoch)
        self._serving = _Serving(MappingProxyType(dict(directions)), fraction, outcomes)

    def arm(self) -> None:
        """Register hooks at all blocks of the current directions that have none yet."""
        self._register(self._unhooked(self.directions))
        self._armed = True

    @property
    def hooks(self) -> Sequence[SteeringHook]:
        """The hooks that are registered."""
        return self.hooked.hooks

    def _register(self, blocks: Sequence[int]) -> None:
        self.hooked.hooks.extend(register(self.pipeline, blocks, self.hooked.state, self.hooked.calls))

    def _unhooked(self, directions: Mapping[str, Direction]) -> list[int]:
        wanted = {block for direction in directions.values() for block in direction.blocks}
        return sorted(wanted - {hook.block for hook in self.hooked.hooks})

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
        return Generation(self.hooked, plans, on_step, cancel, callback_on_step_end, serving.outcomes)

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
