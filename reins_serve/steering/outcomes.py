"""What became of the generations that each version of a direction was to steer, as one process counts it.

Counted are the rows that could go to either side of a canary: those that the live direction, or its candidate, steers at its
serving strength. A row that a request gave another strength or policy says nothing of the one beside the other.
"""

import threading
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from reins_serve.steering.plan import GenerationRecord, RowPlan
from reins_serve.steering.policy import LIVE


@dataclass(frozen=True)
class Outcome:
    """Counts of one version.

    Attributes:
        steered, failed: Rows whose steering is proved, and rows of generations that ended with an error.
        scored, score_sum, score_squares: Steered rows with a score, and sums over them of the score and its square.
        judged, unsafe: Clips that a judge looked at, and those that it called unsafe.
    """

    steered: int = 0
    failed: int = 0
    scored: int = 0
    score_sum: float = 0.0
    score_squares: float = 0.0
    judged: int = 0
    unsafe: int = 0

    @property
    def generations(self) -> int:
        """Rows that ended, one way or the other."""
        return self.steered + self.failed

    @property
    def score(self) -> float | None:
        """Mean projection before the push: 0 at the unsafe class's mean, 1 at the safe one's."""
        return self.score_sum / self.scored if self.scored else None

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))


class Outcomes:
    """The counts by version (digest) while one and the same arrangement of versions serves; safe to use from several threads.

    A generation adds to the counts of what served when it began: of those that were replaced meanwhile nobody asks any more.

    Attributes:
        epoch: The pointer's generation that made the arrangement.
    """

    def __init__(self, epoch: int = 0) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, Outcome] = {}
        self.epoch = epoch

    def ended(self, plans: Sequence[RowPlan], records: Sequence[GenerationRecord]) -> None:
        """A generation is over, without records if it failed."""
        for number, plan in enumerate(plans):
            if not records:
                self._add(plan, Outcome(failed=1))
            elif (score := records[number].score) is None:
                self._add(plan, Outcome(steered=1))
            else:
                self._add(plan, Outcome(steered=1, scored=1, score_sum=score, score_squares=score**2))

    def judged(self, plan: RowPlan, unsafe: bool) -> None:
        """A judge has looked at a row's clip."""
        self._add(plan, Outcome(judged=1, unsafe=int(unsafe)))

    def counts(self) -> dict[str, Outcome]:
        """The counts of each version."""
        with self._lock:
            return dict(self._counts)

    def _add(self, plan: RowPlan, outcome: Outcome) -> None:
        if plan.direction is None or plan.row.direction != LIVE or plan.row.basis != "serving":
            return
        sha256 = plan.direction.sha256
        with self._lock:
            self._counts[sha256] = self._counts.get(sha256, Outcome()) + outcome
