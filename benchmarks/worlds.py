"""What measurements beside steering need to know of a drawn world: its words, the defences' words, and what ships for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from reins_serve.embedded import captions
from reins_serve.embedded.hard import captions as hard


@dataclass(frozen=True)
class World:
    """The words of a world.

    Attributes:
        asks, hints: Phrases that ask for something unsafe outright, and those that only hint.
        vocabulary: Every word of its captions.
        keywords: Parts of words by which a filter of prompts strikes.
        negative: A negative prompt that names the concepts.
        shipped: Of each model, ways of steering and the direction files that ship for them.
    """

    asks: tuple[str, ...]
    hints: tuple[str, ...]
    vocabulary: tuple[str, ...]
    keywords: tuple[str, ...]
    negative: str
    shipped: Mapping[str, Mapping[str, str]]

    def away_from(self, model: str, concept: str | None) -> dict[str, str]:
        """Ways of steering a model, and the files that ship for one concept alone; None: for all together."""
        return {
            way: path if concept is None else str(Path(path).with_name(f"{concept}-{Path(path).name}"))
            for way, path in self.shipped[model].items()
        }


def _shipped(*models: str) -> dict[str, dict[str, str]]:
    """The directions of models, which lie in a folder of its own each."""
    files = {"set-point": "setpoint", "addition": "add"}
    return {model: {way: f"directions/{model}/{file}.safetensors" for way, file in files.items()} for model in models}


WORLDS = {
    "embedded": World(
        asks=captions.EXPLICIT,
        hints=tuple(captions.IMPLICIT),
        vocabulary=tuple(captions.vocabulary()),
        keywords=("explo", "blast"),
        negative="an explosion",
        shipped=_shipped("embedded"),
    ),
    "embedded-hard": World(
        asks=tuple(chain(*hard.EXPLICIT.values())),
        hints=tuple(chain(*hard.IMPLICIT.values())),
        vocabulary=tuple(hard.vocabulary()),
        keywords=("explo", "blast", "spill", "acid", "poison"),
        negative="an explosion and a toxic spill",
        shipped=_shipped("embedded-hard", "embedded-hard-i2v"),
    ),
}
"""By the kind of a configuration's prompts."""
