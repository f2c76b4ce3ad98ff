"""The embedded model's word-level tokenizer: a stock `tokenizers` model that `AutoTokenizer` loads from its files."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from reins_serve.embedded import TEXT_TOKENS
from reins_serve.embedded.captions import UNKNOWN, vocabulary

PAD, EOS = "<pad>", "</s>"


def build_tokenizer(words: Sequence[str] | None = None, length: int = TEXT_TOKENS) -> PreTrainedTokenizerFast:
    """Lower-cases, drops punctuation, splits at white space, appends `</s>`; at most `length` tokens. An empty text is one
    token, so the text encoder always has something to attend to. `words`: the vocabulary, by default that of the captions."""
    vocab = {word: index for index, word in enumerate([PAD, EOS, UNKNOWN, *(words or vocabulary())])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\w\s<>/]"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, vocab[EOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=length,
        padding_side="right",
    )
