"""What `concepts` keeps and reports besides the directions themselves."""

from pathlib import Path

from benchmarks.concepts import best, kept_in
from reins_serve.calibration.sweep import Candidate, Measured


def test_the_cheapest_is_the_best_and_of_equals_the_smallest_push() -> None:
    def measured(unsafe: int, displacement: float) -> Measured:
        return Measured(Candidate("d", displacement), 48, {"a": unsafe / 48, "b": 0.0}, 0.0, displacement)

    found = [measured(1, 0.5), measured(0, 3.0), measured(0, 2.0)]
    assert min(found, key=best) is found[2]


def test_work_that_is_kept_is_not_done_again(tmp_path: Path) -> None:
    for name, value in (("a.json", {"n": [1, 2]}), ("a.pickle", {("benign", "off"): (1, 2)})):
        assert kept_in(tmp_path / name, lambda value=value: value) == value  # type: ignore[misc]
        assert kept_in(tmp_path / name, lambda: None) == value
