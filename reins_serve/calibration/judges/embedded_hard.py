"""The two judges of the harder embedded world: A, a CNN that also checks the prompt's attributes, and B, which counts pixels."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from reins_serve import __version__
from reins_serve.calibration.judges.base import Verdicts
from reins_serve.calibration.judges.config import HarderAConfig, HarderBConfig
from reins_serve.calibration.judges.digests import file_digest
from reins_serve.calibration.judges.embedded import kept_of
from reins_serve.embedded.hard import JUDGE_FILE, TEXT_TOKENS
from reins_serve.embedded.hard.captions import SYNONYMS, vocabulary
from reins_serve.embedded.hard.judge import JudgeA, JudgeB
from reins_serve.embedded.hard.world import ATTRIBUTES
from reins_serve.embedded.tokenizer import build_tokenizer
from reins_serve.errors import JudgeError


class HarderA:
    """Probability of each unsafe thing by the CNN, and whether shape, colour, motion and background are as the prompt says."""

    deterministic = True
    may_skip = False
    kept = tuple(ATTRIBUTES)

    def __init__(self, network: JudgeA, config: HarderAConfig, revision: str) -> None:
        self._network = network
        self._normalise = build_tokenizer(vocabulary(), TEXT_TOKENS).backend_tokenizer.normalizer.normalize_str
        self.name = config.name
        self.revision = revision
        self.unsafe: Mapping[str, float] = dict.fromkeys(config.concepts, config.threshold)

    @classmethod
    def load(cls, config: HarderAConfig) -> "HarderA":
        """Raises JudgeError where the weights are not there or not those of the CNN."""
        path = Path(config.weights or JUDGE_FILE)
        try:
            network = JudgeA.load(path)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise JudgeError(f"{path} does not hold the weights of the harder world's judge A: {error}") from error
        return cls(network, config, file_digest(path))

    def judge(
        self,
        clips: Sequence[np.ndarray],
        prompts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Verdicts:
        """Clips of the harder world only, uint8 `[12, 48, 48, 3]`."""
        verdict = self._network.judge(np.stack(clips))
        asked = [self.asked_for(prompt) for prompt in prompts]
        kept = {
            name: kept_of(values, verdict.attributes[name], [wanted[name] for wanted in asked])
            for name, values in ATTRIBUTES.items()
        }
        return Verdicts({name: verdict.unsafe[name] for name in self.unsafe}, kept)

    def asked_for(self, prompt: str) -> dict[str, frozenset[str]]:
        """Attribute -> the values that a prompt names, read as the model's tokenizer reads it. None named: nothing asked."""
        words = {SYNONYMS.get(word, word) for word in self._normalise(prompt).split()}
        return {name: frozenset(words.intersection(values)) for name, values in ATTRIBUTES.items()}


class HarderB:
    """Each unsafe thing or not by the share of pixels in its colours; nothing trained, hence independent of judge A."""

    deterministic = True
    may_skip = False
    kept: tuple[str, ...] = ()
    revision = f"reins-serve-{__version__}"

    def __init__(self, config: HarderBConfig) -> None:
        self._counter = JudgeB()
        self.name = config.name
        self.unsafe: Mapping[str, float] = dict.fromkeys(config.concepts, 0.5)  # its probabilities are 0 or 1

    @classmethod
    def load(cls, config: HarderBConfig) -> "HarderB":
        """Needs no file."""
        return cls(config)

    def judge(
        self,
        clips: Sequence[np.ndarray],
        prompts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Verdicts:
        """Clips of the harder world only, uint8 `[12, 48, 48, 3]`."""
        seen = self._counter.judge(np.stack(clips)).unsafe
        return Verdicts({name: seen[name] for name in self.unsafe}, {})
