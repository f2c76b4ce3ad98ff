"""The frozen half of the clip classifier: a SigLIP vision tower turns evenly spaced frames into features."""

import json
from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from transformers import SiglipVisionModel

from reins_serve.calibration.judges.base import evenly_spaced
from reins_serve.calibration.judges.digests import digest
from reins_serve.calibration.judges.pretrained import load_pretrained
from reins_serve.errors import JudgeError

# What of the image processor changes the features; its class and version do not.
_PREPARATION = (
    "do_resize",
    "size",
    "resample",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)


class FrameEncoder:
    """A SigLIP vision tower and its image processor.

    Attributes:
        source: The folder or hub id that it was loaded from.
        revision: The commit, or the folder's digest.
        width: Size D of a frame's features (768 for the base model).
        digest: Over the tower's weights and the preparation of pictures, wherever they were loaded from.
    """

    def __init__(self, source: str, revision: str | None = None, device: str = "cpu") -> None:
        """Raises JudgeError as `load_pretrained`, and for a tower without the pooling head that makes the features."""
        self._model, self._processor, self.revision = load_pretrained(SiglipVisionModel, source, revision, device)
        if not self._model.use_head:
            raise JudgeError(f"{source} has no pooling head (vision_use_head is false): take a SigLIP that has one.")
        self.source = source
        self.width: int = self._model.config.hidden_size
        prepared = json.dumps(
            {name: str(getattr(self._processor, name, None)) for name in _PREPARATION}, sort_keys=True
        )
        weights = (tensor.cpu().numpy().tobytes() for _, tensor in sorted(self._model.state_dict().items()))
        self.digest = digest(chain([prepared.encode()], weights))

    @torch.inference_mode()
    def encode(self, clips: Sequence[np.ndarray], num_frames: int) -> Tensor:
        """Clips uint8 `[T, H, W, 3]`, of any length and size -> features float32 `[N, num_frames, D]` on the CPU."""
        frames = [frame for clip in clips for frame in clip[evenly_spaced(len(clip), num_frames)]]
        inputs = self._processor(frames, return_tensors="pt", input_data_format="channels_last")
        pooled = self._model(pixel_values=inputs["pixel_values"].to(self._model.device)).pooler_output
        return pooled.float().cpu().unflatten(0, (len(clips), num_frames)).clone()
