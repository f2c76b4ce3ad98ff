"""What logs show of requests: nothing that a user wrote, but a hash by which equal prompts can be told.

Messages of other libraries' exceptions may quote what they were given. Where a log shows such an exception, the texts of the
requests that were at work are replaced in it; where nobody knows them, its message is left out and the place remains.
"""

import hashlib
import json
import logging
import traceback
from collections.abc import Iterable

from reins_serve.errors import ReinsError
from reins_serve.models.generation import ClipRequest

LIBRARIES = ("diffusers", "transformers")  # their warnings quote the part of a prompt that they cut off


def hashed(text: str) -> str:
    """The beginning of a text's SHA-256 digest."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def shown(prompt: str, log_prompts: bool) -> str:
    """A prompt as logs show it, on one line."""
    return json.dumps(prompt) if log_prompts else hashed(prompt)


def without_texts(error: BaseException, clips: Iterable[ClipRequest]) -> str:
    """An exception with its traceback, in which the clips' prompts are replaced by their hashes."""
    told = "".join(traceback.format_exception(error))
    texts = {text for clip in clips for text in (clip.prompt, clip.negative_prompt) if text}
    for text in sorted(texts, key=len, reverse=True):
        for written in (text, repr(text)[1:-1], json.dumps(text)[1:-1]):
            told = told.replace(written, hashed(text))
    return told


def without_messages(error: BaseException) -> str:
    """Where an exception and those behind it came from; what they say only where the words are our own."""
    lines: list[str] = []
    while True:
        said = f": {error}" if isinstance(error, ReinsError) else ""
        lines[:0] = [*traceback.format_tb(error.__traceback__), f"{type(error).__qualname__}{said}\n"]
        behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if behind is None:
            return "".join(lines)
        error = behind


def quieten() -> None:
    """Let the libraries that see prompts log errors alone, in this process."""
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
