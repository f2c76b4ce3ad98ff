"""Whatever a judge does wrong is a JudgeError and never "safe"."""

import numpy as np
import pytest

from reins_serve.calibration.judges import Verdicts, evenly_spaced, run_judge
from reins_serve.errors import JudgeError

CLIPS = [np.zeros((4, 6, 5, 3), dtype=np.uint8), np.zeros((2, 8, 8, 3), dtype=np.uint8)]
PROMPTS = ["a meadow", "the sea"]


class Scripted:
    """A judge that gives the answer it was made with."""

    name, revision, deterministic = "scripted", "1", True
    unsafe = {"fire": 0.7, "smoke": 0.5}  # noqa: RUF012
    kept = ("colour",)

    def __init__(self, answer=None, may_skip=False):
        self.answer, self.may_skip, self.asked = answer, may_skip, 0

    def judge(self, clips, prompts, *, ids=None, seeds=None):
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def answer(fire=(0.1, 0.9), smoke=(0.2, 0.3), colour=(True, False), missing=None):
    return Verdicts(
        {"fire": np.asarray(fire), "smoke": np.asarray(smoke)},
        {"colour": np.asarray(colour)},
        None if missing is None else np.asarray(missing),
    )


def test_a_good_answer_comes_back_as_float32_and_bool():
    verdicts = run_judge(Scripted(answer()), CLIPS, PROMPTS)
    assert verdicts.unsafe["fire"].dtype == np.float32
    np.testing.assert_allclose(verdicts.unsafe["fire"], [0.1, 0.9], rtol=1e-6)
    np.testing.assert_array_equal(verdicts.kept["colour"], [True, False])
    assert verdicts.judged.all()


@pytest.mark.parametrize(
    "bad",
    [
        answer(fire=(np.nan, 0.9)),
        answer(fire=(np.inf, 0.9)),
        answer(fire=(-0.01, 0.9)),
        answer(fire=(0.1, 1.01)),
        answer(fire=(0.1,)),
        answer(fire=((0.1, 0.9),)),
        answer(fire=(0, 1)),
        answer(colour=(1, 0)),
        answer(colour=(True,)),
        answer(missing=(False, True)),
        answer(missing=(0, 0)),
        answer(missing=(False,)),
        Verdicts({"fire": np.array([0.1, 0.9])}, {"colour": np.array([True, True])}),
        Verdicts(answer().unsafe | {"gore": np.array([0.1, 0.9])}, answer().kept),
        Verdicts(answer().unsafe, {}),
        None,
    ],
)
def test_an_answer_that_breaks_its_promise_is_an_error(bad):
    with pytest.raises(JudgeError) as caught:
        run_judge(Scripted(bad), CLIPS, PROMPTS)
    assert caught.value.code == "judge_failed"
    assert "scripted" in str(caught.value)


def test_a_judge_that_raises_is_an_error_that_says_what_happened():
    with pytest.raises(JudgeError, match="scripted failed: ZeroDivisionError: by nothing"):
        run_judge(Scripted(ZeroDivisionError("by nothing")), CLIPS, PROMPTS)


@pytest.mark.parametrize(
    "clip",
    [
        np.zeros((4, 6, 5, 3), dtype=np.float32),
        np.zeros((6, 5, 3), dtype=np.uint8),
        np.zeros((4, 6, 5, 4), dtype=np.uint8),
        np.zeros((0, 6, 5, 3), dtype=np.uint8),
        [[1, 2]],
    ],
)
def test_what_is_no_clip_is_refused_before_the_judge_is_asked(clip):
    judge = Scripted(answer())
    with pytest.raises(JudgeError, match="Clip 1 is"):
        run_judge(judge, [CLIPS[0], clip], PROMPTS)
    assert judge.asked == 0


@pytest.mark.parametrize("short", [{"prompts": ["one"]}, {"ids": ["a"]}, {"seeds": [1, 2, 3]}])
def test_prompts_ids_and_seeds_must_be_as_many_as_the_clips(short):
    with pytest.raises(JudgeError, match="2 clips came with"):
        run_judge(Scripted(answer()), CLIPS, short.pop("prompts", PROMPTS), **short)


def test_without_clips_the_judge_is_not_asked():
    judge = Scripted(ZeroDivisionError())
    verdicts = run_judge(judge, [], [])
    assert judge.asked == 0
    assert verdicts.is_unsafe(judge.unsafe).shape == (0,)
    assert verdicts.kept["colour"].shape == (0,)


def test_any_label_at_or_above_its_threshold_is_unsafe():
    verdicts = run_judge(Scripted(answer(fire=(0.7, 0.69), smoke=(0.0, 0.0))), CLIPS, PROMPTS)
    np.testing.assert_array_equal(verdicts.is_unsafe(Scripted.unsafe), [True, False])
    verdicts = run_judge(Scripted(answer(fire=(0.0, 0.0), smoke=(0.4, 0.5))), CLIPS, PROMPTS)
    np.testing.assert_array_equal(verdicts.is_unsafe(Scripted.unsafe), [False, True])


@pytest.mark.parametrize("thresholds", [{"fire": 0.5}, {"fire": 0.5, "smoke": 0.5, "gore": 0.5}, {}])
def test_every_label_needs_a_threshold_and_the_reverse(thresholds):
    with pytest.raises(JudgeError, match="one threshold to each label"):
        answer().is_unsafe(thresholds)


def test_a_clip_without_a_verdict_is_neither_safe_nor_unsafe():
    found = run_judge(Scripted(answer(fire=(0.9, 0.0), missing=(False, True)), may_skip=True), CLIPS, PROMPTS)
    assert np.isnan(found.unsafe["fire"][1])
    assert not found.kept["colour"][1]
    with pytest.raises(JudgeError, match="neither safe nor unsafe"):
        found.is_unsafe(Scripted.unsafe)
    np.testing.assert_array_equal(found.take(found.judged).is_unsafe(Scripted.unsafe), [True])


def test_a_nan_is_refused_even_where_a_judge_may_skip():
    with pytest.raises(JudgeError, match="no probability"):
        run_judge(Scripted(answer(fire=(np.nan, 0.1), missing=(False, True)), may_skip=True), CLIPS, PROMPTS)


@pytest.mark.parametrize(
    ("length", "count", "expected"),
    [(8, 8, range(8)), (16, 4, [0, 5, 10, 15]), (9, 1, [4]), (1, 4, [0, 0, 0, 0]), (2, 3, [0, 0, 1])],
)
def test_frames_are_evenly_spaced_from_the_first_to_the_last(length, count, expected):
    np.testing.assert_array_equal(evenly_spaced(length, count), list(expected))
