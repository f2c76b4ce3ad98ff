"""The harder world's prompts: distinct, deterministic, within the vocabulary and the text length."""

from collections import Counter

import pytest

from reins_serve.embedded.hard import TEXT_TOKENS
from reins_serve.embedded.hard.captions import IMPLICIT, vocabulary
from reins_serve.embedded.hard.prompts import ASKED, prompts
from reins_serve.embedded.tokenizer import build_tokenizer


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
