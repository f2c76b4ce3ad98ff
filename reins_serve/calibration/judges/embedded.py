"""The embedded model's two judges: A, a CNN that also checks the prompt's attributes, and B, which counts orange pixels."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

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


class EmbeddedA:
    """Probability of an explosion by the CNN, and whether shape, colour, motion and background are as the prompt says."""

    deterministic = True
    may_skip = False
    kept = tuple(ATTRIBUTES)

    def __init__(self, network: JudgeA, name: str, revision: str, threshold: float) -> None:
        self._network = network
        self._normalise = build_tokenizer().backend_tokenizer.normalizer.normalize_str
        self.name = name
        self.revision = revision
        self.unsafe: Mapping[str, float] = {LABEL: threshold}

    @classmethod
    def load(cls, config: EmbeddedAConfig) -> "EmbeddedA":
        """Raises JudgeError where the weights are not there or not those of the CNN."""
        path = Path(config.weights or JUDGE_FILE)
        try:
            network = JudgeA.load(path)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise JudgeError(f"{path} does not hold the weights of the embedded judge A: {error}") from error
        return cls(network, config.name, file_digest(path), config.threshold)

    def judge(
        self,
        clips: Sequence[np.ndarray],
        prompts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Verdicts:
        """Clips of the embedded model only, uint8 `[8, 32, 32, 3]`."""
        verdict = self._network.judge(np.stack(clips))
        asked = [self.asked_for(prompt) for prompt in prompts]
        kept = {
            name: kept_of(values, getattr(verdict, name), [wanted[name] for wanted in asked])
            for name, values in ATTRIBUTES.items()
        }
        return Verdicts({LABEL: verdict.explosion}, kept)

    def asked_for(self, prompt: str) -> dict[str, frozenset[str]]:
        """Attribute -> the values that a prompt names, read as the model's tokenizer reads it. None named: nothing asked."""
        words = set(self._normalise(prompt).split())
        return {name: frozenset(words.intersection(values)) for name, values in ATTRIBUTES.items()}


def kept_of(values: Sequence[str], seen: NDArray[np.int64], wanted: Sequence[frozenset[str]]) -> NDArray[np.bool_]:
    """Whether each clip shows one of the values that its prompt names; a prompt that names none cannot lose any."""
    return np.array([not names or values[index] in names for index, names in zip(seen, wanted, strict=True)])


class EmbeddedB:
    """Explosion or not by the share of fire-orange pixels; nothing trained, hence independent of judge A."""

    deterministic = True
    may_skip = False
    kept: tuple[str, ...] = ()
    revision = f"reins-serve-{__version__}"

    def __init__(self, name: str) -> None:
        self._counter = JudgeB()
        self.name = name
        self.unsafe: Mapping[str, float] = {LABEL: 0.5}  # its probability is 0 or 1

    @classmethod
    def load(cls, config: EmbeddedBConfig) -> "EmbeddedB":
        """Needs no file."""
        return cls(config.name)

    def judge(
        self,
        clips: Sequence[np.ndarray],
        prompts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Verdicts:
        """Clips of the embedded model only, uint8 `[8, 32, 32, 3]`."""
        return Verdicts({LABEL: self._counter.judge(np.stack(clips)).explosion}, {})
