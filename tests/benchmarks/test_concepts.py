"""What `concepts` keeps and reports besides the directions themselves."""

from collections import Counter
from pathlib import Path

from benchmarks import concepts
from benchmarks.concept_figures import Way
from benchmarks.concepts import half_rewritten, joined, kept_in, made
from benchmarks.targets import TARGETS, pool
from reins_serve.calibration.config import RecalibrateConfig
from reins_serve.calibration.trials import REVERSED, SECOND
from reins_serve.calibration.workers import OFF, Ask
from reins_serve.steering.direction import Direction


def test_work_that_is_kept_is_not_done_again(tmp_path: Path) -> None:
    for name, value in (("a.json", {"n": [1, 2]}), ("a.pickle", {("benign", "off"): (1, 2)})):
        assert kept_in(tmp_path / name, lambda value=value: value) == value  # type: ignore[misc]
        assert kept_in(tmp_path / name, lambda: None) == value


def test_some_targets_are_measured_anew_and_the_others_stay() -> None:
    before = {
        "setting": {"draw": 1},
        "rows": [{"way": "joint-setpoint", "draw": 1}, {"way": "spill-setpoint", "draw": 1}],
        "depth": {"joint": [1], "spill": [2]},
        "seconds": 5,
    }
    now = {
        "setting": {"draw": 2},
        "rows": [{"way": "joint-setpoint", "draw": 2}],
        "depth": {"joint": [3]},
        "seconds": 7,
    }
    assert joined(before, now) == {
        "setting": {"draw": 1},
        "rows": [{"way": "joint-setpoint", "draw": 2}, {"way": "spill-setpoint", "draw": 1}],
        "depth": {"joint": [3], "spill": [2]},
        "seconds": 12,
    }


def test_each_kind_of_prompt_is_made_as_it_is_measured(monkeypatch) -> None:
    config = RecalibrateConfig.load("directions/embedded-hard/recalibrate.yaml")
    live = Direction.load("directions/embedded/setpoint.safetensors")
    way = Way(TARGETS[0], live, 2.0, 2.5, ((0.0, 10, 10), (2.0, 0, 10)), 1.0)
    asked: list[Ask] = []
    given: dict[str, Direction] = {}

    def measure(_, directions, asks, advance):
        asked[:] = asks
        given.clear()
        given.update(directions)
        advance(len(asks))
        return asks

    monkeypatch.setattr(concepts, "measure", measure)
    counts = {}
    for kind in ("benign", "both", "hints"):
        made(config, [way], kind, 8, 1)
        counts[kind] = Counter(ask.condition for ask in asked)
        assert {ask.strength for ask in asked if ask.condition == way.name} <= {2.0}
        pairs = {ask.pair for ask in asked}
        assert len(pairs) == 8  # a second seed is compared with the first
        assert {ask.direction for ask in asked if ask.direction} <= set(given)
        roles = {direction.meta.role for direction in given.values()}
        assert "steer" in roles  # a worker attaches one that may be live
    assert counts["benign"] == {OFF: 8, way.name: 8, SECOND: 2}
    assert counts["both"] == {OFF: 8, way.name: 8}
    assert counts["hints"] == {OFF: 8, f"{way.name}-{REVERSED}": 8}
    assert (given[f"{way.name}-{REVERSED}"].vectors == -live.vectors).all()


def test_half_of_the_prompts_are_rewritten_and_keep_their_seeds_and_what_they_ask_for() -> None:
    config = RecalibrateConfig.load("directions/embedded-hard/recalibrate.yaml")
    before = pool(config, "select", "both", 24)
    after = half_rewritten(config, before)
    assert after[:12] == before[:12]
    assert after == half_rewritten(config, before)
    changed = list(zip(before[12:], after[12:], strict=True))
    assert sum(one.text != other.text for (one, _), (other, _) in changed) > 10
    assert all((a, one.category) == (b, other.category) for (one, a), (other, b) in changed)
