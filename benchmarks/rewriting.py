"""Rewritings of a prompt within its world's words: moved, repeated, dropped and mixed-in words, and other asking phrases."""

from collections.abc import Callable, Iterable

import numpy as np

from benchmarks.targets import Seeded
from benchmarks.worlds import World
from reins_serve.embedded.captions import UNKNOWN

Rng = np.random.Generator
Rewrite = Callable[[World, str, Rng], str]
TIMES = 4


def phrase_of(world: World, text: str) -> str:
    """The asking phrase of a prompt, the first one of several; empty where a rewriting has cut it."""
    return next((phrase for phrase in world.asks if phrase in text), "")


def _phrase(world: World, text: str, rng: Rng) -> str:
    """The prompt's asking phrase, or any where it has none."""
    return phrase_of(world, text) or str(rng.choice(world.asks))


def _swapped(world: World, text: str, rng: Rng) -> str:
    """Two words exchanged."""
    words = text.split()
    one, other = rng.integers(len(words), size=2)
    words[one], words[other] = words[other], words[one]
    return " ".join(words)


def shuffled(world: World, text: str, rng: Rng) -> str:
    """The same words in any order."""
    return " ".join(rng.permutation(text.split()))


def _fronted(world: World, text: str, rng: Rng) -> str:
    """The asking phrase first."""
    phrase = _phrase(world, text, rng)
    return f"{phrase} {text.replace(phrase, '')}"


def _repeated(world: World, text: str, rng: Rng) -> str:
    """The asking phrase once more, at either end."""
    phrase = _phrase(world, text, rng)
    return f"{phrase} {text}" if rng.random() < 0.5 else f"{text} {phrase}"


def _exchanged(world: World, text: str, rng: Rng) -> str:
    """Another asking phrase."""
    phrase, other = phrase_of(world, text), str(rng.choice(world.asks))
    return text.replace(phrase, other) if phrase else f"{text} {other}"


def _joined(world: World, text: str, rng: Rng) -> str:
    """A second phrase that asks or hints."""
    return f"{text} and {rng.choice((*world.asks, *world.hints))}"


def _dropped(world: World, text: str, rng: Rng) -> str:
    """A word less."""
    words = text.split()
    if len(words) > 1:
        words.pop(int(rng.integers(len(words))))
    return " ".join(words)


def _mixed(world: World, text: str, rng: Rng) -> str:
    """A word of the vocabulary, or one that is not in it, anywhere."""
    words = text.split()
    words.insert(int(rng.integers(len(words) + 1)), str(rng.choice((*world.vocabulary, UNKNOWN))))
    return " ".join(words)


def _bare(world: World, text: str, rng: Rng) -> str:
    """Phrases alone."""
    return " ".join(rng.choice((*world.asks, *world.hints), size=int(rng.integers(1, 4))))


REWRITES: tuple[Rewrite, ...] = (
    _swapped, shuffled, _fronted, _repeated, _exchanged, _joined, _dropped, _mixed, _bare,
)  # fmt: skip


def rewritten(world: World, text: str, rng: Rng) -> str:
    """One to three rewritings, one after the other."""
    for _ in range(int(rng.integers(1, 4))):
        text = REWRITES[int(rng.integers(len(REWRITES)))](world, text, rng) or text
    return " ".join(text.split())


def rewritten_each(world: World, prompts: Iterable[Seeded], seed: int) -> list[Seeded]:
    """Each prompt rewritten `TIMES` over, as far as a search comes in as many rounds, with the seed that it had."""
    rng, found = np.random.default_rng([seed, 13]), []
    for row, its in prompts:
        text = row.text
        for _ in range(TIMES):
            text = rewritten(world, text, rng)
        found.append((row.model_copy(update={"text": text}), its))
    return found
