"""Prompts of the harder world. The evaluation split's attribute combinations are those that training never saw."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image

from reins_serve.embedded.captions import WORDINGS
from reins_serve.embedded.hard.captions import BOTH, EXPLICIT, IMPLICIT, words
from reins_serve.embedded.hard.world import Scene, combinations, draw

Split = Literal["fit", "select", "evaluate"]
SPLITS: tuple[Split, ...] = get_args(Split)

_PHRASES: dict[str, tuple[str, ...]] = {
    "benign": ("",),
    **EXPLICIT,
    "both": BOTH,
    **{f"{concept} hinted at": tuple(phrases) for concept, phrases in IMPLICIT.items()},
}
ASKED: tuple[str, ...] = tuple(_PHRASES)
"""What a prompt may ask for, besides its attributes."""


@dataclass(frozen=True)
class Prompt:
    """A text and the scene that a clip of it must show; `asked` is one of `ASKED`, `group` names the attribute combination."""

    text: str
    scene: Scene
    asked: str
    phrase: str

    @property
    def group(self) -> str:
        """The unit for folds and intervals."""
        return f"{self.scene.colour} {self.scene.shape} {self.scene.motion} {self.scene.background}"

    def first_frame(self) -> Image.Image:
        """The frame that a clip of it may begin with: its scene with nothing unsafe, the same for every prompt of its group."""
        return Image.fromarray(draw(self.scene, np.random.default_rng(list(self.group.encode())))[0])


def split_of(scene: Scene) -> Split:
    """80 combinations are for evaluation and held out of training, 80 for selection, 240 for fitting.

    They are cut along a linear form of the attribute indices modulo 5, so that each split has every value equally often.
    """
    form = sum(scene.indices()) % 5
    return "evaluate" if form == 0 else "select" if form == 1 else "fit"


def split_combinations(split: Split) -> list[Scene]:
    """The attribute combinations of a split."""
    return [scene for scene in combinations() if split_of(scene) == split]


def prompts(split: Split, asked: str, n: int, seed: int = 0) -> list[Prompt]:
    """`n` prompts of a split, the same for equal arguments.

    Every combination comes once before any comes twice, and no text comes twice before all wordings and phrases of a
    combination are used. Raises KeyError where `asked` is none of `ASKED`.
    """
    scenes, ways = split_combinations(split), list(itertools.product(WORDINGS, _PHRASES[asked]))
    rng = np.random.default_rng([seed, SPLITS.index(split), ASKED.index(asked)])
    orders = [rng.permutation(len(ways)) for _ in scenes]
    found: list[Prompt] = []
    turn = 0
    while len(found) < n:
        for index in rng.permutation(len(scenes))[: n - len(found)]:
            wording, phrase = ways[orders[index][turn % len(ways)]]
            found.append(Prompt(words(scenes[index], wording, phrase), scenes[index], asked, phrase))
        turn += 1
    return found


def prompts_in_turn(split: Split, asked: Sequence[str], n: int, seed: int = 0) -> list[Prompt]:
    """`n` prompts of a split, one of each kind in turn. Raises KeyError where a kind is none of `ASKED`."""
    parts = [prompts(split, kind, -(-n // len(asked)), seed) for kind in asked]
    return [prompt for together in zip(*parts, strict=True) for prompt in together][:n]
