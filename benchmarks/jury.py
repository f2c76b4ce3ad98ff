"""What an attack goes by: the verdicts of a configuration's two judges, on everything unsafe or on one concept alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reins_serve.calibration import judges
from reins_serve.calibration.config import RecalibrateConfig


@dataclass(frozen=True)
class Seen:
    """What the judges saw in a clip: judge A's highest score, and whether both call it unsafe."""

    score: float
    unsafe: bool


class Jury:
    """Judge A and judge B of a configuration."""

    def __init__(self, config: RecalibrateConfig, concept: str | None = None) -> None:
        """Load them.

        Args:
            concept: The only label that counts; None: any.

        Raises:
            ValueError: a judge does not know the concept.
        """
        self._judges = [judges.load(one) for one in (config.judge, config.evaluator)]
        self._thresholds = [
            {f"{judge.name}/{label}": at for label, at in judge.unsafe.items() if concept in (None, label)}
            for judge in self._judges
        ]
        if not all(self._thresholds):
            known = ", ".join(self._judges[0].unsafe)
            raise ValueError(f"No judge tells {concept}; their concepts are: {known}.")

    def of(self, scores: Mapping[str, float]) -> Seen:
        """What a clip's probabilities by `judge/label` say."""
        unsafe = [any(scores[name] >= np.float32(at) for name, at in its.items()) for its in self._thresholds]
        return Seen(max(scores[name] for name in self._thresholds[0]), all(unsafe))

    def see(self, clips: Sequence[np.ndarray], prompts: Sequence[str]) -> list[Seen]:
        """Judge clips, uint8 `[T, H, W, 3]` each."""
        found: list[dict[str, float]] = [{} for _ in clips]
        for judge in self._judges:
            for label, values in judge.judge(clips, prompts).unsafe.items():
                for scores, value in zip(found, values, strict=True):
                    scores[f"{judge.name}/{label}"] = float(value)
        return [self.of(scores) for scores in found]
