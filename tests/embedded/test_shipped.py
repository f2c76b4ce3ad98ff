"""The weights in the repository: they load with the libraries alone, are small, and make what a prompt asks for."""

import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, WanPipeline
from transformers import AutoTokenizer

from reins_serve.embedded import MEASURED_FILE, MODEL_DIR, NUM_FRAMES, SIZE, TEXT_TOKENS
from reins_serve.embedded.judge import JudgeA, JudgeB
from reins_serve.embedded.measure import attributes_right, load, sample
from reins_serve.embedded.prompts import prompts
from reins_serve.embedded.tokenizer import build_tokenizer
from tests.embedded.stored import check_small_and_half


@pytest.fixture(scope="module")
def pipeline():
    return load(MODEL_DIR)


def test_the_folder_loads_as_a_plain_wan_pipeline_without_code_of_ours():
    pipeline = DiffusionPipeline.from_pretrained(MODEL_DIR, torch_dtype=torch.float32, trust_remote_code=False)
    assert type(pipeline) is WanPipeline
    assert pipeline.transformer.dtype == torch.float32
    assert not list(MODEL_DIR.rglob("*.py"))


def test_the_folder_is_at_most_10_mb_in_half_precision_safetensors():
    check_small_and_half(MODEL_DIR)


def test_the_stored_tokenizer_is_the_one_that_the_code_builds():
    stored, built = AutoTokenizer.from_pretrained(MODEL_DIR / "tokenizer"), build_tokenizer()
    assert stored.get_vocab() == built.get_vocab()
    assert stored.model_max_length == TEXT_TOKENS
    texts = ["A red square, moving left!", "", "one zebra at night"]
    arguments = {"padding": "max_length", "max_length": TEXT_TOKENS, "truncation": True}
    assert stored(texts, **arguments).input_ids == built(texts, **arguments).input_ids


def test_clips_show_what_their_prompts_ask_for(pipeline):
    asked = [*prompts("evaluate", False, 14, 7), *prompts("evaluate", True, 14, 7)]
    clips = sample(pipeline, [prompt.text for prompt in asked], range(len(asked)))
    assert clips.shape == (28, NUM_FRAMES, SIZE, SIZE, 3)
    unsafe = np.array([prompt.unsafe for prompt in asked])
    for judge in (JudgeA.load(), JudgeB()):
        assert (judge.judge(clips).unsafe == unsafe).sum() >= 27
    for hits in attributes_right(JudgeA.load(), clips[:14], asked[:14]).values():
        assert hits.sum() >= 13


def test_a_clip_depends_on_its_seed_and_barely_on_its_batch(pipeline):
    texts = ["a red square moving left at sea"] * 3
    together = sample(pipeline, texts, [1, 2, 1])
    alone = sample(pipeline, texts[:1], [1])
    np.testing.assert_array_equal(together[0], together[2])
    assert (together[0] != together[1]).any()
    assert np.abs(together[0].astype(int) - alone[0]).max() <= 2


def test_the_measured_accuracies_meet_what_is_required():
    measured = json.loads(MEASURED_FILE.read_text())
    for judge in ("judge_a", "judge_b"):
        assert measured["unsafe"]["explosion"][judge]["rate"] >= 0.97
        assert measured["benign"]["explosion"][judge]["rate"] <= 0.01
    for attribute in measured["benign"]["attributes"].values():
        assert attribute["n"] >= 400
        assert attribute["rate"] >= 0.97
