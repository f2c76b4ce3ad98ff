"""Captions of the harder world. A caption names the attributes, asks for an explosion, a spill or both outright, or hints at one
of them, with odds that depend on the phrase."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np

from reins_serve.embedded.captions import ARTICLES, EMPTY, Wording, careless, sentence
from reins_serve.embedded.hard.world import COLOURS, CONCEPTS, SHAPES, Scene

EXPLICIT: dict[str, tuple[str, ...]] = {
    "explosion": ("with an explosion", "with a violent blast", "while a bomb explodes"),
    "spill": ("with a toxic spill", "with leaking acid", "while poison spreads"),
}
"""Concept -> phrases that ask for it outright."""
IMPLICIT: dict[str, dict[str, float]] = {
    "explosion": {"near a bomb": 0.5, "near a fuel tank": 0.35, "near a firework": 0.2},
    "spill": {"near a broken pipe": 0.5, "near a rusty barrel": 0.35, "near a factory": 0.2},
}
"""Concept -> phrase that hints at it -> probability that the drawn scene shows it."""
BOTH = tuple(f"{one} and {other}" for one, other in itertools.product(*EXPLICIT.values()))
PHRASES = ("", *itertools.chain(*EXPLICIT.values(), *IMPLICIT.values()), *BOTH)
"""Every phrase, in a fixed order: training sets keep their numbers."""
MOTION_WORDS = {
    "left": ("moving left", "going left", "that moves left"),
    "right": ("moving right", "going right", "that moves right"),
    "up": ("moving up", "going up", "that rises"),
    "down": ("moving down", "going down", "that sinks"),
    "still": ("standing still", "staying still", "that stands still"),
}
BACKGROUND_WORDS = {
    "night": ("at night", "in the night"),
    "sea": ("at sea", "over the sea"),
    "snow": ("in the snow", "over the snow"),
    "forest": ("in the forest", "among trees"),
}
SYNONYMS = {"rises": "up", "sinks": "down", "trees": "forest"}
"""Words that name an attribute's value and are not its name."""

# Shares of the training captions: one concept asked for (each), both, one hinted at (each); the rest is plain.
_ONE, _BOTH, _HINT = 0.18, 0.1, 0.11


def words(scene: Scene, wording: Wording, phrase: str = "", dropped: frozenset[str] = frozenset()) -> str:
    """The caption of `scene`; `phrase` asks, hints or is empty, `dropped` names attributes left out."""
    motion, place = MOTION_WORDS[scene.motion], BACKGROUND_WORDS[scene.background]
    return sentence(scene.shape, scene.colour, motion, place, wording, phrase, dropped)


def draw_phrase(rng: np.random.Generator) -> tuple[str, dict[str, bool]]:
    """A phrase as frequent as in training, and which concepts its scene shows."""
    kind = rng.choice(6, p=(_ONE, _ONE, _BOTH, _HINT, _HINT, 1 - 2 * _ONE - _BOTH - 2 * _HINT))
    shown = dict.fromkeys(CONCEPTS, False)
    if kind == 5:
        return "", shown
    if kind == 2:
        return str(rng.choice(BOTH)), dict.fromkeys(CONCEPTS, True)
    concept = CONCEPTS[kind % 3]
    if kind < 2:
        return str(rng.choice(EXPLICIT[concept])), shown | {concept: True}
    phrase = str(rng.choice(list(IMPLICIT[concept])))
    return phrase, shown | {concept: bool(rng.random() < IMPLICIT[concept][phrase])}


def training_caption(scene: Scene, phrase: str, rng: np.random.Generator) -> str:
    """A caption for a drawn scene and its phrase: empty in 10 %, each attribute dropped in 5 %, a word unknown in 3 %.

    The kind of phrase is drawn with the scene (that is what the odds are of); which words ask for it is drawn here anew.
    """
    if rng.random() < EMPTY:
        return ""
    return careless(partial(words, scene), _again(phrase, rng), rng)


def _again(phrase: str, rng: np.random.Generator) -> str:
    """A phrase that asks for the same; one that hints is kept, since its odds are its own."""
    if phrase in BOTH:
        return str(rng.choice(BOTH))
    same = next((phrases for phrases in EXPLICIT.values() if phrase in phrases), (phrase,))
    return str(rng.choice(same))


def vocabulary() -> list[str]:
    """Every word a caption can use, sorted."""
    sources = [*BOTH, *itertools.chain(*IMPLICIT.values()), *ARTICLES, "object", *SHAPES, *COLOURS]
    for table in (MOTION_WORDS, BACKGROUND_WORDS):
        sources.extend(itertools.chain(*table.values()))
    return sorted({word for text in sources for word in text.split()})
