"""The plan of one generation (rows, strengths, window), and the record of what it did. Counts are compared, never assumed."""

from collections.abc import Sequence
from dataclasses import dataclass

from reins_serve.errors import SteeringNotApplied
from reins_serve.steering.branches import BATCHED, COND, UNCOND
from reins_serve.steering.direction import Direction
from reins_serve.steering.policy import SteeringRow

COLUMNS = 5  # of the device's tally


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

    def pushes(self, kind: str) -> int:
        """Pushes that one call of a kind gives this row at one block while its window is open."""
        both = self.direction is not None and self.direction.branches == "both"
        return {COND: 1, UNCOND: int(both), BATCHED: 1 + both}[kind]


@dataclass
class Ledger:
    """What the host knows of one row, kept step by step: how often it had to be pushed.

    Attributes:
        planned: Pushes that the device's counter, with `reused`, must show: blocks x calls in the steps of the window.
        reused: Of those, the ones that a step cache answered for with an output computed under the same push.
        guarded: Of those planned and not reused, the ones of guards.
        steps: Steps inside the window.
    """

    planned: int = 0
    reused: int = 0
    guarded: int = 0
    steps: int = 0

    def enter(self, pushes: int, reused: bool, guards: bool) -> None:
        """Enter what a call had to push at one block, and whether that block guards."""
        self.planned += pushes
        self.reused += pushes * reused
        self.guarded += pushes * (guards and not reused)


@dataclass(frozen=True)
class GenerationRecord:
    """What was done to one clip, and whether that is proved.

    Attributes:
        direction, version, sha256, operation: The direction that steered it; None when unsteered.
        policy, strength, reason: What the request resolved to; `reason` says why a clip is unsteered.
        planned, applied, reused: Pushes by plan, by the device's counter, and those inside an output that a step cache used
            again; `applied + reused` equals `planned`.
        steps_steered: Denoising steps inside the window.
        displacement: Mean effective displacement of a token per push, `(h' - h)·d`, in the hidden states' scale.
        score: Mean projection before the push, in units of the gap: 0 at the unsafe class's mean, 1 at the safe one's.
        moved: Share of tokens that were pushed at all.
        proved: True only for a steered clip whose counter equals its plan.
        guarded: Share of its guards' calls in which one found the clip unsafe on its way, and pushed; None without a guard.
    """

    direction: str | None
    version: str | None
    sha256: str | None
    operation: str | None
    policy: str
    strength: float
    planned: int
    applied: int
    reused: int
    steps_steered: int
    displacement: float | None
    score: float | None
    moved: float | None
    steered: bool
    proved: bool
    reason: str | None
    guarded: float | None = None


def records(
    plans: Sequence[RowPlan], ledgers: Sequence[Ledger], tally: Sequence[Sequence[float]]
) -> list[GenerationRecord]:
    """Compare the device's tally with the plan and write one record a row.

    Args:
        tally: Per row: pushes, the sums over pushes of displacement, score and moved share, and those in which a guard acted.

    Raises:
        SteeringNotApplied: a row was pushed more or less often than planned, or a steered one never.
    """
    written = []
    for number, (plan, ledger, (applied, *sums, guarded)) in enumerate(zip(plans, ledgers, tally, strict=True)):
        direction = plan.direction
        if applied + ledger.reused != ledger.planned or (direction is not None and not ledger.planned):
            raise SteeringNotApplied(
                f"Row {number} was pushed {applied:g} times where the plan says {ledger.planned - ledger.reused}: the clip "
                "is discarded. Was the pipeline compiled, cached or changed after steering was attached? Attach to a freshly "
                "loaded pipeline."
            )
        displacement, score, moved = (s / applied if applied else None for s in sums)
        written.append(
            GenerationRecord(
                direction=direction.name if direction else None,
                version=direction.version if direction else None,
                sha256=direction.sha256 if direction else None,
                operation=direction.operation if direction else None,
                policy=plan.row.policy,
                strength=plan.row.strength,
                planned=ledger.planned,
                applied=int(applied),
                reused=ledger.reused,
                steps_steered=ledger.steps,
                displacement=displacement,
                score=score,
                moved=moved,
                steered=direction is not None,
                proved=direction is not None,
                reason=plan.row.reason,
                guarded=guarded / ledger.guarded if ledger.guarded else None,
            )
        )
    return written
