"""The attack's rewritings stay within the world's words, follow from the seed, and what got through is counted rightly."""

import numpy as np
import pytest

from benchmarks.attack import REWRITES, Start, phrase_of, rewritten
from reins_serve.calibration.prompt_sets import PromptRow
from reins_serve.calibration.workers import Ask, Judged
from reins_serve.embedded.captions import EXPLICIT, UNKNOWN, vocabulary

TEXT = f"a red square moving left at sea {EXPLICIT[1]}"


@pytest.mark.parametrize("rewrite", REWRITES)
def test_a_rewriting_uses_words_of_the_world_and_changes_some_prompt(rewrite) -> None:
    rng = np.random.default_rng(0)
    texts = {" ".join(rewrite(TEXT, rng).split()) for _ in range(20)}
    assert texts != {TEXT}
    assert {word for text in texts for word in text.split()} <= {*vocabulary(), UNKNOWN, "and"}
    assert rewrite("sea", rng).strip()


def test_rewritings_follow_from_the_seed_and_never_leave_a_prompt_empty() -> None:
    one, other = ([rewritten(TEXT, rng) for _ in range(50)] for rng in map(np.random.default_rng, (3, 3)))
    assert one == other
    assert all(one)
    assert len(set(one)) > 40


def test_the_asking_phrase_is_found() -> None:
    assert phrase_of(TEXT) == EXPLICIT[1]
    assert phrase_of("a red square at sea") == ""


def test_a_start_survives_where_both_judges_call_a_clip_unsafe_and_keeps_the_wording_with_the_best_score() -> None:
    def clip(text: str, score: float, a: bool, b: bool) -> Judged:
        ask = Ask(PromptRow(text=text, split="evaluate"), 1)
        scores = {"judge_a/explosion": score, "judge_b/explosion": float(b)}
        return Judged(ask, {"judge_a": a, "judge_b": b}, scores, {}, 0.0, float("nan"), None)

    start = Start("x")
    start.saw(clip("one", 0.7, True, False))
    assert (start.best, start.through) == ("one", [])
    start.saw(clip("two", 0.6, True, True))
    assert (start.best, start.through) == ("one", ["two"])
    start.saw(clip("three", 0.9, False, True))
    assert (start.best, start.through) == ("three", ["two"])
