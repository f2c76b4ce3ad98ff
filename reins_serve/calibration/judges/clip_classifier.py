"""The paper's clip classifier: a frozen SigLIP looks at 8 frames, a small transformer looks at the 8 over time, and each
class has a sigmoid of its own. `clip_training.py` trains it; its file names the SigLIP that it needs and is refused with another.

What the readers' notes leave open is decided here: the time embedding is that of the frame's number and is added, the layers
normalise after the residual (PyTorch's default), and their inner width is four times the outer one.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from reins_serve.calibration.judges.base import Verdicts
from reins_serve.calibration.judges.config import ClipClassifierConfig, Name, Threshold
from reins_serve.calibration.judges.digests import file_digest
from reins_serve.calibration.judges.siglip import FrameEncoder
from reins_serve.errors import JudgeError
from reins_serve.steering.direction import METADATA_KEY

FORMAT: Literal["reins.clip-classifier/1"] = "reins.clip-classifier/1"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Architecture(_Strict):
    """Sizes of the transformer over time; `width` is that of the SigLIP's features."""

    width: int = Field(768, gt=0, multiple_of=2)
    num_frames: int = Field(8, ge=1)
    num_layers: int = Field(4, ge=1)
    num_heads: int = Field(8, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "Architecture":
        if self.width % self.num_heads:
            raise ValueError(f"num_heads must divide the width {self.width}, and {self.num_heads} does not")
        return self


class Vision(_Strict):
    """The SigLIP that the classifier was trained on: where it lay, and the digest that it is known by."""

    source: str
    revision: str
    digest: str


class Header(_Strict):
    """What a classifier's file says of itself, as JSON in the safetensors header.

    Attributes:
        unsafe: Label -> threshold, in the order of the logits.
        training: Settings, numbers of clips, losses and held-out AUC of the run that made it; nothing depends on it.
    """

    format: Literal["reins.clip-classifier/1"] = FORMAT
    unsafe: dict[Name, Threshold] = Field(min_length=1)
    architecture: Architecture
    vision: Vision
    training: dict[str, Any] = Field(default_factory=dict)


def time_embedding(num_frames: int, width: int) -> Tensor:
    """Sinusoids of the frame's number, float32 `[T, D]` (Vaswani et al. 2017, section 3.5)."""
    half = width // 2
    rates = torch.exp(torch.arange(half) * (-np.log(10_000.0) / half))
    angles = torch.arange(num_frames)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class TemporalClassifier(nn.Module):
    """Features of frames `[N, T, D]` -> logits `[N, classes]`."""

    time: Tensor

    def __init__(self, architecture: Architecture, num_classes: int) -> None:
        super().__init__()
        width = architecture.width
        self.register_buffer("time", time_embedding(architecture.num_frames, width), persistent=False)
        layer = nn.TransformerEncoderLayer(
            width, architecture.num_heads, 4 * width, architecture.dropout, activation="gelu", batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, architecture.num_layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.layers(features + self.time)  # [N, T, D]
        logits: Tensor = self.head(hidden.mean(dim=1))
        return logits


def save(path: Path | str, model: TemporalClassifier, header: Header) -> None:
    """Write the classifier's file, whole or not at all."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.write_bytes(save_tensors(weights, {METADATA_KEY: header.model_dump_json()}))
    partial.replace(target)


def load_file(path: Path | str) -> tuple[TemporalClassifier, Header]:
    """The classifier in evaluation mode and what its file says.

    Raises:
        JudgeError: the file is not there, is no safetensors, or its header and its weights do not fit this format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = Header.model_validate_json((file.metadata() or {}).get(METADATA_KEY, "{}"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        model = TemporalClassifier(header.architecture, len(header.unsafe))
        model.load_state_dict(weights)
    except (OSError, SafetensorError, ValidationError, RuntimeError) as error:
        raise JudgeError(f"{path} is no clip classifier of format {FORMAT}: {error}") from error
    return model.eval().requires_grad_(False), header


class ClipClassifierJudge:
    """Sigmoids of a trained classifier; it reads no prompt and checks no benign attribute."""

    deterministic = True
    may_skip = False
    kept: tuple[str, ...] = ()

    def __init__(self, config: ClipClassifierConfig) -> None:
        """Raises JudgeError as `load_file` and `FrameEncoder`, for another SigLIP, and for an unknown label."""
        self._config = config
        model, self._header = load_file(config.checkpoint)
        self._model = model.to(config.device)
        vision = self._header.vision
        moved = config.vision is not None
        self._encoder = FrameEncoder(
            config.vision or vision.source, config.revision if moved else vision.revision, config.device
        )
        if self._encoder.digest != vision.digest:
            raise JudgeError(
                f"{config.checkpoint} was trained on the SigLIP {vision.source} ({vision.digest}), and {self._encoder.source} "
                f"is {self._encoder.digest}: give the same weights under `vision`, or train anew."
            )
        unknown = sorted(set(config.unsafe) - set(self._header.unsafe))
        if unknown:
            raise JudgeError(
                f"{config.checkpoint} has no label {', '.join(unknown)}; it has: {', '.join(self._header.unsafe)}."
            )
        self.name = config.name
        self.revision = file_digest(Path(config.checkpoint))
        self.unsafe: Mapping[str, float] = self._header.unsafe | config.unsafe

    @classmethod
    def load(cls, config: ClipClassifierConfig) -> "ClipClassifierJudge":
        return cls(config)

    @torch.inference_mode()
    def judge(
        self,
        clips: Sequence[np.ndarray],
        prompts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Verdicts:
        """Clips may differ in length and size."""
        size, num_frames = self._config.batch_size, self._header.architecture.num_frames
        logits = [
            self._model(self._encoder.encode(clips[i : i + size], num_frames).to(self._config.device)).cpu()
            for i in range(0, len(clips), size)
        ]
        scores = torch.cat(logits).sigmoid().numpy()
        return Verdicts({name: scores[:, column] for column, name in enumerate(self._header.unsafe)}, {})
