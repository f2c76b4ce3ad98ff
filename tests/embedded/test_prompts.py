"""The prompt splits: disjoint in what they show, balanced, deterministic, and large enough to measure with."""

from collections import Counter

import pytest

from reins_serve.embedded import prompts as easy
from reins_serve.embedded.captions import EXPLICIT, IMPLICIT
from reins_serve.embedded.hard import prompts as hard
from reins_serve.embedded.hard.world import ATTRIBUTES as HARD_ATTRIBUTES
from reins_serve.embedded.prompts import SPLITS, implicit_prompts, prompts, split_combinations
from reins_serve.embedded.tokenizer import build_tokenizer
from reins_serve.embedded.world import ATTRIBUTES


@pytest.mark.parametrize(("of", "sizes"), [(easy, [48, 24, 36]), (hard, [240, 80, 80])], ids=["easy", "hard"])
def test_the_splits_share_no_attribute_combination_and_cover_all(of, sizes):
    parts = {split: set(of.split_combinations(split)) for split in SPLITS}
    assert [len(parts[split]) for split in SPLITS] == sizes
    assert len(set.union(*parts.values())) == sum(sizes)


@pytest.mark.parametrize(("of", "attributes"), [(easy, ATTRIBUTES), (hard, HARD_ATTRIBUTES)], ids=["easy", "hard"])
@pytest.mark.parametrize("split", SPLITS)
def test_a_split_has_every_value_of_every_attribute_equally_often(split, of, attributes):
    scenes = of.split_combinations(split)
    for name, values in attributes.items():
        counts = Counter(getattr(scene, name) for scene in scenes)
        assert set(counts) == set(values)
        assert len(set(counts.values())) == 1


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("unsafe", [False, True])
def test_there_are_432_distinct_texts_a_class(split, unsafe):
    found = prompts(split, unsafe, 432)
    assert len({prompt.text for prompt in found}) == 432
    assert set(Counter(prompt.group for prompt in found).values()) == {432 // len(split_combinations(split))}
    assert all(prompt.unsafe == unsafe for prompt in found)
    assert all(any(phrase in prompt.text for phrase in EXPLICIT) == unsafe for prompt in found)
    assert not any(prompt.implicit for prompt in found)


def test_unsafe_prompts_use_every_phrase_equally_often():
    counts = Counter(prompt.phrase for prompt in prompts("fit", True, 432))
    assert set(counts) == set(EXPLICIT)
    assert max(counts.values()) - min(counts.values()) < 60


def test_prompts_are_the_same_for_the_same_seed_and_others_for_another():
    assert prompts("select", True, 100, 3) == prompts("select", True, 100, 3)
    assert prompts("select", True, 100, 3) != prompts("select", True, 100, 4)


def test_more_prompts_than_texts_repeat_texts():
    assert len(prompts("select", False, 700)) == 700


def test_implicit_prompts_hint_and_do_not_ask():
    found = implicit_prompts("evaluate", 72)
    assert {prompt.phrase for prompt in found} == set(IMPLICIT)
    assert all(prompt.implicit and not prompt.unsafe and prompt.phrase in prompt.text for prompt in found)


def test_unknown_splits_and_phrases_are_refused_with_the_choices():
    with pytest.raises(ValueError, match="fit, select, evaluate"):
        prompts("training", False, 1)
    with pytest.raises(ValueError, match="near a bomb"):
        implicit_prompts("fit", 1, phrase="near a tree")


def test_every_prompt_fits_the_text_length_and_the_vocabulary():
    tokenizer = build_tokenizer()
    texts = [prompt.text for unsafe in (False, True) for prompt in prompts("evaluate", unsafe, 432)]
    texts += [prompt.text for prompt in implicit_prompts("evaluate", 432)]
    tokens = tokenizer(texts).input_ids
    assert max(map(len, tokens)) <= 16
    assert all(tokenizer.unk_token_id not in row for row in tokens)
