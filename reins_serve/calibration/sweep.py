"""The choice of block, operation and strength on selection prompts, by successive halving: all at few clips, the best at more."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from reins_serve.calibration.config import Round
from reins_serve.calibration.prompt_sets import PromptRow
from reins_serve.calibration.workers import Ask, Judged

DIGITS = 6
Measure = Callable[[Sequence[Ask]], list[Judged]]


@dataclass(frozen=True)
class Candidate:
    """A direction by its name, at a strength in its own unit."""

    direction: str
    strength: float

    @property
    def condition(self) -> str:
        """The name under which its clips are counted."""
        return f"{self.direction}@{self.strength:g}"


@dataclass(frozen=True)
class Measured:
    """A candidate's figures at `n` prompts of each kind.

    Attributes:
        unsafe: Unsafe rate by judge, on prompts that ask for unsafe content.
        loss: Loss of the worst benign attribute against the un-steered clips, as a share.
        displacement: Mean effective displacement of a token per push.
    """

    candidate: Candidate
    n: int
    unsafe: Mapping[str, float]
    loss: float
    displacement: float

    @property
    def unsafe_rate(self) -> float:
        """By the harsher judge."""
        return max(self.unsafe.values())

    @property
    def cost(self) -> float:
        """What is minimised: the unsafe rate plus the worst benign loss. Sums of as many clips are equal."""
        return round(self.unsafe_rate + max(self.loss, 0.0), DIGITS)

    @property
    def a_clip(self) -> float:
        """What one clip more costs, and a little for rounding."""
        return 1.001 / self.n

    def figures(self) -> dict[str, object]:
        """For a report, JSON-ready."""
        return asdict(self) | {"cost": self.cost}

    @classmethod
    def from_figures(cls, figures: Mapping[str, Any]) -> "Measured":
        """From what `figures` gave; the cost follows from the others."""
        kept = {name: value for name, value in figures.items() if name != "cost"}
        return cls(**kept | {"candidate": Candidate(**figures["candidate"])})


@dataclass(frozen=True)
class Trial:
    """Prompts of both kinds with the seed of each, un-steered benign clips, and how clips are made.

    Without benign prompts nothing is lost.

    Attributes:
        benign_off: What was kept in the un-steered benign clips, in the order of `benign`.
    """

    unsafe: Sequence[tuple[PromptRow, int]]
    benign: Sequence[tuple[PromptRow, int]]
    benign_off: Sequence[Mapping[str, bool]]
    measure: Measure

    def of(self, candidates: Sequence[Candidate], n: int) -> list[Measured]:
        """Measure candidates on the first `n` prompts of each kind; all share the calls, a direction a row."""
        rows = [*self.unsafe[:n], *self.benign[:n]]
        asks = [Ask(prompt, seed, c.condition, c.direction, c.strength) for prompt, seed in rows for c in candidates]
        judged = self.measure(asks)
        return [self._figures(c, judged[place :: len(candidates)], n) for place, c in enumerate(candidates)]

    def _figures(self, candidate: Candidate, clips: Sequence[Judged], n: int) -> Measured:
        harm, benign = clips[:n], clips[n:]
        losses = [
            np.mean([off[name] for off in self.benign_off[:n]]) - np.mean([clip.kept[name] for clip in benign])
            for name in (benign[0].kept if benign else ())
        ]
        return Measured(
            candidate,
            n,
            {judge: float(np.mean([clip.unsafe[judge] for clip in harm])) for judge in harm[0].unsafe},
            float(max(losses, default=0.0)),
            float(np.mean([clip.displacement for clip in harm])),
        )


def best(one: Measured) -> tuple[float, float]:
    """What is least for the best: the cost, and of equals the displacement."""
    return one.cost, one.displacement


def close(found: Sequence[Measured]) -> list[Measured]:
    """Those that a single clip may have set apart from the cheapest, the smallest push first."""
    limit = min(one.cost + one.a_clip for one in found)
    return sorted((one for one in found if one.cost <= limit), key=lambda one: one.displacement)


def preferred(found: Sequence[Measured]) -> Measured:
    """The smallest push among those that cost no more than one clip above the cheapest, all at the same number of clips.

    On the same prompts and seeds a difference of k clips has a standard error of sqrt(k) clips or more, so a single clip tells
    nothing apart; this is the one-standard-error rule (Breiman et al. 1984, 3.4.3). It matters: on a model trained for a third
    of its time the cheapest of three doses within one clip of each other was the strongest, which then cost 5 points.
    """
    return close(found)[0]


def off_the_edge(doses: Sequence[Measured], strength: float) -> float:
    """The least of the doses from `strength` on that leaves the dose below it as safe as `strength` was, within one clip, and
    costs no more than `strength` within one clip; `strength` itself where there is none.

    The smallest push that removes everything on few prompts may stand where the curve falls steeply. On the harder embedded world
    one left 0 of 48 clips unsafe, 3 of 96, and .07 of 402 that asked for both concepts; three quarters of it 18 of the 96.

    Args:
        doses: One direction at several strengths, `strength` among them, all at the same number of clips.
    """
    at = next(one for one in doses if one.candidate.strength == strength)
    for below, one in pairwise(sorted(doses, key=lambda dose: dose.candidate.strength)):
        holds = below.unsafe_rate <= at.unsafe_rate + at.a_clip
        if one.candidate.strength >= strength and holds and one.cost <= at.cost + at.a_clip:
            return one.candidate.strength
    return strength


def successive_halving(trial: Trial, candidates: Sequence[Candidate], rounds: Sequence[Round]) -> list[list[Measured]]:
    """Rounds that each keep the cheapest of the last; a round without a number takes all.

    Returns each round's figures, cheapest first; ties go to the smaller displacement.
    """
    done: list[list[Measured]] = []
    left = list(candidates)
    for one in rounds:
        found = trial.of(left[: one.candidates], one.prompts)
        done.append(sorted(found, key=best))
        left = [m.candidate for m in done[-1]]
    return done
