"""The embedded judges see explosions, and judge A reads from the prompt's text what was asked for."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from reins_serve.calibration.judges import load, read_config, run_judge
from reins_serve.embedded import JUDGE_FILE
from reins_serve.embedded.captions import EXPLICIT, IMPLICIT, WORDINGS, words
from reins_serve.embedded.judge import build_network
from reins_serve.embedded.world import ATTRIBUTES, Scene, combinations, draw
from reins_serve.errors import JudgeError


@pytest.fixture(scope="module")
def judge_a():
    return load(read_config({"kind": "embedded-a"}))


@pytest.fixture(scope="module")
def judge_b():
    return load(read_config({"kind": "embedded-b"}))


def drawn(*scenes):
    rng = np.random.default_rng(3)
    return [draw(scene, rng) for scene in scenes]


SCENE = Scene("circle", "red", "left", "sea")


def test_both_see_the_explosions_that_were_drawn(judge_a, judge_b):
    scenes = [dataclasses.replace(s, explosion=e) for s in combinations()[::9] for e in (False, True)]
    prompts = [words(scene, WORDINGS[0]) for scene in scenes]
    clips = drawn(*scenes)
    for judge in (judge_a, judge_b):
        verdicts = run_judge(judge, clips, prompts)
        np.testing.assert_array_equal(verdicts.is_unsafe(judge.unsafe), [scene.explosion for scene in scenes])


def test_every_wording_of_every_scene_is_read(judge_a):
    phrases = ("", *EXPLICIT, *IMPLICIT)
    for number, scene in enumerate(combinations()):
        for wording in WORDINGS:
            asked = judge_a.asked_for(words(scene, wording, phrases[number % len(phrases)]))
            assert asked == {name: {getattr(scene, name)} for name in ATTRIBUTES}


@pytest.mark.parametrize("name", list(ATTRIBUTES))
def test_an_attribute_is_lost_when_the_clip_shows_another_value(judge_a, name):
    other = next(value for value in ATTRIBUTES[name] if value != getattr(SCENE, name))
    prompt = words(dataclasses.replace(SCENE, **{name: other}), WORDINGS[5])
    kept = run_judge(judge_a, drawn(SCENE), [prompt]).kept
    assert {attribute: bool(value[0]) for attribute, value in kept.items()} == {a: a != name for a in ATTRIBUTES}


@pytest.mark.parametrize("name", list(ATTRIBUTES))
def test_a_prompt_that_names_no_value_cannot_lose_it(judge_a, name):
    prompt = words(SCENE, WORDINGS[1], dropped=frozenset([name]))
    scenes = [dataclasses.replace(SCENE, **{name: value}) for value in ATTRIBUTES[name]]
    assert run_judge(judge_a, drawn(*scenes), [prompt] * len(scenes)).kept[name].all()
    assert all(values.all() for values in run_judge(judge_a, drawn(SCENE), [""]).kept.values())


def test_a_prompt_is_read_as_the_tokenizer_reads_it(judge_a):
    asked = judge_a.asked_for("A RED, circle! Moving left... at sea; circles, redder")
    assert asked == {"shape": {"circle"}, "colour": {"red"}, "motion": {"left"}, "background": {"sea"}}


def test_of_two_values_that_a_prompt_names_either_will_do(judge_a):
    verdicts = run_judge(judge_a, drawn(SCENE) * 2, ["a red or blue circle", "a green or blue circle"])
    np.testing.assert_array_equal(verdicts.kept["colour"], [True, False])


def test_clips_of_another_size_are_an_error(judge_a, judge_b):
    for judge in (judge_a, judge_b):
        with pytest.raises(JudgeError, match="failed"):
            run_judge(judge, [np.zeros((4, 32, 32, 3), dtype=np.uint8)], ["a red circle"])


def test_other_weights_have_another_revision_and_broken_ones_are_refused(judge_a, tmp_path):
    save_file(build_network().state_dict(), tmp_path / "own.safetensors")
    own = load(read_config({"kind": "embedded-a", "weights": str(tmp_path / "own.safetensors")}))
    assert own.revision != judge_a.revision
    assert load(read_config({"kind": "embedded-a", "weights": str(JUDGE_FILE)})).revision == judge_a.revision
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(JUDGE_FILE.read_bytes()[:1000])
    for name in ("other", "cut", "absent"):
        with pytest.raises(JudgeError, match="embedded judge A"):
            load(read_config({"kind": "embedded-a", "weights": str(tmp_path / f"{name}.safetensors")}))


def test_a_network_gone_wrong_is_an_error_and_not_safe(tmp_path):
    network = build_network()
    torch.nn.init.constant_(network[-1].bias, float("nan"))
    save_file(network.state_dict(), tmp_path / "nan.safetensors")
    broken = load(read_config({"kind": "embedded-a", "weights": str(tmp_path / "nan.safetensors")}))
    with pytest.raises(JudgeError, match="no probability"):
        run_judge(broken, drawn(SCENE), ["a red circle"])
