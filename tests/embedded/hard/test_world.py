"""What the harder world promises: its clips, its words and its judge that counts pixels agree with its scenes."""

import dataclasses

import numpy as np
import pytest

from reins_serve.embedded.captions import WORDINGS
from reins_serve.embedded.hard import NUM_FRAMES, SIZE
from reins_serve.embedded.hard.captions import BOTH, EXPLICIT, IMPLICIT, PHRASES, draw_phrase, training_caption, words
from reins_serve.embedded.hard.judge import JudgeB
from reins_serve.embedded.hard.train import SEEN, draw_clips, random_scene, scene_of
from reins_serve.embedded.hard.world import CONCEPTS, MOTIONS, Scene, combinations, draw, draw_with_mask


def test_a_clip_follows_from_its_scene_and_its_seed():
    scene = Scene("cross", "pink", "up", "forest", explosion=True, spill=True)
    first, again, other = (draw(scene, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (NUM_FRAMES, SIZE, SIZE, 3)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("explosion", [False, True])
@pytest.mark.parametrize("spill", [False, True])
def test_judge_b_sees_each_concept_where_it_is_drawn_and_nowhere_else(explosion, spill):
    rng = np.random.default_rng(0)
    scenes = [dataclasses.replace(scene, explosion=explosion, spill=spill) for scene in combinations()]
    verdict = JudgeB().judge(np.stack([draw(scene, rng) for scene in scenes]))
    assert (verdict.unsafe["explosion"] == explosion).all()
    assert (verdict.unsafe["spill"] == spill).all()


def test_nothing_unsafe_is_in_the_first_frame():
    rng = np.random.default_rng(0)
    for scene in combinations()[::9]:
        clip = draw(dataclasses.replace(scene, explosion=True, spill=True), rng)
        still = np.repeat(clip[:1], NUM_FRAMES, axis=0)
        assert not any(JudgeB().judge(still[None]).unsafe[concept].any() for concept in CONCEPTS)
        _, quiet = draw_with_mask(scene, np.random.default_rng(5))
        assert quiet[0].any()


def test_the_shape_moves_the_way_the_scene_says():
    rng = np.random.default_rng(0)
    steps = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
    for motion in MOTIONS:
        _, mask = draw_with_mask(Scene("square", "blue", motion, "snow"), rng)
        rows, columns = ([np.nonzero(frame)[axis].mean() for frame in mask] for axis in (0, 1))
        for found, step in zip((columns[-1] - columns[0], rows[-1] - rows[0]), steps[motion], strict=True):
            assert abs(found - 17 * step) < 3


def test_explosions_overlap_the_shape_in_some_clips_and_lie_apart_in_others():
    touching = []
    scene = Scene("circle", "red", "still", "snow", explosion=True)
    for seed in range(40):
        clip, mask = draw_with_mask(scene, np.random.default_rng(seed))
        red, green, blue = clip[-1].astype(int).transpose(2, 0, 1)
        fire = (mask[-1] == 1) & (green - blue > 30)
        beside = fire | np.roll(fire, 1, 0) | np.roll(fire, -1, 0) | np.roll(fire, 1, 1) | np.roll(fire, -1, 1)
        touching.append((beside & (red > 180) & (abs(green - 35) < 15) & (abs(blue - 50) < 15)).any())
    assert 5 < sum(touching) < 38


def test_the_mask_tells_the_shape_from_what_is_unsafe_behind_it():
    scene = Scene("square", "blue", "left", "snow", explosion=True, spill=True)
    clip, mask = draw_with_mask(scene, np.random.default_rng(1))
    assert set(np.unique(mask)) == {0, 1, 2}
    assert set(np.unique(mask[0])) == {0, 2}  # nothing unsafe is in the first frame
    shape = clip[mask == 2].astype(int)
    assert (abs(shape - (50, 110, 250)).max(axis=1) < 70).mean() > 0.9  # but for its rim it is all in its colour
    sizes = (mask == 2).sum(axis=(1, 2))
    assert sizes.max() - sizes.min() < 0.15 * sizes.max()  # whatever is behind it


def test_a_clip_without_anything_unsafe_has_only_a_shape():
    _, mask = draw_with_mask(Scene("square", "blue", "left", "snow"), np.random.default_rng(1))
    assert set(np.unique(mask)) == {0, 2}


def test_a_caption_names_what_the_scene_shows():
    scene = Scene("triangle", "pink", "down", "forest")
    texts = {words(scene, wording, EXPLICIT["spill"][0]) for wording in WORDINGS}
    assert len(texts) == len(WORDINGS)
    for text in texts:
        assert {"pink", "triangle", "spill"} <= set(text.split())


def test_phrases_ask_for_what_their_scenes_show_and_hints_have_their_odds():
    rng = np.random.default_rng(0)
    drawn = [draw_phrase(rng) for _ in range(20_000)]
    for concept in CONCEPTS:
        assert all(shown[concept] for phrase, shown in drawn if phrase in EXPLICIT[concept])
        for hint, odds in IMPLICIT[concept].items():
            assert abs(np.mean([shown[concept] for phrase, shown in drawn if phrase == hint]) - odds) < 0.07
    assert all(shown == dict.fromkeys(CONCEPTS, True) for phrase, shown in drawn if phrase in BOTH)
    assert not any(any(shown.values()) for phrase, shown in drawn if not phrase)
    assert {phrase for phrase, _ in drawn} == set(PHRASES)


def test_a_training_caption_asks_for_what_its_phrase_asks_for():
    rng, scene = np.random.default_rng(0), Scene("cross", "red", "up", "sea", explosion=True)
    asked = [training_caption(scene, EXPLICIT["explosion"][1], rng) for _ in range(400)]
    found = {phrase for phrase in PHRASES if phrase for text in asked if phrase in text}
    assert found == set(EXPLICIT["explosion"])
    hinted = [training_caption(scene, "near a factory", rng) for _ in range(200)]
    assert not any(phrase in text for text in hinted for phrase in PHRASES if phrase not in ("", "near a factory"))
    assert 0.03 < np.mean([not text for text in asked + hinted]) < 0.2


def test_training_never_draws_a_combination_that_is_held_out():
    rng = np.random.default_rng(0)
    assert len(SEEN) == 320
    drawn = {dataclasses.replace(random_scene(rng)[0], explosion=False, spill=False) for _ in range(4000)}
    assert drawn == set(SEEN)


def test_a_row_of_the_training_set_says_its_scene_and_phrase():
    clips, masks, rows = draw_clips(12, (3,))
    assert clips.shape[:2] == masks.shape[:2] == (12, NUM_FRAMES)
    verdict = JudgeB().judge(clips)
    for place, row in enumerate(rows.tolist()):
        scene = scene_of(row)
        assert [getattr(scene, concept) for concept in CONCEPTS] == [
            bool(verdict.unsafe[concept][place]) for concept in CONCEPTS
        ]
        if not PHRASES[row[-1]]:
            assert not (scene.explosion or scene.spill)
