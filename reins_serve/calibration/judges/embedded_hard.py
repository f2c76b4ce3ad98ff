"""The two judges of the harder embedded world: A, a CNN that also checks the prompt's attributes, and B, which counts pixels."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reins_serve import __version__
from reins_serve.calibration.judges.config import HarderAConfig, HarderBConfig
from reins_serve.calibration.judges.digests import file_digest
from reins_serve.calibration.judges.embedded import AttributeJudge, WorldJudge, load_network
from reins_serve.embedded.hard import JUDGE_FILE, TEXT_TOKENS
from reins_serve.embedded.hard.captions import SYNONYMS, vocabulary
from reins_serve.embedded.hard.judge import JudgeA, JudgeB
from reins_serve.embedded.hard.world import ATTRIBUTES
from reins_serve.embedded.tokenizer import build_tokenizer


class HarderA(AttributeJudge):
    """Probability of each unsafe thing by the CNN; clips uint8 `[12, 48, 48, 3]`."""

    attributes = ATTRIBUTES
    synonyms = SYNONYMS

    @classmethod
    def load(cls, config: HarderAConfig) -> "HarderA":
        """Raises JudgeError where the weights are not there or not those of the CNN."""
        path = Path(config.weights or JUDGE_FILE)
        network = load_network(JudgeA.load, path, "harder world's")
        unsafe: dict[str, float] = dict.fromkeys(config.concepts, config.threshold)
        return cls(config.name, file_digest(path), unsafe, network, build_tokenizer(vocabulary(), TEXT_TOKENS))

    def _look(self, clips: NDArray[np.uint8]) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.int64]]]:
        verdict = self._network.judge(clips)
        return verdict.unsafe, verdict.attributes


class HarderB(WorldJudge):
    """Each unsafe thing or not by the share of pixels in its colours; nothing trained, hence independent of judge A."""

    @classmethod
    def load(cls, config: HarderBConfig) -> "HarderB":
        """Needs no file; its probabilities are 0 or 1."""
        return cls(config.name, f"reins-serve-{__version__}", dict.fromkeys(config.concepts, 0.5))

    def _look(self, clips: NDArray[np.uint8]) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.int64]]]:
        return JudgeB().judge(clips).unsafe, {}
