"""What an activation file is: its metadata, the Parquet schema that follows from it, and what its values must be."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from reins_serve.calibration.judges import Judge
from reins_serve.errors import ReinsError
from reins_serve.steering.direction import Window

METADATA_KEY = b"reins"
INVALID = "activations_invalid"

# What every clip has: column -> (type, may be null).
CLIP_COLUMNS: dict[str, tuple[pa.DataType, bool]] = {
    "clip_id": (pa.string(), False),
    "model": (pa.string(), False),
    "fingerprint": (pa.string(), False),
    "source": (pa.string(), False),  # where the clip came from: a prompt set, a replica
    "prompt_sha256": (pa.string(), False),  # clips of one prompt are not independent: this groups them
    "prompt": (pa.string(), True),
    "group": (pa.string(), False),  # what folds must not split
    "category": (pa.string(), True),
    "split": (pa.string(), False),
    "seed": (pa.int64(), False),
    "steps": (pa.int32(), False),
    "guidance_scale": (pa.float64(), False),
    "window_start": (pa.float64(), False),
    "window_end": (pa.float64(), False),
    "weight": (pa.float64(), False),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class JudgeColumns(_Strict):
    """One judge's columns: `unsafe/<judge>/<label>` and `kept/<judge>/<attribute>`, probabilities, null where not judged."""

    revision: str
    unsafe: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    @classmethod
    def of(cls, judge: Judge) -> "JudgeColumns":
        """The columns of what a judge answers."""
        return cls(revision=judge.revision, unsafe=tuple(judge.unsafe), kept=judge.kept)


class ActivationsMeta(_Strict):
    """What all clips of a file share."""

    format: Literal["reins.activations/1"] = "reins.activations/1"
    model: str
    fingerprint: str
    blocks: tuple[int, ...] = Field(min_length=1)
    width: int = Field(gt=0)
    dtype: Literal["float16", "float32"] = "float16"
    window: Window
    judges: dict[str, JudgeColumns] = {}

    def label_columns(self) -> list[str]:
        """Names of all label columns, in the file's order."""
        return [
            f"{kind}/{judge}/{name}"
            for judge, columns in self.judges.items()
            for kind, names in (("unsafe", columns.unsafe), ("kept", columns.kept))
            for name in names
        ]

    def parquet_schema(self) -> pa.Schema:
        """The exact schema of a file: clip columns, `block_<i>` and `norm_<i>` of each block, labels; the metadata with it."""
        value = pa.float16() if self.dtype == "float16" else pa.float32()
        vector = pa.list_(pa.field("element", value, nullable=False), self.width)
        fields = [pa.field(name, kind, nullable) for name, (kind, nullable) in CLIP_COLUMNS.items()]
        fields += [pa.field(f"block_{block}", vector, nullable=False) for block in self.blocks]
        fields += [pa.field(f"norm_{block}", pa.float32(), nullable=False) for block in self.blocks]
        fields += [pa.field(name, pa.float32()) for name in self.label_columns()]
        return pa.schema(fields, metadata={METADATA_KEY: self.model_dump_json()})


def refuse_not_finite(values: np.ndarray, ids: Sequence[str], column: str, advice: str) -> None:
    """Raise ReinsError that names the clips where `[N, D]` values, float16 or float32, are NaN or infinite."""
    half = values.dtype == np.float16
    bits = np.ascontiguousarray(values).view(np.uint16 if half else np.uint32)
    # All exponent bits set means NaN or infinity; an integer compare is several times faster than isfinite of float16.
    limit = 0xF800 if half else 0xFF000000
    for start in range(0, len(bits), 16):  # small enough to stay in the processor's cache
        if np.left_shift(bits[start : start + 16], 1).max() >= limit:
            break
    else:
        return
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    named = ", ".join(str(ids[row]) for row in bad[:5]) + (", ..." if len(bad) > 5 else "")
    raise ReinsError(f"Column `{column}` is not finite in {len(bad)} clips ({named}): {advice}.", code=INVALID)


def expect(condition: bool, message: str) -> None:
    """Raise ReinsError with the message unless the condition holds."""
    if not condition:
        raise ReinsError(message, code=INVALID)
