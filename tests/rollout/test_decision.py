"""When an automatic canary is promoted, withdrawn or left alone, by counts and limits alone."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from reins_serve.errors import ReinsError
from reins_serve.rollout.decision import decide, share
from reins_serve.rollout.limits import Automatic, CanaryLimits
from reins_serve.steering.outcomes import Outcome

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIVE = Outcome(steered=990, failed=10)


def automatic(**limits: Any) -> Automatic:
    declared = CanaryLimits.of({"min_generations": 100, "max_failed_rate": 0.05} | limits)
    return Automatic(limits=declared, deadline=NOW + timedelta(hours=1))


def scored(n: int, mean: float, spread: float = 0.1) -> Outcome:
    """Half of n scores lies above the mean by the spread, half below."""
    return Outcome(steered=n, scored=n, score_sum=n * mean, score_squares=n * (mean**2 + spread**2))


def action(candidate: Outcome, late: bool = False, live: Outcome = LIVE, **limits: Any) -> str | None:
    decision = decide(automatic(**limits), candidate, live, NOW + timedelta(hours=2 * late))
    return None if decision is None else decision.action


@pytest.mark.parametrize(
    ("steered", "failed", "expected"),
    [
        (99, 0, None),  # one generation too few
        (100, 0, "promote"),  # upper bound 3.7 %
        (99, 1, None),  # 1 %, but up to 5.4 %
        (199, 1, "promote"),
        (95, 5, None),  # at the limit: not shown
        (88, 12, "withdraw"),  # at least 7 %
        (10, 5, "withdraw"),  # at once, before the 100
        (0, 0, None),
    ],
)
def test_the_whole_interval_must_keep_or_break_a_limit(steered: int, failed: int, expected: str | None) -> None:
    assert action(Outcome(steered=steered, failed=failed)) == expected


@pytest.mark.parametrize(("steered", "failed"), [(0, 0), (99, 0), (99, 1)])
def test_what_is_not_shown_in_time_is_withdrawn(steered: int, failed: int) -> None:
    assert action(Outcome(steered=steered, failed=failed), late=True) == "withdraw"


def test_what_is_shown_in_time_is_promoted_also_when_it_is_seen_late() -> None:
    assert action(Outcome(steered=100), late=True) == "promote"


@pytest.mark.parametrize(
    ("candidate", "live", "expected"),
    [
        (Outcome(steered=300, failed=3), LIVE, "promote"),
        (Outcome(steered=300, failed=60), LIVE, "withdraw"),
        (Outcome(steered=240, failed=60), Outcome(steered=700, failed=300), "promote"),  # bad, but better than live
        (Outcome(steered=300, failed=3), Outcome(), None),  # nothing to compare with
    ],
)
def test_failures_are_compared_with_those_of_the_live_version(
    candidate: Outcome, live: Outcome, expected: str | None
) -> None:
    assert action(candidate, live=live, max_failed_rate=None, max_failed_excess=0.03) == expected


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (scored(100, 0.5), "promote"),
        (scored(100, 0.21), None),  # the mean's interval reaches below
        (scored(100, 0.1), "withdraw"),
        (scored(100, 0.9), "withdraw"),
        (Outcome(steered=100), None),  # no scores at all
    ],
)
def test_the_mean_score_lies_between_its_limits(candidate: Outcome, expected: str | None) -> None:
    assert action(candidate, min_score=0.2, max_score=0.8) == expected


@pytest.mark.parametrize(
    ("judged", "unsafe", "expected"),
    [(0, 0, None), (50, 0, None), (80, 0, "promote"), (80, 15, "withdraw")],
)
def test_a_judges_verdicts_count_and_without_them_nothing_is_shown(
    judged: int, unsafe: int, expected: str | None
) -> None:
    assert action(Outcome(steered=500, judged=judged, unsafe=unsafe), max_unsafe_rate=0.05) == expected


def test_every_limit_must_be_kept() -> None:
    good = Outcome(steered=500, scored=500, score_sum=250, score_squares=130, judged=500)
    limits = {"max_failed_excess": 0.05, "min_score": 0.2, "max_unsafe_rate": 0.05}
    assert action(good, **limits) == "promote"
    assert action(Outcome(steered=500, scored=500, score_sum=250, score_squares=130), **limits) is None


def test_the_reason_has_the_numbers() -> None:
    promoted = decide(automatic(max_unsafe_rate=0.05), Outcome(steered=199, failed=1, judged=100), LIVE, NOW)
    assert promoted is not None
    assert promoted.why == (
        "every limit is kept after 200 generations of the candidate (at least 100): 1 of 200 failed (0.5 %, 95 % interval "
        "0.0883 % to 2.78 %), at most 5 %; 0 of 100 judged clips unsafe (0 %, 95 % interval 0 % to 3.7 %), at most 5 %"
    )
    withdrawn = decide(automatic(), Outcome(failed=20), LIVE, NOW)
    assert withdrawn is not None and "a limit is broken after 20 generations" in withdrawn.why


def test_the_interval_of_a_share_is_wilsons() -> None:
    assert share(1, 200)[1:] == pytest.approx((0.000883, 0.02778), abs=1e-5)  # Newcombe 1998's formula, by hand
    assert share(0, 0)[1:] == (0, 1)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"min_generations": 10}, "say how many may fail"),
        ({"min_generations": 0, "max_failed_rate": 0.1}, "min_generations"),
        ({"max_failed_rate": 0.1}, "min_generations: Field required"),
        ({"min_generations": 10, "max_failed_rate": 1.5}, "max_failed_rate"),
        ({"min_generations": 10, "max_failed_rate": float("nan")}, "max_failed_rate"),
        ({"min_generations": 10, "max_failed_rate": 0.1, "min_score": 0.5, "max_score": 0.5}, "below max_score"),
        ({"min_generations": 10, "max_failed_rate": 0.1, "deadline_s": 0}, "deadline_s"),
        ({"min_generations": 10, "max_failed_rate": 0.1, "max_fail": 0.1}, "max_fail"),
    ],
)
def test_limits_that_say_too_little_or_nonsense_are_refused(limits: dict, reason: str) -> None:
    with pytest.raises(ReinsError, match=reason) as refused:
        CanaryLimits.of(limits)
    assert refused.value.code == "invalid_value"
