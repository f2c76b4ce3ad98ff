"""The last choices in `concepts`: which direction of an operation, at which dose around its strength, and if less will do."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any

from benchmarks.concept_figures import LIVE
from reins_serve.calibration.fitting import largest_dose
from reins_serve.calibration.sweep import Candidate, Measured, best, close

Measure = Callable[[Sequence[Candidate]], list[Measured]]

FACTORS = {"setpoint": (0.75, 1.0, 1.25, 1.5), "add": (0.5, 1.0, 1.5)}
"""By operation: doses as multiples of the strength in the round before. Those of set-points are close, because each is held
against the one below: steps of a half made a strength of 1.5 of one that left nothing at 1.125, and it cost 2.4 points."""
COMPARED = 3
"""Directions that serve whose doses are measured."""


def edged(doses: Sequence[Measured]) -> list[tuple[float, float]]:
    """What is least for the best of a direction's doses, given from the smallest: each has at least the unsafe clips of the one
    below, so that none stands at the edge; what is below the first is not known."""
    found = [(float("inf"), doses[0].displacement)]
    for below, one in pairwise(doses):
        unsafe = {judge: max(rate, below.unsafe[judge]) for judge, rate in one.unsafe.items()}
        found.append(best(replace(one, unsafe=unsafe)))
    return found


def chosen_dose(operation: str, finalists: Sequence[Measured], measure: Measure) -> dict[str, Any]:
    """Direction and strength of an operation, with the doses that they were chosen among, JSON-ready.

    Args:
        finalists: What was measured of its directions, each at its best strength.
        measure: Measures candidates, each on the same prompts.
    """
    live = operation == LIVE
    going = close(finalists)[:COMPARED] if live else [min(finalists, key=best)]
    asked = [
        Candidate(one.candidate.direction, one.candidate.strength * by) for one in going for by in FACTORS[operation]
    ]
    found, size = measure(asked), len(FACTORS[operation])
    series = [found[first : first + size] for first in range(0, len(found), size)]
    costs = chain.from_iterable(edged(doses) if live else map(best, doses) for doses in series)
    place = min(enumerate(costs), key=lambda one: one[1])[0]
    taken, doses = found[place].candidate, series[place // size]
    return {
        "direction": taken.direction,
        "strength": taken.strength,
        "largest": largest_dose(doses, taken.strength),
        "doses": [one.figures() for one in doses],
        "others": [one.figures() for its in series if its is not doses for one in its],
    }


def least_dose(found: dict[str, Any], measure: Measure) -> dict[str, Any]:
    """What `chosen_dose` found, at the best of those doses up to it that left at most a clip more, on many other prompts.

    The dose below the chosen one may stand at the edge, or only not be known not to; few prompts of one draw cannot tell, nor what
    a push costs benign clips: 1.125 in the place of .9375 cost .6 points, with an interval down to -2.2.

    Args:
        measure: Measures candidates on prompts that had no part in the choice.
    """
    doses = [Measured.from_figures(one) for one in found["doses"]]
    chosen = next(one for one in doses if one.candidate.strength == found["strength"])
    limit = chosen.unsafe_rate + chosen.a_clip
    near = [one for one in doses if one.candidate.strength <= found["strength"] and one.unsafe_rate <= limit]
    asked = measure([one.candidate for one in near]) if len(near) > 1 else []
    strength = min(asked, key=best, default=chosen).candidate.strength
    largest = largest_dose(doses, strength)
    return found | {"strength": strength, "largest": largest, "less": [one.figures() for one in asked]}
