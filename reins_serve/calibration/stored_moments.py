"""Moments of labelled clips as they are accumulated and stored: per class or jointly with soft or several labels.

One safetensors file holds them with the model, blocks, window and labels they belong to, so that fresh data merge into
old, and a fit needs no activation again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from reins_serve.calibration.moments import INVALID, Moments, Vectors
from reins_serve.errors import ReinsError
from reins_serve.steering.direction import Window

METADATA_KEY = "reins"


class MomentsMeta(BaseModel):
    """What stored moments belong to; moments merge only where all of it is equal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["reins.moments/1"] = "reins.moments/1"
    model: str
    fingerprint: str
    blocks: tuple[int, ...]
    window: Window
    labels: tuple[str, ...]


@dataclass(frozen=True)
class LabelledMoments:
    """Moments of clips with labels.

    Attributes:
        parts: `{"safe": ..., "unsafe": ...}` (as far as seen) for binary labels; `{"joint": ...}` for soft or several
            labels, whose last column of y is then the largest of a row's labels ("any") where there are several.
        meta: What they belong to, once they are to be stored.
    """

    parts: Mapping[str, Moments] = field(default_factory=dict)
    meta: MomentsMeta | None = None

    @classmethod
    def of(
        cls,
        activations: Vectors,
        unsafe: np.ndarray,
        prompts: np.ndarray | None = None,
        weights: np.ndarray | None = None,
        meta: MomentsMeta | None = None,
    ) -> "LabelledMoments":
        """Moments of a batch `[N, L, D]`, or of a tuple of L arrays `[N, D]`.

        Args:
            unsafe: bool `[N]` (binary), or float `[N, K]` from 0 (safe) to 1 (soft, or several labels).
            prompts, weights: As in `Moments.of`.

        Raises:
            ReinsError: labels are missing (NaN), out of range, or of another length.
        """
        y = np.asarray(unsafe)
        clips = len(activations[0] if isinstance(activations, tuple) else activations)
        if len(y) != clips:
            raise ReinsError(f"There are {len(y)} labels for {clips} clips.", code=INVALID)
        if y.dtype == bool and y.ndim == 1:
            parts = {
                name: Moments.of(activations, None, prompts, weights, rows)
                for name, rows in (("safe", ~y), ("unsafe", y))
                if rows.any()
            }
            return cls(parts, meta)
        y = (y[:, None] if y.ndim == 1 else y).astype(np.float64)
        if y.ndim != 2 or not y.size or not ((y >= 0) & (y <= 1)).all():
            raise ReinsError(
                "Labels must be bool [N], or probabilities [N, K] from 0 to 1; a label that is missing is not 'safe': leave "
                "its clip out, or judge it again.",
                code=INVALID,
            )
        if y.shape[1] > 1:
            y = np.concatenate([y, y.max(axis=1, keepdims=True)], axis=1)
        return cls({"joint": Moments.of(activations, y, prompts, weights)}, meta)

    def merge(self, other: "LabelledMoments", half_life: float | None = None) -> "LabelledMoments":
        """Both together.

        Args:
            half_life: What is stored here loses half its weight for every `half_life` prompts of `other`. None: old and
                new prompts weigh the same.

        Raises:
            ReinsError: they belong to different models, blocks, windows or labels (the message names the field).
        """
        if self.meta and other.meta:
            for name, value in self.meta.model_dump().items():
                found = other.meta.model_dump()[name]
                if found != value:
                    raise ReinsError(f"Moments of different {name} cannot be merged: {value!r} and {found!r}.",
                                     code=INVALID)  # fmt: skip
        if self.parts and other.parts and ("joint" in self.parts) != ("joint" in other.parts):
            raise ReinsError("Binary labels and soft labels cannot be merged; fit them apart.", code=INVALID)
        old = dict(self.parts)
        if half_life is not None:
            if not half_life > 0:
                raise ReinsError("half_life must be a positive number of prompts.", code=INVALID)
            factor = 0.5 ** (sum(part.prompts for part in other.parts.values()) / half_life)
            old = {name: part.scaled(factor) for name, part in old.items()}
        merged = {
            name: old[name].merge(other.parts[name]) if name in old and name in other.parts else {**old, **other.parts}[name]
            for name in sorted(old.keys() | other.parts.keys())
        }  # fmt: skip
        return LabelledMoments(merged, self.meta or other.meta)

    def to_bytes(self) -> bytes:
        """A safetensors file. Raises ReinsError when `meta` is not set."""
        if self.meta is None:
            raise ReinsError("Moments are stored with their model, blocks and labels: set `meta`.", code=INVALID)
        tensors = {f"{name}.{key}": np.asarray(value, order="C") for name, part in self.parts.items()
                   for key, value in part.tensors().items()}  # fmt: skip
        prompts = {name: part.prompts for name, part in self.parts.items()}
        # One key: safetensors writes several in no fixed order, and equal moments shall be equal bytes.
        header = json.dumps({"meta": self.meta.model_dump(mode="json"), "prompts": prompts}, sort_keys=True)
        return save_tensors(tensors, metadata={METADATA_KEY: header})

    @classmethod
    def from_bytes(cls, data: bytes) -> "LabelledMoments":
        """Read what `to_bytes` wrote. Raises ReinsError for anything else."""
        try:
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])["__metadata__"]
            meta = MomentsMeta.model_validate_json(json.dumps(json.loads(header[METADATA_KEY])["meta"]))
            tensors = load_tensors(data)
            names = sorted({name.partition(".")[0] for name in tensors})
            parts = {
                name: Moments.from_tensors(
                    {k.partition(".")[2]: v for k, v in tensors.items() if k.startswith(f"{name}.")}
                )
                for name in names
            }
        except (ValueError, KeyError, TypeError, SafetensorError, ValidationError) as error:
            raise ReinsError(f"This is no file of stored moments, or an incomplete one ({error}); compute them again from "
                             "the activations.", code=INVALID) from error  # fmt: skip
        return cls(parts, meta)
