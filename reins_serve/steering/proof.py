"""The start-up proof: before a replica is ready, its steering is measured on a short clip of noise. No proof, no ready.

Taps inside and outside the steering hook record what enters and leaves it. Four runs of three steps show that

1. an attached pipeline with steering off makes the bare pipeline's latents, bit for bit;
2. every tapped block is pushed at the steps and branches of the plan and nowhere else, by the amount that the formula
   predicts in float64, and the clip's latents change;
3. the row beside a steered one stays bit-identical;
4. a changed negative prompt changes only rows that the spec calls unconditional.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from diffusers.hooks import ModelHook
from torch import Tensor

from reins_serve.errors import SteeringNotApplied
from reins_serve.models.catalog import CatalogEntry
from reins_serve.models.spec import Pipeline, spec_of
from reins_serve.steering.blocks import add_hooks, remove_hooks
from reins_serve.steering.direction import Direction
from reins_serve.steering.middleware import Generation, SteeringMiddleware
from reins_serve.steering.plan import RowPlan
from reins_serve.steering.policy import SteeringRow, unsteered

STEPS = 3
INNER, OUTER = "reins_tap_inner", "reins_tap_outer"
# Largest deviation from the float64 formula, relative to the largest hidden value: rounding of the output's own dtype.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
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


@dataclass
class _Tap(ModelHook):
    """Records the video tokens of every call of one block."""

    video: int | None
    calls: list[Tensor] = field(default_factory=list)

    def post_forward(self, module: torch.nn.Module, output: object) -> object:
        hidden: Tensor = output if self.video is None else output[self.video]  # type: ignore[assignment, index]
        self.calls.append(hidden.detach().clone())
        return output


def bare_latents(pipeline: Pipeline, entry: CatalogEntry, steps: int = STEPS) -> Tensor:
    """Latents of the proof's two clips, from a pipeline that steering has not touched yet."""
    return _run(pipeline, entry, {}, steps)


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
    video = spec_of(middleware.denoiser).video
    blocks = sorted({block for direction in middleware.directions.values() for block in direction.blocks})
    inner = {block: _Tap(video) for block in blocks}
    outer = {block: _Tap(video) for block in blocks}
    add_hooks(middleware.denoiser, inner, INNER)
    attach_hooks()
    add_hooks(middleware.denoiser, outer, OUTER)
    try:
        off = [RowPlan(unsteered("proof"), None)] * 2
        if not torch.equal(_generate(middleware, entry, off, inner, outer), bare):
            raise SteeringNotApplied("Steering that is off changes the clip: the hook is not neutral on this model.")
        before = {block: tap.calls[:] for block, tap in inner.items()}
        _generate(middleware, entry, off, inner, outer, negative=OTHER_NEGATIVE)
        _check_branches(middleware, before[blocks[0]], inner[blocks[0]].calls)
        return {
            name: _prove_direction(middleware, entry, direction, name, bare, inner, outer)
            for name, direction in middleware.directions.items()
        }
    finally:
        for name in (OUTER, INNER):
            remove_hooks(middleware.denoiser, name)


def _prove_direction(
    middleware: SteeringMiddleware,
    entry: CatalogEntry,
    direction: Direction,
    name: str,
    bare: Tensor,
    inner: dict[int, "_Tap"],
    outer: dict[int, "_Tap"],
) -> Proof:
    neighbour = RowPlan(unsteered("proof"), None)
    # A set-point may find the proof's clip safe already, which proves nothing: then it is tried with its target raised.
    for tried in (direction, *_raised(direction)):
        plan = RowPlan(SteeringRow(name, direction.serving_strength), tried)
        generation = Generation(middleware, [plan, neighbour], None, None)
        latents = _generate(middleware, entry, [plan, neighbour], inner, outer, generation=generation)
        if not torch.equal(latents[1], bare[1]):
            raise SteeringNotApplied(
                "Steering one row of a batch changed another row: this model cannot be batched safely."
            )
        error = max(_check_block(middleware, tried, block, inner[block].calls, outer[block].calls) for block in outer)
        change = (latents[0].float() - bare[0].float()).abs().mean().item()
        record = generation.record
        if record.moved:
            break
    if not change > 0:
        raise SteeringNotApplied(
            f"Pushing along {direction.name} changed nothing in the clip: the hook's block is not in use."
        )
    return Proof(direction.name, record.applied, error, record.displacement or 0.0, change)


def _raised(direction: Direction) -> list[Direction]:
    """A set-point direction with its targets so high that every token is pushed; nothing for an addition."""
    if direction.operation != "setpoint":
        return []
    raised = tuple(s.model_copy(update={"safe_mean": s.safe_mean + 2 * s.ref_norm}) for s in direction.meta.statistics)
    return [Direction.create(direction.meta.model_copy(update={"statistics": raised}), direction.vectors)]


def _check_block(
    middleware: SteeringMiddleware, direction: Direction, block: int, before: list[Tensor], after: list[Tensor]
) -> float:
    """Compare every call of a block with the formula in float64. Returns the largest relative error."""
    guidance = middleware.state.calls.guidance
    calls_per_step = len(before) // STEPS
    worst = 0.0
    for call, (h, found) in enumerate(zip(before, after, strict=True)):
        step, place = divmod(call, calls_per_step)
        for row in range(h.shape[0]):
            steered = row % 2 == 0 and block in direction.blocks and step in direction.meta.window.steps(STEPS)
            conditional = place == 0 if guidance == "sequential" else row >= h.shape[0] - 2
            if not steered or not (conditional or direction.branches == "both"):
                if not torch.equal(h[row], found[row]):
                    raise SteeringNotApplied(f"Block {block} was pushed at step {step} outside the plan.")
                continue
            wanted = _expected(h[row].double(), direction, direction.blocks.index(block))
            error = ((found[row].double() - wanted).abs().max() / wanted.abs().max()).item()
            if not error <= TOLERANCE[h.dtype]:
                raise SteeringNotApplied(
                    f"Block {block} at step {step} is {error:.2g} (relative) away from the predicted push: the spec's video "
                    "tokens or the direction's statistics are wrong for this model."
                )
            worst = max(worst, error)
    return worst


def _expected(h: Tensor, direction: Direction, at: int) -> Tensor:
    """The formula of `method.md` for one row `[S, D]`, written independently of the operator, in float64."""
    d = direction.vectors[at].double().to(h.device)
    strength = direction.serving_strength * direction.unit(at)
    if direction.operation == "setpoint":
        push = torch.outer(strength * torch.relu(direction.meta.statistics[at].safe_mean - h @ d), d)
    else:
        push = (strength * d).expand_as(h)
    dim = {"token": 1, "channel": 0}.get(direction.meta.norm)
    moved = h + push
    return moved if dim is None else moved * (h.norm(dim=dim, keepdim=True) / moved.norm(dim=dim, keepdim=True))


def _check_branches(middleware: SteeringMiddleware, before: list[Tensor], after: list[Tensor]) -> None:
    """In the first step, a changed negative prompt may change unconditional rows only."""
    calls = len(before) // STEPS
    for place, (one, other) in enumerate(zip(before[:calls], after[:calls], strict=True)):
        for row in range(one.shape[0]):
            unconditional = place == 1 if middleware.state.calls.guidance == "sequential" else row < one.shape[0] - 2
            if torch.equal(one[row], other[row]) == unconditional:
                raise SteeringNotApplied(
                    "The spec's guidance layout is wrong: a negative prompt changed other rows than it says."
                )


def _generate(
    middleware: SteeringMiddleware,
    entry: CatalogEntry,
    plans: Sequence[RowPlan],
    *taps: dict[int, "_Tap"],
    negative: str = "",
    generation: Generation | None = None,
) -> Tensor:
    for tap in (tap for group in taps for tap in group.values()):
        tap.calls.clear()
    with generation or Generation(middleware, list(plans), None, None) as g:
        return _run(middleware.pipeline, entry, g.arguments, STEPS, negative)


def _run(pipeline: Pipeline, entry: CatalogEntry, arguments: dict, steps: int, negative: str = "") -> Tensor:
    output = pipeline(
        prompt=["a clip", "another clip"],
        negative_prompt=[negative] * 2,
        width=entry.width,
        height=entry.height,
        num_frames=entry.num_frames + entry.pipeline_frames_offset,
        num_inference_steps=steps,
        guidance_scale=entry.guidance_scale,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in range(2)],
        output_type="latent",
        **entry.arguments,
        **arguments,
    )
    return output.frames.detach().cpu()
