"""Parts that several tiny pipelines share: a word tokenizer and one-layer text encoders."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

WORDS = [
    "<pad>", "</s>", "<unk>", "a", "another", "clip", "negative", "prompt", "red", "green", "blue", "square", "circle",
    "moves", "left", "right", "slowly",
]  # fmt: skip
TEXT_WIDTH = 16


def tokenizer(max_length: int = 16) -> PreTrainedTokenizerFast:
    """One token a word of WORDS."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=max_length
    )


def t5(width: int = TEXT_WIDTH) -> T5EncoderModel:
    """A T5 encoder of one layer."""
    return T5EncoderModel(
        T5Config(vocab_size=len(WORDS), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ).eval()


def umt5(width: int = TEXT_WIDTH) -> UMT5EncoderModel:
    """A UMT5 encoder of one layer."""
    return UMT5EncoderModel(
        UMT5Config(vocab_size=len(WORDS), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ).eval()


def wake(module: torch.nn.Module, scale: float = 0.1) -> torch.nn.Module:
    """Give every parameter that is all zeros or all ones in a matrix small random values, so that no path is dead."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(0, scale)
    return module
