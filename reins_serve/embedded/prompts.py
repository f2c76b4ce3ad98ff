"""Prompts for calibrating and measuring on the embedded model. Three splits (fit, select, evaluate) share no attribute
combination, and each is balanced: every value of every attribute is equally frequent."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from reins_serve.embedded.captions import EXPLICIT, IMPLICIT, WORDINGS, words
from reins_serve.embedded.world import Scene, combinations

Split = Literal["fit", "select", "evaluate"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Prompt:
    """A text and what a clip of it must show. `unsafe`: the text asks for an explosion outright. `phrase` is the part
    that asks or hints, empty in a benign prompt; `group` names the attribute combination, the unit for folds."""

    text: str
    shape: str
    colour: str
    motion: str
    background: str
    unsafe: bool
    group: str
    phrase: str = ""

    @property
    def implicit(self) -> bool:
        """Whether the text only hints at an explosion, so that it does not decide the label."""
        return self.phrase in IMPLICIT


def split_of(scene: Scene) -> Split:
    """The split that a combination belongs to: 48 are for fitting, 24 for selection, 36 for evaluation.

    Combinations are cut along linear forms of the attribute indices modulo 3, which is what balances each split.
    """
    shape, colour, motion, background = scene.indices()
    first, second = (shape + motion + background) % 3, (shape + 2 * motion) % 3
    if first == colour % 3:
        return "evaluate"
    return "select" if second == (colour + first) % 3 else "fit"


def split_combinations(split: Split) -> list[Scene]:
    """The attribute combinations of a split; raises `ValueError` for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}: choose one of {', '.join(SPLITS)}.")
    return [scene for scene in combinations() if split_of(scene) == split]


def prompts(split: Split, unsafe: bool, n: int, seed: int = 0) -> list[Prompt]:
    """`n` explicit or benign prompts of a split, the same for equal arguments.

    Every combination comes once before any comes twice, and no text repeats before all wordings of a combination are
    used: the first 48, 24 or 36 times 24 (benign) or 72 (unsafe) texts are distinct. Give repeated texts other seeds.
    """
    return _prompts(split, EXPLICIT if unsafe else ("",), unsafe, n, seed)


def implicit_prompts(split: Split, n: int, seed: int = 0, phrase: str | None = None) -> list[Prompt]:
    """`n` prompts that only hint at an explosion, with `phrase` (one of `captions.IMPLICIT`) or with all in turn."""
    if phrase is not None and phrase not in IMPLICIT:
        raise ValueError(f"{phrase!r} is no implicit phrase: choose one of {', '.join(IMPLICIT)}.")
    return _prompts(split, tuple(IMPLICIT) if phrase is None else (phrase,), False, n, seed)


def _prompts(split: Split, phrases: tuple[str, ...], unsafe: bool, n: int, seed: int) -> list[Prompt]:
    scenes = split_combinations(split)
    rng = np.random.default_rng([seed, SPLITS.index(split), int(unsafe), len(phrases)])
    # Per combination, its own order of wordings and of phrases; phrase i of each round differs between neighbours.
    orders = [rng.permutation(len(WORDINGS)) for _ in scenes]
    shifts = rng.integers(len(phrases), size=len(scenes))
    found: list[Prompt] = []
    turn = 0
    while len(found) < n:
        for index in rng.permutation(len(scenes))[: n - len(found)]:
            wording = WORDINGS[orders[index][turn % len(WORDINGS)]]
            phrase = phrases[(shifts[index] + turn + turn // len(WORDINGS)) % len(phrases)]
            found.append(_prompt(scenes[index], words(scenes[index], wording, phrase), unsafe, phrase))
        turn += 1
    return found


def _prompt(scene: Scene, text: str, unsafe: bool, phrase: str) -> Prompt:
    shown = dataclasses.asdict(scene)
    del shown["explosion"]
    group = f"{scene.colour} {scene.shape} {scene.motion} {scene.background}"
    return Prompt(text=text, **shown, unsafe=unsafe, group=group, phrase=phrase)
