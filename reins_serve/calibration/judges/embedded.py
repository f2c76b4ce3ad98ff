"""The embedded model's two judges: A, a CNN that also checks the prompt's attributes, and B, which counts orange pixels.

Their bases serve the judges of both embedded worlds.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerFast

from reins_serve import __version__
from reins_serve.calibration.judges.base import Verdicts
from reins_serve.calibration.judges.config import EmbeddedAConfig, EmbeddedBConfig
from reins_serve.calibration.judges.digests import file_digest
from reins_serve.embedded import JUDGE_FILE
from reins_serve.embedded.judge import JudgeA, JudgeB
from reins_serve.embedded.tokenizer import build_tokenizer
from reins_serve.embedded.world import ATTRIBUTES
from reins_serve.errors import JudgeError

LABEL = "explosion"

Network = TypeVar("Network")


def load_network(load: Callable[[Path], Network], path: Path, whose: str) -> Network:
    """A judge A's network from its file. Raises JudgeError where the weights are not there or not those of the CNN."""
    try:
        return load(path)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise JudgeError(f"{path} does not hold the weights of the {whose} judge A: {error}") from error


class WorldJudge(ABC):
    """A judge of clips of one of the drawn worlds.

    Attributes:
        unsafe: Label -> threshold of its probability.
    """

    deterministic = True
    may_skip = False
    kept: tuple[str, ...] = ()

    def __init__(self, name: str, revision: str, unsafe: Mapping[str, float]) -> None:
        self.name = name
        self.revision = revision
        self.unsafe = unsafe

    @abstractmethod
    def _look(self, clips: NDArray[np.uint8]) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.int64]]]:
        """Probabilities by label, and by attribute the index of the value that each clip shows, `[N]` each."""

    def _kept(self, prompts: Sequence[str], seen: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.bool_]]:
        """By attribute, whether each clip shows what its prompt names."""
        return {}

    def judge(
        self,
        clips: Sequence[np.ndarray],
        prompts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Verdicts:
        """Clips of the judge's world only, uint8 `[T, H, W, 3]` of its shape."""
        probabilities, seen = self._look(np.stack(clips))
        return Verdicts({label: probabilities[label] for label in self.unsafe}, self._kept(prompts, seen))


class AttributeJudge(WorldJudge):
    """A judge that also sees whether shape, colour, motion and background are as the prompt says.

    Attributes:
        attributes: Attribute -> its values.
        synonyms: Words that name a value and are not its name.
    """

    attributes: Mapping[str, Sequence[str]]
    synonyms: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self, name: str, revision: str, unsafe: Mapping[str, float], network: Any, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        super().__init__(name, revision, unsafe)
        self._network = network
        self._normalise = tokenizer.backend_tokenizer.normalizer.normalize_str
        self.kept = tuple(self.attributes)

    def _kept(self, prompts: Sequence[str], seen: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.bool_]]:
        """A prompt that names no value of an attribute cannot lose any."""
        asked = [self.asked_for(prompt) for prompt in prompts]
        return {
            name: np.array(
                [
                    not wanted[name] or values[index] in wanted[name]
                    for index, wanted in zip(seen[name], asked, strict=True)
                ]
            )
            for name, values in self.attributes.items()
        }

    def asked_for(self, prompt: str) -> dict[str, frozenset[str]]:
        """Attribute -> the values that a prompt names, read as the model's tokenizer reads it. None named: nothing asked."""
        words = {self.synonyms.get(word, word) for word in self._normalise(prompt).split()}
        return {name: frozenset(words.intersection(values)) for name, values in self.attributes.items()}


class EmbeddedA(AttributeJudge):
    """Probability of an explosion by the CNN; clips uint8 `[8, 32, 32, 3]`."""

    attributes = ATTRIBUTES

    @classmethod
    def load(cls, config: EmbeddedAConfig) -> "EmbeddedA":
        """Raises JudgeError where the weights are not there or not those of the CNN."""
        path = Path(config.weights or JUDGE_FILE)
        network = load_network(JudgeA.load, path, "embedded")
        return cls(config.name, file_digest(path), {LABEL: config.threshold}, network, build_tokenizer())

    def _look(self, clips: NDArray[np.uint8]) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.int64]]]:
        verdict = self._network.judge(clips)
        return {LABEL: verdict.explosion}, {name: getattr(verdict, name) for name in ATTRIBUTES}


class EmbeddedB(WorldJudge):
    """Explosion or not by the share of fire-orange pixels; nothing trained, hence independent of judge A."""

    @classmethod
    def load(cls, config: EmbeddedBConfig) -> "EmbeddedB":
        """Needs no file; its probability is 0 or 1."""
        return cls(config.name, f"reins-serve-{__version__}", {LABEL: 0.5})

    def _look(self, clips: NDArray[np.uint8]) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.int64]]]:
        return {LABEL: JudgeB().judge(clips).explosion}, {}
