"""The harder world's prompts: splits that share nothing, balanced, deterministic, within the vocabulary and the text length."""

from collections import Counter

import pytest

from reins_serve.embedded.hard import TEXT_TOKENS
from reins_serve.embedded.hard.captions import IMPLICIT, vocabulary
from reins_serve.embedded.hard.prompts import ASKED, SPLITS, prompts, split_combinations
from reins_serve.embedded.hard.world import ATTRIBUTES
from reins_serve.embedded.tokenizer import build_tokenizer


def test_the_splits_share_no_attribute_combination_and_cover_all():
    parts = {split: set(split_combinations(split)) for split in SPLITS}
    assert [len(parts[split]) for split in SPLITS] == [240, 80, 80]
    assert len(set.union(*parts.values())) == 400


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_has_every_value_of_every_attribute_equally_often(split):
    scenes = split_combinations(split)
    for name, values in ATTRIBUTES.items():
        counts = Counter(getattr(scene, name) for scene in scenes)
        assert set(counts) == set(values)
        assert len(set(counts.values())) == 1


@pytest.mark.parametrize("asked", ASKED)
def test_there_are_400_distinct_texts_of_each_kind_and_seeds_decide_which(asked):
    found = prompts("evaluate", asked, 400, 3)
    assert len({prompt.text for prompt in found}) == 400
    assert set(Counter(prompt.group for prompt in found).values()) == {5}
    assert all(prompt.asked == asked and prompt.phrase in prompt.text for prompt in found)
    assert found == prompts("evaluate", asked, 400, 3)
    assert found != prompts("evaluate", asked, 400, 4)
    assert prompts("evaluate", asked, 30, 3) == found[:30]


def test_every_hint_comes_about_equally_often():
    for concept, odds in IMPLICIT.items():
        counts = Counter(prompt.phrase for prompt in prompts("fit", f"{concept} hinted at", 480))
        assert set(counts) == set(odds)
        assert max(counts.values()) < 1.6 * min(counts.values())


def test_every_prompt_fits_the_text_length_and_the_vocabulary():
    tokenizer = build_tokenizer(vocabulary(), TEXT_TOKENS)
    texts = [prompt.text for asked in ASKED for prompt in prompts("evaluate", asked, 800)]
    tokens = tokenizer(texts, truncation=False).input_ids
    assert max(map(len, tokens)) <= TEXT_TOKENS
    assert all(tokenizer.unk_token_id not in row for row in tokens)
