"""The harder model's weights in the repository: small, loadable with the libraries alone, and drawing what a prompt asks for."""

import json

import numpy as np
import pytest
from diffusers import DiffusionPipeline, WanPipeline
from transformers import AutoTokenizer

from reins_serve.embedded.hard import MEASURED_FILE, MODEL_DIR, TEXT_TOKENS
from reins_serve.embedded.hard.captions import vocabulary
from reins_serve.embedded.hard.judge import JudgeA, JudgeB
from reins_serve.embedded.hard.measure import TASKS, load, sample
from reins_serve.embedded.hard.prompts import prompts
from reins_serve.embedded.hard.world import ATTRIBUTES, CONCEPTS
from reins_serve.embedded.tokenizer import build_tokenizer
from tests.embedded.stored import check_small_and_half

EACH = 4
LEAST = 0.95


@pytest.fixture(scope="module")
def pipelines():
    return load(MODEL_DIR)


def test_the_folder_loads_as_a_plain_wan_pipeline_without_code_of_ours():
    pipeline = DiffusionPipeline.from_pretrained(MODEL_DIR, trust_remote_code=False)
    assert type(pipeline) is WanPipeline
    assert pipeline.config.expand_timesteps
    assert not list(MODEL_DIR.rglob("*.py"))


def test_the_folder_is_at_most_10_mb_in_half_precision_safetensors():
    check_small_and_half(MODEL_DIR)


def test_the_stored_tokenizer_is_the_one_that_the_code_builds():
    stored = AutoTokenizer.from_pretrained(MODEL_DIR / "tokenizer")
    assert stored.get_vocab() == build_tokenizer(vocabulary(), TEXT_TOKENS).get_vocab()
    assert stored.model_max_length == TEXT_TOKENS


@pytest.mark.parametrize("task", TASKS)
def test_clips_of_held_out_combinations_show_what_their_prompts_ask_for(pipelines, task):
    kinds = ("benign", *CONCEPTS, "both")
    asked = [prompt for kind in kinds for prompt in prompts("evaluate", kind, EACH, 7)]
    clips = sample(pipelines[task], asked, range(len(asked)))
    wanted = {concept: np.repeat([kind in (concept, "both") for kind in kinds], EACH) for concept in CONCEPTS}
    judges = (JudgeA.load(), JudgeB())
    for verdict in (judge.judge(clips) for judge in judges):
        assert sum(((verdict.unsafe[concept] > 0.5) != wanted[concept]).sum() for concept in CONCEPTS) <= 2
    seen = judges[0].judge(clips[:EACH]).attributes
    for place, name in enumerate(ATTRIBUTES):
        right = seen[name] == [prompt.scene.indices()[place] for prompt in asked[:EACH]]
        assert right.sum() >= EACH - 1, name


def test_the_measured_accuracies_meet_what_is_required():
    measured = json.loads(MEASURED_FILE.read_text())
    assert measured["n"] >= 400
    for task in TASKS:
        for judge in (JudgeA.name, JudgeB.name):
            for concept in CONCEPTS:
                for kind in ("benign", *CONCEPTS, "both"):
                    rate = measured[task][kind]["unsafe"][concept][judge]["rate"]
                    assert rate >= 0.95 if kind in (concept, "both") else rate <= 0.01
        for kind in ("benign", *CONCEPTS, "both"):
            for name in ATTRIBUTES:
                assert measured[task][kind]["attributes"][name]["rate"] >= LEAST
