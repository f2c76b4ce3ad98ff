"""What a direction of the harder world is for: how its clips are counted, and which prompts it is measured on."""

import pytest

from benchmarks.targets import KINDS, TARGETS, Target, in_turn, pool
from reins_serve.calibration.config import RecalibrateConfig
from reins_serve.calibration.prompt_sets import PromptRow
from reins_serve.calibration.workers import Ask, Judged

JOINT, EXPLOSION, SPILL = TARGETS
CONFIGS = [f"directions/{model}/recalibrate.yaml" for model in ("embedded-hard", "embedded-hard-i2v")]


def clip(category: str | None, explosion: float, spill: float, spill_by_b: float | None = None) -> Judged:
    scores = {"judge_a/explosion": explosion, "judge_a/spill": spill}
    scores |= {"judge_b/explosion": explosion, "judge_b/spill": spill if spill_by_b is None else spill_by_b}
    ask = Ask(PromptRow(text="a clip", split="evaluate", category=category), 1)
    return Judged(ask, {"judge_a": True, "judge_b": False}, scores, {"shape": True}, 0.0, 20.0, None)


@pytest.mark.parametrize(
    ("target", "shown", "unsafe"),
    [
        (JOINT, (0.9, 0.1), True),
        (JOINT, (0.1, 0.9), True),
        (JOINT, (0.1, 0.1), False),
        (EXPLOSION, (0.5, 0.1), True),
        (EXPLOSION, (0.1, 0.9), False),
        (SPILL, (0.9, 0.1), False),
        (SPILL, (0.1, 0.9), True),
    ],
)
def test_a_clip_is_unsafe_by_what_the_direction_shall_remove(target: Target, shown, unsafe: bool) -> None:
    assert target.as_counted(clip("both", *shown)).unsafe == {"judge_a": unsafe, "judge_b": unsafe}


@pytest.mark.parametrize(
    ("category", "spill", "kept"),
    [("spill", 0.9, True), ("both", 0.9, True), ("spill", 0.1, False), ("explosion", 0.1, True), (None, 0.9, False)],
)
def test_the_other_concept_is_kept_where_it_is_asked_for_and_kept_away_where_not(category, spill, kept) -> None:
    assert EXPLOSION.as_counted(clip(category, 0.1, spill)).kept == {"shape": True, "spill": kept}
    assert JOINT.as_counted(clip(category, 0.1, spill)).kept == {"shape": True}


def test_the_other_concept_is_kept_only_if_both_judges_say_so() -> None:
    assert not EXPLOSION.as_counted(clip("spill", 0.1, 0.9, spill_by_b=0.0)).kept["spill"]


@pytest.mark.parametrize("path", CONFIGS)
def test_pools_share_no_seed_and_hold_what_they_are_named_for(path: str) -> None:
    config = RecalibrateConfig.load(path)
    pools = {(split, kind): pool(config, split, kind, 12) for split in ("select", "evaluate") for kind in KINDS}
    seeds = [seed + extra for its in pools.values() for _, seed in its for extra in (0, 1)]
    assert len(set(seeds)) == len(seeds)
    for (split, kind), its in pools.items():
        for prompt, _ in its:
            assert prompt.split == split
            assert prompt.kind == {"benign": "benign", "hints": "implicit"}.get(kind, "unsafe")
            assert prompt.category == (kind if prompt.kind == "unsafe" else None)
            assert (prompt.image is not None) == ("i2v" in path)
        assert (
            len({prompt.group for prompt, _ in its}) > 6
        )  # a first round on the first few prompts sees many combinations


def test_prompts_come_from_each_pool_in_turn() -> None:
    rows = {kind: [(PromptRow(text=f"{kind} {n}", split="select"), n) for n in range(3)] for kind in "ab"}
    assert [prompt.text for prompt, _ in in_turn(list(rows.values()), 3)] == ["a 0", "b 0", "a 1"]


def test_another_draw_shows_the_same_combinations_with_other_seeds_and_words() -> None:
    config = RecalibrateConfig.load(CONFIGS[0])
    first, other = (pool(config, "evaluate", "both", 160, draw) for draw in (0, 1))
    assert {prompt.group for prompt, _ in first} == {prompt.group for prompt, _ in other}
    assert not {seed + extra for _, seed in first for extra in (0, 1)} & {seed for _, seed in other}
    assert len({prompt.text for prompt, _ in first} - {prompt.text for prompt, _ in other}) > 80
