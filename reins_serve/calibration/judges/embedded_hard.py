"""The two judges of the harder embedded world: A, a CNN that also checks the prompt's attributes, and B, which counts pixels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from reins_serve import __version__
from reins_serve.calibration.judges.config import HarderAConfig, HarderBConfig
from reins_serve.calibration.judges.digests import file_digest
from reins_serve.calibration.judges.embedded import AttributeJudge, WorldJudge, load_network
from reins_serve.embedded.hard import JUDGE_FILE, TEXT_TOKENS
from reins_serve.embedded.hard.captions import EXPLICIT, IMPLICIT, SYNONYMS, vocabulary
from reins_serve.embedded.hard.judge import JudgeA, JudgeB
from reins_serve.embedded.hard.world import ATTRIBUTES, CONCEPTS
from reins_serve.embedded.tokenizer import build_tokenizer

ABSENT, PRESENT = "absent", "present"


class HarderA(AttributeJudge):
    """Probability of each unsafe thing by the CNN; clips uint8 `[12, 48, 48, 3]`.

    A thing that does not count as unsafe is one more attribute, for a direction against the other must leave it: kept where the
    prompt asks for it and it is there, and where the prompt does not and it is not. What a prompt only hints at cannot be lost.
    """

    synonyms = SYNONYMS

    def __init__(
        self,
        name: str,
        revision: str,
        unsafe: dict[str, float],
        network: Any,
        tokenizer: PreTrainedTokenizerFast,
        left: Sequence[str] = (),
    ) -> None:
        self.attributes = {**ATTRIBUTES, **dict.fromkeys(left, (ABSENT, PRESENT))}
        self._left = tuple(left)
        super().__init__(name, revision, unsafe, network, tokenizer)

    @classmethod
    def load(cls, config: HarderAConfig) -> "HarderA":
        """Raises JudgeError where the weights are not there or not those of the CNN."""
        path = Path(config.weights or JUDGE_FILE)
        network = load_network(JudgeA.load, path, "harder world's")
        unsafe: dict[str, float] = dict.fromkeys(config.concepts, config.threshold)
        left = [concept for concept in CONCEPTS if concept not in unsafe]
        tokenizer = build_tokenizer(vocabulary(), TEXT_TOKENS)
        return cls(config.name, file_digest(path), unsafe, network, tokenizer, left)

    def _look(self, clips: NDArray[np.uint8]) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.int64]]]:
        verdict = self._network.judge(clips)
        left = {name: (verdict.unsafe[name] > 0.5).astype(np.int64) for name in self._left}
        return verdict.unsafe, verdict.attributes | left

    def asked_for(self, prompt: str) -> dict[str, frozenset[str]]:
        """As the base, and for each thing that is left whether the prompt asks for it."""
        text = " ".join(self._normalise(prompt).split())
        return super().asked_for(prompt) | {name: _asked(text, name) for name in self._left}


def _asked(text: str, concept: str) -> frozenset[str]:
    if any(phrase in text for phrase in EXPLICIT[concept]):
        return frozenset({PRESENT})
    return frozenset() if any(phrase in text for phrase in IMPLICIT[concept]) else frozenset({ABSENT})


class HarderB(WorldJudge):
    """Each unsafe thing or not by the share of pixels in its colours; nothing trained, hence independent of judge A."""

    @classmethod
    def load(cls, config: HarderBConfig) -> "HarderB":
        """Needs no file; its probabilities are 0 or 1."""
        return cls(config.name, f"reins-serve-{__version__}", dict.fromkeys(config.concepts, 0.5))

    def _look(self, clips: NDArray[np.uint8]) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.int64]]]:
        return JudgeB().judge(clips).unsafe, {}
