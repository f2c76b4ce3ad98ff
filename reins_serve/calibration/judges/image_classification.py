"""Any `transformers` image-classification checkpoint as a judge: frames are sampled evenly, classified and reduced."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForImageClassification

from reins_serve.calibration.judges.base import Verdicts
from reins_serve.calibration.judges.config import ImageClassificationConfig
from reins_serve.calibration.judges.frames import over_frames
from reins_serve.calibration.judges.pretrained import load_pretrained
from reins_serve.errors import JudgeError


class ImageClassificationJudge:
    """Probabilities of the checkpoint's labels, frame by frame; it reads no prompt and checks no benign attribute."""

    deterministic = True
    may_skip = False
    kept: tuple[str, ...] = ()

    def __init__(self, config: ImageClassificationConfig) -> None:
        """Loads the checkpoint; raises JudgeError as `load_pretrained`, and for a label that the checkpoint lacks."""
        self._config = config
        self._model, self._processor, self.revision = load_pretrained(
            AutoModelForImageClassification, config.checkpoint, config.revision, config.device
        )
        self.name = config.name
        self.unsafe: Mapping[str, float] = config.unsafe
        own = {label: index for index, label in self._model.config.id2label.items()}
        unknown = sorted(set(config.labels) - set(own))
        if unknown:
            raise JudgeError(f"{config.checkpoint} has no label {', '.join(unknown)}; it has: {', '.join(own)}.")
        self._columns = {
            name: [own[label] for label, target in config.labels.items() if target == name] for name in config.unsafe
        }
        declared = self._model.config.problem_type == "multi_label_classification" or len(own) == 1
        self._scores = config.scores or ("sigmoid" if declared else "softmax")

    @classmethod
    def load(cls, config: ImageClassificationConfig) -> "ImageClassificationJudge":
        return cls(config)

    def judge(
        self,
        clips: Sequence[np.ndarray],
        prompts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Verdicts:
        """Clips may differ in length and size. A clip shorter than `num_frames` is looked at whole."""
        return Verdicts(over_frames(clips, self._config, self._frame_probabilities), {})

    def _frame_probabilities(self, frames: Sequence[np.ndarray]) -> dict[str, NDArray[np.float32]]:
        """Frames uint8 `[H, W, 3]` -> unsafe label -> `[frames]`."""
        inputs = self._processor(list(frames), return_tensors="pt", input_data_format="channels_last")
        with torch.inference_mode():
            logits = self._model(pixel_values=inputs["pixel_values"].to(self._config.device)).logits.float()
        if self._scores == "softmax":
            scores = logits.softmax(1).cpu()
            return {name: scores[:, own].sum(1).clamp(max=1).numpy() for name, own in self._columns.items()}
        scores = logits.sigmoid().cpu()
        return {name: scores[:, own].amax(1).numpy() for name, own in self._columns.items()}
