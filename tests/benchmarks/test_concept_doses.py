"""How `concepts` chooses a direction's strength among doses: none that stands at the edge."""

from collections.abc import Sequence

import pytest

from benchmarks.concept_doses import FACTORS, Measure, chosen_dose, edged, least_dose
from reins_serve.calibration.sweep import Candidate, Measured, best, close

N = 48


def measured(name: str, strength: float, unsafe: int, lost: int = 0, displacement: float | None = None) -> Measured:
    size = strength if displacement is None else displacement
    return Measured(Candidate(name, strength), N, {"a": unsafe / N, "b": 0.0}, lost / N, size)


def doses(**unsafe: Sequence[int]) -> Measure:
    """Gives each direction's doses the numbers of unsafe clips that are laid down for it."""
    left = {name: iter(counts) for name, counts in unsafe.items()}
    return lambda asked: [measured(c.direction, c.strength, next(left[c.direction])) for c in asked]


def test_the_cheapest_is_the_best_and_of_equals_the_smallest_push() -> None:
    found = [measured("d", 0.5, 1), measured("d", 3.0, 0), measured("d", 2.0, 0)]
    assert min(found, key=best) is found[2]


def test_a_single_clip_sets_nothing_apart() -> None:
    found = [measured("far", 1, 0, 3), measured("near", 2, 0, 1), measured("best", 3, 0)]
    assert [one.candidate.direction for one in close(found)] == ["near", "best"]


def test_a_dose_at_the_edge_counts_what_the_one_below_it_left() -> None:
    found = [measured("d", 0.75, 5), measured("d", 1, 0), measured("d", 1.5, 0, 1), measured("d", 2, 0, 2)]
    assert [cost for cost, _ in edged(found)] == pytest.approx([float("inf"), 5 / N, 1 / N, 2 / N], abs=1e-6)


def test_of_directions_that_serve_the_one_that_holds_below_its_dose_is_taken() -> None:
    finalists = [measured("edge", 1, 0), measured("wide", 1, 1, displacement=2), measured("worse", 1, 4)]
    found = chosen_dose("setpoint", finalists, doses(edge=(5, 0, 2, 2), wide=(1, 0, 0, 0)))
    assert (found["direction"], found["strength"]) == ("wide", 1.25)
    assert [one["candidate"]["strength"] for one in found["doses"]] == [0.75, 1.0, 1.25, 1.5]
    assert {one["candidate"]["direction"] for one in found["others"]} == {"edge"}
    assert found["largest"] == 1.5


def test_clips_that_are_equal_in_number_cost_the_same_in_whatever_order_they_are_summed() -> None:
    one, other = measured("d", 1, 1, 1), Measured(Candidate("d", 1.5), N, {"a": 0.0}, 1 - (1 - 2 / N), 1.5)
    assert other.loss != one.cost
    assert min([other, one], key=best) is one


def test_an_addition_is_taken_at_its_cheapest_dose() -> None:
    found = chosen_dose("add", [measured("a", 0.4, 1), measured("b", 0.4, 2)], doses(a=(40, 1, 2)))
    assert (found["direction"], found["strength"]) == ("a", 0.4)
    assert len(found["doses"]) == len(FACTORS["add"])
    assert found["others"] == []


@pytest.mark.parametrize(
    ("first", "others", "strength", "tried"),
    [
        ((5, 0, 0, 1), [0, 0], 1.0, [1.0, 1.25]),  # 1.25 was taken, for what 0.75 left
        ((5, 1, 0, 1), [2, 1], 1.25, [1.0, 1.25]),
        ((0, 0, 0, 0), [3, 1, 1], 1.0, [0.75, 1.0, 1.25]),
        ((5, 4, 2, 0), [], 1.5, []),  # everything below it left more
    ],
)
def test_the_best_dose_on_other_prompts_serves_and_of_equals_the_smallest(
    first: Sequence[int], others: Sequence[int], strength: float, tried: list[float]
) -> None:
    found = chosen_dose("setpoint", [measured("d", 1, 0)], doses(d=first))
    if first[0] == 0:
        found |= {"strength": 1.25}
    less = least_dose(found, doses(d=others))
    assert less["strength"] == strength
    assert [one["candidate"]["strength"] for one in less["less"]] == tried
    assert less["doses"] == found["doses"]
