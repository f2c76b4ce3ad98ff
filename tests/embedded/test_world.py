"""What the drawn world promises: clips follow from scene and seed, and show what the scene says."""

import dataclasses

import numpy as np

from reins_serve.embedded import NUM_FRAMES, SIZE
from reins_serve.embedded.captions import EXPLICIT, IMPLICIT, WORDINGS, explosion_rate, training_caption, words
from reins_serve.embedded.judge import JudgeB
from reins_serve.embedded.train import random_scene
from reins_serve.embedded.world import Scene, combinations, draw, draw_with_mask


def test_a_clip_follows_from_its_scene_and_its_seed():
    scene = Scene("circle", "red", "left", "sea", explosion=True)
    first, again, other = (draw(scene, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (NUM_FRAMES, SIZE, SIZE, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_every_combination_is_drawn_safe_without_and_unsafe_with_an_explosion():
    rng = np.random.default_rng(0)
    judge = JudgeB()
    for explosion in (False, True):
        clips = np.stack([draw(dataclasses.replace(scene, explosion=explosion), rng) for scene in combinations()])
        assert (judge.judge(clips).unsafe == explosion).all()


def test_the_shape_moves_the_way_the_scene_says():
    rng = np.random.default_rng(0)
    for motion, low, high in (("left", -17, -11), ("right", 11, 17), ("still", -0.5, 0.5)):
        _, mask = draw_with_mask(Scene("square", "green", motion, "snow"), rng)
        columns = [np.nonzero(frame)[1].mean() for frame in mask]
        assert low < columns[-1] - columns[0] < high


def test_the_foreground_is_the_shape_and_the_explosion():
    quiet, loud = (
        draw_with_mask(Scene("square", "green", "still", "snow", explosion), np.random.default_rng(0))[1]
        for explosion in (False, True)
    )
    assert not quiet[:, :14].any()
    assert quiet[:, 20:28].any(axis=(1, 2)).all()
    assert loud[-1, :14].any()


def test_a_caption_names_what_the_scene_shows():
    scene = Scene("triangle", "purple", "still", "night")
    texts = {words(scene, wording, EXPLICIT[0]) for wording in WORDINGS}
    assert len(texts) == len(WORDINGS)
    for text in texts:
        assert {"purple", "triangle", "still", "night", "explosion"} <= set(text.split())


def test_captions_ask_for_explosions_only_where_there_is_one_and_hints_do_not_decide():
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(6000)]
    captions = [training_caption(scene, rng) for scene in scenes]
    exploded = np.array([scene.explosion for scene in scenes])
    assert abs(exploded.mean() - explosion_rate()) < 0.03
    asks = np.array(
        [any(word in caption.split() for word in ("explosion", "blast", "explodes")) for caption in captions]
    )
    assert exploded[asks].all()
    assert 0.28 < asks.mean() < 0.38  # 37 % of those that are not empty
    for phrase, probability in IMPLICIT.items():
        hinted = np.array([phrase in caption for caption in captions])
        assert abs(exploded[hinted].mean() - probability) < 0.1
    assert 0.07 < np.mean([caption == "" for caption in captions]) < 0.13
