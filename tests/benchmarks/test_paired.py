"""Series take turns in every order, and a ratio is that of the pairs."""

from collections import Counter

import pytest

from benchmarks.paired import interleave, ratio


def test_every_series_is_called_once_a_round_and_comes_first_as_often_as_others() -> None:
    said: list[str] = []
    times = interleave({name: (lambda name=name: said.append(name)) for name in "abcdefghi"}, rounds=90, warm=2)  # type: ignore[misc]
    assert Counter(said) == dict.fromkeys("abcdefghi", 92)
    rounds = [said[place : place + 9] for place in range(18, len(said), 9)]
    assert all(set(one) == set("abcdefghi") for one in rounds)
    assert all(2 <= count <= 25 for count in Counter(one[0] for one in rounds).values())
    assert len({tuple(one) for one in rounds}) > 80
    assert all(len(its) == 90 for its in times.values())


def test_the_ratio_is_the_median_of_pairs_and_its_interval_holds_it() -> None:
    base = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    found = ratio([1.1 * one for one in base], base)
    assert found.median == found.low == found.high == pytest.approx(1.1)
    spread = ratio([1.0, 2.2, 4.8, 8.8, 17.6, 35.2], base)
    assert spread.median == pytest.approx(1.1)
    assert spread.low <= spread.median <= spread.high
    assert (spread.within(1.3), spread.within(0.9), spread.within(1.1)) == ("met", "not met", "not resolved")
    few = ratio([1.0, 2.2, 4.8], base[:3])
    assert (few.within(1.3), few.within(0.9)) == ("not resolved", "not resolved")


def test_an_aim_finer_than_what_two_equal_series_differ_by_is_not_resolved() -> None:
    good = ratio([1.0] * 6, [1.0] * 6)
    assert good.beside(ratio([1.002] * 6, [1.0] * 6), 1.003) == "met"
    assert good.beside(ratio([1.01] * 6, [1.0] * 6), 1.003) == "not resolved"
    assert good.beside(ratio([0.99] * 6, [1.0] * 6), 1.003) == "not resolved"
