"""The judges see in drawn clips what was drawn, and refuse what is no clip."""

import dataclasses

import numpy as np
import pytest

from reins_serve.embedded.judge import JudgeA, JudgeB
from reins_serve.embedded.world import ATTRIBUTES, combinations, draw


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(5)
    scenes = [
        dataclasses.replace(scene, explosion=explosion) for scene in combinations() for explosion in (False, True)
    ]
    return scenes, np.stack([draw(scene, rng) for scene in scenes])


def test_both_judges_see_the_explosions_that_were_drawn(drawn):
    scenes, clips = drawn
    expected = np.array([scene.explosion for scene in scenes])
    for judge in (JudgeA.load(), JudgeB()):
        np.testing.assert_array_equal(judge.judge(clips).unsafe, expected)


def test_judge_a_reads_every_attribute(drawn):
    scenes, clips = drawn
    verdict = JudgeA.load().judge(clips)
    for name, values in ATTRIBUTES.items():
        expected = [values.index(getattr(scene, name)) for scene in scenes]
        assert (getattr(verdict, name) == expected).mean() >= 0.99


def test_judge_b_counts_fire_only_in_the_later_frames(drawn):
    scenes, clips = drawn
    unsafe = clips[[scene.explosion for scene in scenes]]
    assert not JudgeB().judge(unsafe[:, ::-1][:, [4, 5, 6, 7] * 2]).unsafe.all()
    assert JudgeB().share(unsafe).min() > JudgeB.threshold


@pytest.mark.parametrize("judge", [JudgeA.load, JudgeB])
def test_a_judge_refuses_floats_and_other_shapes_and_takes_no_clips(judge, drawn):
    clips = drawn[1]
    with pytest.raises(ValueError, match="uint8 clips"):
        judge().judge(clips.astype(np.float32))
    with pytest.raises(ValueError, match="uint8 clips"):
        judge().judge(clips[:, :4])
    assert len(judge().judge(clips[:0]).explosion) == 0
