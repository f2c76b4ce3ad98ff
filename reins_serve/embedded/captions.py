"""Captions of the drawn world: how a scene is put into words, for training and for prompts. A caption names the
attributes, asks for an explosion outright, or only hints at one (implicit: the words do not decide the label)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from reins_serve.embedded.world import ATTRIBUTES, COLOURS, SHAPES, Scene

EXPLICIT = ("with an explosion", "and a violent blast", "while a bomb explodes")
IMPLICIT = {"near a bomb": 0.5, "near a fuel tank": 0.75}
"""Phrase -> probability that the drawn scene explodes."""

ARTICLES = ("a", "one")
MOTION_WORDS = {
    "left": ("moving left", "going left", "that moves left"),
    "right": ("moving right", "going right", "that moves right"),
    "still": ("standing still", "staying still", "that stands still"),
}
BACKGROUND_WORDS = {
    "night": ("at night", "in the night"),
    "sea": ("at sea", "over the sea"),
    "snow": ("in the snow", "over the snow"),
}
UNKNOWN = "<unk>"

# Shares of the training captions: 37 % explicit, 18 % implicit, the rest plain.
_EXPLICIT_SHARE, _IMPLICIT_SHARE = 0.37, 0.18
EMPTY, _DROP, _NOISE_WORD = 0.10, 0.05, 0.03


@dataclass(frozen=True)
class Wording:
    """One way to say a scene: which article, motion words and background words, and the background first or last."""

    article: int
    motion: int
    background: int
    background_first: bool


WORDINGS = tuple(
    Wording(article, motion, background, first)
    for first in (False, True)
    for motion in range(3)
    for background in range(2)
    for article in range(len(ARTICLES))
)


def words(scene: Scene, wording: Wording, phrase: str = "", dropped: frozenset[str] = frozenset()) -> str:
    """The caption of `scene`; `phrase` is an explicit or implicit one or empty, `dropped` names attributes left out."""
    motion, place = MOTION_WORDS[scene.motion], BACKGROUND_WORDS[scene.background]
    return sentence(scene.shape, scene.colour, motion, place, wording, phrase, dropped)


def sentence(
    shape: str,
    colour: str,
    motions: Sequence[str],
    places: Sequence[str],
    wording: Wording,
    phrase: str,
    dropped: frozenset[str],
) -> str:
    """A caption from its words; of `motions` and `places` the wording takes one."""
    thing = "object" if "shape" in dropped else shape
    colour = "" if "colour" in dropped else colour
    motion = "" if "motion" in dropped else motions[wording.motion]
    place = "" if "background" in dropped else places[wording.background]
    subject = (ARTICLES[wording.article], colour, thing, motion)
    parts = (place, *subject, phrase) if wording.background_first else (*subject, place, phrase)
    return " ".join(part for part in parts if part)


def implicit_rate() -> float:
    """Share of implicit captions whose scene explodes, phrases being equally frequent."""
    return float(np.mean(list(IMPLICIT.values())))


def explosion_rate() -> float:
    """Share of training scenes that explode."""
    return _EXPLICIT_SHARE + _IMPLICIT_SHARE * implicit_rate()


def training_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption for a drawn scene: empty in 10 %, each attribute dropped in 5 %, phrases such that over all scenes 37 %
    are explicit and each implicit phrase explodes at the rate that `IMPLICIT` gives."""
    if rng.random() < EMPTY:
        return ""
    weights = np.array([rate if scene.explosion else 1 - rate for rate in IMPLICIT.values()])
    implicit = _IMPLICIT_SHARE * float(weights.mean())
    of_all = explosion_rate() if scene.explosion else 1 - explosion_rate()
    if rng.random() < implicit / of_all:
        phrase = str(rng.choice(list(IMPLICIT), p=weights / weights.sum()))
    else:
        phrase = str(rng.choice(EXPLICIT)) if scene.explosion else ""
    return careless(partial(words, scene), phrase, rng)


def careless(say: Callable[[Wording, str, frozenset[str]], str], phrase: str, rng: np.random.Generator) -> str:
    """A caption as people write them: some wording, each attribute dropped in 5 %, an unknown word in 3 %.

    Args:
        say: (wording, phrase, dropped attributes) -> the caption of a scene.
    """
    dropped = frozenset(name for name in ATTRIBUTES if rng.random() < _DROP)
    text = say(WORDINGS[int(rng.integers(len(WORDINGS)))], phrase, dropped)
    if rng.random() < _NOISE_WORD:  # so that a word outside the vocabulary does no harm
        parts = text.split()
        parts.insert(int(rng.integers(len(parts) + 1)), UNKNOWN)
        text = " ".join(parts)
    return text


def vocabulary() -> list[str]:
    """Every word a caption can use, sorted."""
    sources = [*EXPLICIT, *IMPLICIT, *ARTICLES, "object"]
    for table in (MOTION_WORDS, BACKGROUND_WORDS):
        for wordings in table.values():
            sources.extend(wordings)
    return sorted({word for text in (*sources, *SHAPES, *COLOURS) for word in text.split()})
