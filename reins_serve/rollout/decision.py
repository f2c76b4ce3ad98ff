"""The decision of an automatic canary: from counts and declared limits to a promotion, a withdrawal, or patience.

Every limit is compared with a 95 % interval, not with the bare rate: Wilson's for a share, Newcombe's for the difference of two,
Student's t for a mean. A limit is kept once the whole interval keeps it, and broken once the whole interval breaks it; until
then the canary goes on. So five failures in a hundred never pass for "at most 5 %", and to show at most 1 % takes about 380
generations without a failure.

The counts are looked at every few seconds, so that chance gets several tries: it may make a candidate that lies at a limit pass,
or end a good canary early. `min_generations` is the guard against the first; the second costs another canary.
"""

import math
from datetime import datetime
from typing import Literal, NamedTuple

from reins_serve.rollout.limits import Automatic, CanaryLimits
from reins_serve.steering.outcomes import Outcome

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A measured value and its interval."""

    value: float
    low: float
    high: float


class Finding(NamedTuple):
    """Whether a limit is kept (None: not shown yet), with the numbers."""

    kept: bool | None
    text: str


class Decision(NamedTuple):
    """What to do with the candidate, and why."""

    action: Literal["promote", "withdraw"]
    why: str


def decide(automatic: Automatic, candidate: Outcome, live: Outcome, now: datetime) -> Decision | None:
    """What the limits say of these counts at this time; None: wait.

    A broken limit ends the canary at once; kept limits promote after `min_generations`; the deadline ends what is left open.
    """
    limits = automatic.limits
    found = findings(limits, candidate, live)
    told = "; ".join(finding.text for finding in found)
    seen = f"{candidate.generations} generations of the candidate"
    if any(finding.kept is False for finding in found):
        return Decision("withdraw", f"a limit is broken after {seen}: {told}")
    enough = candidate.generations >= limits.min_generations
    if enough and all(finding.kept for finding in found):
        return Decision("promote", f"every limit is kept after {seen} (at least {limits.min_generations}): {told}")
    if now >= automatic.deadline:
        return Decision(
            "withdraw",
            f"not shown to keep its limits in time, after {seen} (at least {limits.min_generations}): {told}",
        )
    return None


def findings(limits: CanaryLimits, candidate: Outcome, live: Outcome) -> list[Finding]:
    """Each declared limit, with what the counts say of it."""
    found = []
    failed = share(candidate.failed, candidate.generations)
    if limits.max_failed_rate is not None:
        told = f"{candidate.failed} of {candidate.generations} failed"
        found.append(_at_most(failed, limits.max_failed_rate, told, percent=True))
    if limits.max_failed_excess is not None:
        excess = _difference(failed, share(live.failed, live.generations))
        told = f"failed more often than the live version ({live.failed} of {live.generations}) by"
        found.append(_at_most(excess, limits.max_failed_excess, told, percent=True))
    if limits.max_unsafe_rate is not None:
        told = f"{candidate.unsafe} of {candidate.judged} judged clips unsafe"
        found.append(_at_most(share(candidate.unsafe, candidate.judged), limits.max_unsafe_rate, told, percent=True))
    if limits.max_score is not None:
        found.append(_at_most(_mean(candidate), limits.max_score, "mean score", percent=False))
    if limits.min_score is not None:
        found.append(_at_least(_mean(candidate), limits.min_score, "mean score"))
    return found


def share(hits: int, n: int) -> Interval:
    """A share of n with its interval (Wilson 1927); of nothing, everything is possible."""
    from scipy.stats import binomtest

    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    bounds = binomtest(hits, n).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(hits / n, float(bounds.low), float(bounds.high))


def _difference(one: Interval, other: Interval) -> Interval:
    """Of two independent shares (Newcombe 1998, method 10)."""
    if math.isnan(one.value) or math.isnan(other.value):
        return Interval(math.nan, -1.0, 1.0)
    value = one.value - other.value
    low = value - math.hypot(one.value - one.low, other.high - other.value)
    high = value + math.hypot(one.high - one.value, other.value - other.low)
    return Interval(value, low, high)


def _mean(outcome: Outcome) -> Interval:
    """The mean score (Student's t); of less than two scores, everything is possible."""
    from scipy.stats import t

    n, mean = outcome.scored, outcome.score
    if mean is None or n < 2:
        return Interval(math.nan if mean is None else mean, -math.inf, math.inf)
    variance = max(0.0, (outcome.score_squares - n * mean**2) / (n - 1))
    reach = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * math.sqrt(variance / n)
    return Interval(mean, mean - reach, mean + reach)


def _at_most(found: Interval, limit: float, told: str, percent: bool) -> Finding:
    kept = True if found.high <= limit else False if found.low > limit else None
    return Finding(kept, f"{told} {_said(found, percent)}, at most {_number(limit, percent)}")


def _at_least(found: Interval, limit: float, told: str) -> Finding:
    kept = True if found.low >= limit else False if found.high < limit else None
    return Finding(kept, f"{told} {_said(found, False)}, at least {_number(limit, False)}")


def _said(found: Interval, percent: bool) -> str:
    low, high = (_number(bound, percent) for bound in (found.low, found.high))
    return f"({_number(found.value, percent)}, 95 % interval {low} to {high})"


def _number(value: float, percent: bool) -> str:
    return "nothing" if math.isnan(value) else f"{100 * value:.3g} %" if percent else f"{value:.3g}"
