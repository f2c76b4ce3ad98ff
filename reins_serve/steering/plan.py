"""The plan of one generation (rows, strengths, window), and the record of what it did. Counts are compared, never assumed."""

from collections.abc import Sequence
from dataclasses import dataclass

from reins_serve.errors import SteeringNotApplied
from reins_serve.steering.direction import Direction
from reins_serve.steering.policy import SteeringRow


@dataclass(frozen=True)
class RowPlan:
    """One row's choice joined with the direction it resolved to when the generation began (None: not steered)."""

    row: SteeringRow
    direction: Direction | None

    def steered_at(self, step: int, total: int | None) -> bool:
        """Whether the window is open at a step. At step 0 the total is not needed: a window starts there or later."""
        if self.direction is None:
            return False
        window = self.direction.meta.window
        return window.start == 0 if total is None or step == 0 else step in window.steps(total)

    def steered_steps(self, total: int) -> int:
        """Number of steered steps of a generation of `total` denoising steps."""
        return sum(self.steered_at(step, total) for step in range(total))

    def applications(self, total: int, guided: bool) -> int:
        """Pushes that the device's counter must show: blocks x branches x steps in the window."""
        if self.direction is None:
            return 0
        branches = 2 if guided and self.direction.branches == "both" else 1
        return len(self.direction.blocks) * branches * self.steered_steps(total)


@dataclass(frozen=True)
class GenerationRecord:
    """What was done to one clip, and whether that is proved.

    Attributes:
        direction, version, sha256, operation: The direction that steered it; None when unsteered.
        policy, strength, reason: What the request resolved to; `reason` says why a clip is unsteered.
        planned, applied: Pushes by plan and by the device's counter.
        steps_steered: Denoising steps inside the window.
        displacement: Mean effective displacement of a token per push, `(h' - h)·d`, in the hidden states' scale.
        score: Mean projection before the push, in units of the gap: 0 at the unsafe class's mean, 1 at the safe one's.
        moved: Share of tokens that were pushed at all.
        proved: True only for a steered clip whose counter equals its plan.
    """

    direction: str | None
    version: str | None
    sha256: str | None
    operation: str | None
    policy: str
    strength: float
    planned: int
    applied: int
    steps_steered: int
    displacement: float | None
    score: float | None
    moved: float | None
    steered: bool
    proved: bool
    reason: str | None


def records(
    plans: Sequence[RowPlan], total: int, guided: bool, tally: Sequence[Sequence[float]]
) -> list[GenerationRecord]:
    """Compare the device's tally with the plan and write one record a row.

    Args:
        tally: Per row: pushes, and the sums over pushes of displacement, score and moved share.

    Raises:
        SteeringNotApplied: a row was pushed more or less often than planned.
    """
    written = []
    for number, (plan, (applied, *sums)) in enumerate(zip(plans, tally, strict=True)):
        planned = plan.applications(total, guided)
        if applied != planned:
            raise SteeringNotApplied(
                f"Row {number} was pushed {int(applied)} times where the plan says {planned}: the clip is discarded. Was the "
                "pipeline compiled, cached or changed after steering was attached? Attach to a freshly loaded pipeline."
            )
        displacement, score, moved = (s / applied if applied else None for s in sums)
        direction = plan.direction
        written.append(
            GenerationRecord(
                direction=direction.name if direction else None,
                version=direction.version if direction else None,
                sha256=direction.sha256 if direction else None,
                operation=direction.operation if direction else None,
                policy=plan.row.policy,
                strength=plan.row.strength,
                planned=planned,
                applied=int(applied),
                steps_steered=plan.steered_steps(total),
                displacement=displacement,
                score=score,
                moved=moved,
                steered=direction is not None,
                proved=direction is not None and planned > 0,
                reason=plan.row.reason,
            )
        )
    return written
