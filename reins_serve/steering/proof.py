"""The start-up proof: before a replica is ready, its steering is measured on a short clip of noise. No proof, no ready.

Taps inside and outside the steering hook record what enters and leaves it. A few runs of a few steps on the smallest clip
show that

1. an attached pipeline with steering off makes the bare pipeline's latents, bit for bit;
2. every tapped block is pushed at the steps and branches of the plan and nowhere else, by the amount that the formula
   predicts in float64, and the clip's latents change;
3. the row beside a steered one stays bit-identical, where the pipeline can make two clips in one call;
4. a changed negative prompt changes only rows that the spec calls unconditional;
5. a larger clip has more of the tokens that the spec calls the video's (text or audio tokens would not grow so), where the
   model makes clips of more than one shape.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from reins_serve.errors import SteeringNotApplied
from reins_serve.models.catalog import CatalogEntry
from reins_serve.models.generation import ClipRequest, call_arguments, needs_image
from reins_serve.models.spec import Pipeline, denoisers_of
from reins_serve.steering.blocks import VideoHook, add_hooks, remove_hooks
from reins_serve.steering.branches import BATCHED, UNCOND
from reins_serve.steering.calls import Calls
from reins_serve.steering.direction import Direction, Window
from reins_serve.steering.formula import TOLERANCE, deviation, expected
from reins_serve.steering.generation import Generation
from reins_serve.steering.middleware import SteeringMiddleware
from reins_serve.steering.plan import RowPlan
from reins_serve.steering.policy import SteeringRow, unsteered

STEPS = 3
EXPERT_STEPS = 6  # two experts share the steps, and each must make one
INNER, OUTER = "reins_tap_inner", "reins_tap_outer"
OTHER_NEGATIVE = "another negative prompt"


@dataclass(frozen=True)
class Proof:
    """Figures of one direction's start-up proof.

    Attributes:
        direction: Its name.
        applications: Pushes counted, equal to the plan.
        error: Largest deviation from the predicted hidden state, relative to the largest hidden value.
        displacement: Mean effective displacement of a token, in the hidden states' scale.
        latent_change: Mean absolute change of the steered clip's latents.
    """

    direction: str
    applications: int
    error: float
    displacement: float
    latent_change: float


class _Seen(NamedTuple):
    """One call of a tapped block: the step, its kind, rows a prompt has in it, and the video tokens `[R, S, D]`."""

    step: int
    kind: str
    copies: int
    hidden: Tensor

    def conditional(self, row: int) -> bool:
        """Whether a row carries the request's prompt."""
        return self.kind != UNCOND and (self.kind != BATCHED or row >= self.hidden.shape[0] // 2)

    def prompt(self, row: int, prompts: int) -> int:
        """The number of the prompt that a row belongs to; rows are [branch][prompt][frame]."""
        return row // self.copies % prompts


@dataclass
class _Taps:
    """What the taps of a run recorded, by block."""

    generation: Generation | None = None
    calls: dict[int, list[_Seen]] = field(default_factory=dict)


class _Tap(VideoHook):
    """Records the video tokens of every call of one block."""

    def __init__(self, taps: _Taps, calls: Calls, block: int) -> None:
        super().__init__(calls.spec)
        self._taps, self._calls, self._block = taps, calls, block

    def post_forward(self, module: torch.nn.Module, output: object) -> object:
        hidden = self.video(output)
        kind, copies = self._calls.layout(hidden.shape[0])
        assert self._taps.generation is not None
        seen = _Seen(self._taps.generation.step, kind, copies, hidden.detach().clone())
        self._taps.calls.setdefault(self._block, []).append(seen)
        return output


def bare_latents(pipeline: Pipeline, entry: CatalogEntry) -> Tensor:
    """Latents of the proof's clips, from a pipeline that steering has not touched yet."""
    return clip_latents(pipeline, entry, {})


def prove(
    middleware: SteeringMiddleware, entry: CatalogEntry, bare: Tensor, attach_hooks: Callable[[], None]
) -> dict[str, Proof]:
    """Run the proof for every direction of a middleware, and return its figures by the direction's name there.

    Args:
        bare: `bare_latents` of the same pipeline before the hooks were registered.
        attach_hooks: Registers the steering hooks; called once, between the inner and the outer taps.

    Raises:
        SteeringNotApplied: any of the four statements does not hold; says which.
    """
    if not middleware.directions:  # the policy allows it: every clip will be marked as unsteered
        return {}
    run = _Run(middleware, entry, bare, attach_hooks)
    try:
        if not torch.equal(run.generate(run.off), bare):
            raise SteeringNotApplied("Steering that is off changes the clip: the hook is not neutral on this model.")
        before = run.inner.calls
        run.generate(run.off, negative=OTHER_NEGATIVE)
        _check_branches(run, before)
        if entry.larger is not None:
            run.generate(run.off, shape=entry.larger)
            _check_growth(run, before)
        return {name: run.prove(direction, name) for name, direction in middleware.directions.items()}
    finally:
        for name in (OUTER, INNER):
            remove_hooks(middleware.pipeline, name)


class _Run:
    """The proof of one middleware: its hooks between two rows of taps."""

    def __init__(
        self, middleware: SteeringMiddleware, entry: CatalogEntry, bare: Tensor, attach_hooks: Callable[[], None]
    ) -> None:
        self.middleware, self.entry, self.bare = middleware, entry, bare
        self.inner, self.outer = _Taps(), _Taps()
        self.off = [RowPlan(unsteered("proof"), None)] * prompts_of(entry)
        self.blocks = sorted({block for direction in middleware.directions.values() for block in direction.blocks})
        self._tap(self.inner, INNER)
        attach_hooks()
        self._tap(self.outer, OUTER)

    def _tap(self, taps: _Taps, name: str) -> None:
        path = self.middleware.path
        hooks = {block: _Tap(taps, self.middleware.hooked.calls[path[block][0]], block) for block in self.blocks}
        add_hooks(self.middleware.pipeline, hooks, name)

    def generate(self, plans: list[RowPlan], negative: str = "", shape: tuple[int, int, int] | None = None) -> Tensor:
        """Latents of one run; the taps hold its calls, `record` the first row's record."""
        generation = Generation(self.middleware.hooked, plans)
        for taps in (self.inner, self.outer):
            taps.generation, taps.calls = generation, {}
        with generation as g:
            latents = clip_latents(self.middleware.pipeline, self.entry, g.arguments, negative, shape)
        self.record = g.record
        return latents

    def prove(self, direction: Direction, name: str) -> Proof:
        """Statements 2 and 3 for one direction."""
        error, change, moved, record = 0.0, 0.0, 0.0, None
        unseen = set(direction.blocks)
        # The direction as it serves comes first. Where that leaves a block unpushed, because a set-point finds the proof's clip
        # safe already or because an expert has no step in the window, it is tried with a higher target, or a window that is whole.
        for tried in (direction, *variants(direction)):
            if record is not None and not unseen and moved:
                break
            if not tried.meta.window.steps(steps_of(self.middleware.pipeline)):
                continue  # a window too narrow for so few steps
            plans = [RowPlan(SteeringRow(name, direction.serving_strength), tried), *self.off[1:]]
            latents = self.generate(plans)
            if not torch.equal(latents[1:], self.bare[1:]):
                raise SteeringNotApplied(
                    "Steering one row of a batch changed another row: this model cannot be batched safely."
                )
            for block in self.blocks:
                pushed, worst = self._check_block(tried, block)
                unseen -= {block} if pushed else set()
                error = max(error, worst)
            record = record or self.record
            moved = max(moved, self.record.moved or 0.0)
            change = max(change, (latents[0].float() - self.bare[0].float()).abs().mean().item())
        if unseen:
            raise SteeringNotApplied(f"The blocks {sorted(unseen)} of {direction.name} were never called in the proof.")
        if not change > 0:
            raise SteeringNotApplied(
                f"Pushing along {direction.name} changed nothing in the clip: the hook's block is not in use."
            )
        assert record is not None
        return Proof(direction.name, record.applied, error, self.record.displacement or 0.0, change)

    def _check_block(self, direction: Direction, block: int) -> tuple[bool, float]:
        """Compare every call of a block with the formula in float64: whether it was pushed, and the largest relative error."""
        pushed, worst, prompts = False, 0.0, len(self.off)
        window = direction.meta.window.steps(steps_of(self.middleware.pipeline))
        for before, after in zip(self.inner.calls.get(block, []), self.outer.calls.get(block, []), strict=True):
            for row, (h, found) in enumerate(zip(before.hidden, after.hidden, strict=True)):
                due = before.prompt(row, prompts) == 0 and block in direction.blocks and before.step in window
                if not due or not (before.conditional(row) or direction.branches == "both"):
                    if not torch.equal(h, found):
                        raise SteeringNotApplied(f"Block {block} was pushed at step {before.step} outside the plan.")
                    continue
                at, strength = direction.blocks.index(block), direction.serving_strength
                error = deviation(found, expected(h.double(), direction, at, strength))
                if not error <= TOLERANCE[h.dtype]:
                    raise SteeringNotApplied(
                        f"Block {block} at step {before.step} is {error:.2g} (relative) away from the predicted push: the spec's "
                        "video tokens or the direction's statistics are wrong for this model."
                    )
                pushed, worst = True, max(worst, error)
        return pushed, worst


def variants(direction: Direction) -> list[Direction]:
    """The direction with targets so high that every token is pushed, and with a window that takes in every step."""
    changes: list[dict[str, object]] = []
    if direction.operation == "setpoint":
        raised = tuple(
            s.model_copy(update={"safe_mean": s.safe_mean + 2 * s.ref_norm}) for s in direction.meta.statistics
        )
        changes.append({"statistics": raised, "margin": 0.0})
    changes.append((changes[0] if changes else {}) | {"window": Window(start=0, end=1)})
    return [Direction.create(direction.meta.model_copy(update=change), direction.vectors) for change in changes]


def _check_branches(run: _Run, before: dict[int, list[_Seen]]) -> None:
    """In the first step, a changed negative prompt must change the unconditional rows, and no other."""
    first = next(block for block in run.blocks if block in before)
    for one, other in zip(before[first], run.inner.calls[first], strict=True):
        if one.step > 0:
            return
        for row, (was, became) in enumerate(zip(one.hidden, other.hidden, strict=True)):
            if torch.equal(was, became) != one.conditional(row):
                raise SteeringNotApplied(
                    "The spec's guidance layout is wrong: a negative prompt changed other rows than it says."
                )


def _check_growth(run: _Run, before: dict[int, list[_Seen]]) -> None:
    """A larger clip must have more tokens a prompt at every tapped block."""
    for block, seen in run.inner.calls.items():
        small, large = (one.copies * one.hidden.shape[1] for one in (before[block][0], seen[0]))
        if large <= small:
            raise SteeringNotApplied(
                f"Block {block} has {small} tokens a clip, and {large} in a larger clip: these are not the video's tokens. "
                "Correct `video` or `blocks` in the entry in SPECS."
            )


def prompts_of(entry: CatalogEntry) -> int:
    """How many clips a run of the proof makes in one call."""
    return 1 if entry.max_batch == 1 else 2


def steps_of(pipeline: Pipeline) -> int:
    """How many denoising steps a run of the proof has."""
    return STEPS if len(denoisers_of(pipeline)) == 1 else EXPERT_STEPS


def _gradient(width: int, height: int) -> Image.Image:
    """The proof's first frame."""
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def clip_latents(
    pipeline: Pipeline,
    entry: CatalogEntry,
    arguments: dict,
    negative: str = "",
    shape: tuple[int, int, int] | None = None,
) -> Tensor:
    """Latents of the proof's clips, from one call of the pipeline; without a shape they are the smallest that it makes."""
    width, height, frames = shape or entry.smallest
    requests = [
        ClipRequest(
            prompt=prompt,
            seed=seed,
            width=width,
            height=height,
            num_frames=frames,
            num_inference_steps=steps_of(pipeline),
            guidance_scale=entry.guidance_scale,
            negative_prompt=negative,
            image=_gradient(width, height) if needs_image(pipeline, entry) else None,
        )
        for seed, prompt in enumerate(("a clip", "another clip")[: prompts_of(entry)])
    ]
    output = pipeline(**call_arguments(pipeline, entry, requests, output_type="latent"), **arguments)
    return output.frames.detach().cpu()
