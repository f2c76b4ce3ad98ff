"""Direction: unit vectors towards safe content, where they go and how strong, in one safetensors file that says everything.

The vectors are stored bare; strength is stored beside them as a multiple of a named unit and never folded in. A file with a
missing or unknown field, a key that is there twice, a text where a number belongs, another format, a pickle, a vector that is not
finite or not of unit length is refused.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from reins_serve.errors import DirectionError

FORMAT = "reins.direction/1"
METADATA_KEY = "reins"
MAX_BYTES = 64 * 2**20  # far above any direction: a bank of 64 blocks of width 8,192 takes 4 MiB
MAX_HEADER = 256 * 2**10  # far above what 64 blocks need; JSON takes many times its bytes in memory
LARGEST, SMALLEST = 1e12, 1e-12  # far beyond any hidden state, and their products are still numbers in float32
MAX_DETAILS = 600


def _finite(value: float) -> float:
    if not math.isfinite(value) or abs(value) > LARGEST:
        raise ValueError(f"must be a finite number, of at most {LARGEST:g}")
    return value


Finite = Annotated[float, AfterValidator(_finite)]
Word = Annotated[str, Field(max_length=200)]  # what an error message repeats


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Base(_Strict):
    """The model that the direction belongs to."""

    fingerprint: Word = Field(min_length=8)
    denoiser: Word  # attribute of the pipeline, such as "transformer"
    denoiser_class: Word
    width: int = Field(gt=0)
    num_blocks: int = Field(gt=0)


class Window(_Strict):
    """Share of the denoising steps that is steered: steps i with ceil(start n) <= i < ceil(end n)."""

    start: Finite = Field(0.0, ge=0, lt=1)
    end: Finite = Field(0.5, gt=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> "Window":
        if self.start >= self.end:
            raise ValueError("window.start must be below window.end")
        return self

    def steps(self, total: int) -> range:
        """The steered steps of a generation of `total` denoising steps."""
        return range(math.ceil(self.start * total), math.ceil(self.end * total))


class BlockStatistics(_Strict):
    """What was measured at one block: projections on the unit vector, in the hidden states' own scale."""

    safe_mean: Finite  # mean projection of the safe class; the target m of `setpoint`, less its margin
    unsafe_mean: Finite
    ref_norm: Finite = Field(gt=0)  # median L2 norm of a token

    @property
    def gap(self) -> float:
        """Distance of the class means along the direction; positive, because directions point towards safe."""
        return self.safe_mean - self.unsafe_mean


class Strength(_Strict):
    """How strong: a multiple of `unit`. `add` pushes strength x unit; `setpoint` uses strength as beta (unit `deficit`)."""

    unit: Literal["gap", "ref_norm", "deficit"]
    serving: Finite = Field(gt=0)
    max: Finite = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> "Strength":
        if self.serving > self.max:
            raise ValueError("strength.serving must not exceed strength.max")
        return self


class Guard(_Strict):
    """Blocks of a set-point that push only clips which are unsafe there, such as those that the blocks before have not made safe.

    A guard pushes to the safe mean itself, and only where the mean projection over a clip's tokens is below it by more than
    `shortfall` of the gap between the classes; from twice that on, in full.
    """

    blocks: tuple[int, ...] = Field(min_length=1)
    shortfall: Finite = Field(gt=0, le=0.5)  # at the unsafe mean a guard pushes in full


class Fit(_Strict):
    """How the direction was found."""

    method: str
    created: str  # ISO 8601, UTC
    tool: str
    prompts_safe: int = Field(ge=0)
    prompts_unsafe: int = Field(ge=0)
    clips: int = Field(ge=0)
    judge: str
    auc: Finite | None = None  # cross-fitted, folds grouped by prompt, at the steered block
    sources: tuple[str, ...] = ()
    seed: int
    captured: Window | None = None  # share of the steps whose activations were fitted; None: what is steered


class Gate(_Strict):
    """One gate's verdict."""

    value: Finite | None
    limit: str
    passed: bool


class DirectionMeta(_Strict):
    """Everything that a direction file says besides its vectors."""

    format: Literal["reins.direction/1"]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    model: Word
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    role: Literal["steer", "control"]  # a control measures something and is never live
    base: Base
    blocks: tuple[int, ...] = Field(min_length=1)
    operation: Literal["add", "setpoint"]
    norm: Literal["token", "channel", "none"]
    branches: Literal["both", "cond"]
    window: Window
    strength: Strength
    statistics: tuple[BlockStatistics, ...]
    margin: Finite = Field(
        0.0, ge=0, lt=1
    )  # `setpoint`: the target is less than the safe mean by this share of the gap
    guard: Guard | None = None
    fit: Fit
    gates: dict[str, Gate]
    parent: str | None = None

    @property
    def captured(self) -> Window:
        """The window that activations for the next direction are captured in: that of this one's, which may steer longer."""
        return self.fit.captured or self.window

    @model_validator(mode="after")
    def _consistent(self) -> "DirectionMeta":
        if len(set(self.blocks)) != len(self.blocks) or not all(0 <= b < self.base.num_blocks for b in self.blocks):
            raise ValueError(f"blocks must be different numbers from 0 to {self.base.num_blocks - 1}")
        if len(self.statistics) != len(self.blocks):
            raise ValueError("statistics must have one entry per block")
        if (self.operation == "setpoint") != (self.strength.unit == "deficit"):
            raise ValueError("setpoint is measured in `deficit`, add in `gap` or `ref_norm`")
        if self.margin and self.operation != "setpoint":
            raise ValueError("margin is for setpoint: an addition has no target")
        if self.guard is not None and not (self.operation == "setpoint" and set(self.guard.blocks) <= set(self.blocks)):
            raise ValueError("guard is for setpoint, and names some of its blocks")
        if self.role == "steer" and any(s.gap < SMALLEST for s in self.statistics):
            raise ValueError(
                "safe must project higher than unsafe at every block (the direction would push towards harm)"
            )
        return self


@dataclass(frozen=True)
class Direction:
    """A direction as it is served.

    Attributes:
        meta: What the file says.
        vectors: float32 `[L, D]`, unit length, one per entry of `meta.blocks`.
        data: The file's bytes; `sha256` is their digest and identifies the direction everywhere.
    """

    meta: DirectionMeta
    vectors: torch.Tensor
    data: bytes

    @classmethod
    def create(cls, meta: DirectionMeta, vectors: torch.Tensor) -> "Direction":
        """Build from metadata and vectors `[L, D]`. Raises DirectionError when they do not fit together."""
        header = {METADATA_KEY: meta.model_dump_json()}
        return cls.parse(save_tensors({"vectors": vectors.float().contiguous()}, metadata=header))

    @classmethod
    def load(cls, path: str | Path) -> "Direction":
        """Read a file. Raises DirectionError with a sentence that says what is wrong and what to do."""
        path = Path(path)
        try:
            if path.stat().st_size > MAX_BYTES:
                raise DirectionError(f"{path.name} is larger than {MAX_BYTES >> 20} MiB: that is no direction file.")
            data = path.read_bytes()
        except OSError as error:
            raise DirectionError(
                f"The direction file {path} cannot be read ({error.strerror}). Check the path; `reins-serve recalibrate` makes one."
            ) from error
        return cls.parse(data, path.name)

    @classmethod
    def parse(cls, data: bytes, source: str = "the direction") -> "Direction":
        """Validate a file's bytes. Raises DirectionError."""
        meta = _read_meta(data, source)
        try:
            tensors = load_tensors(data)
        except (SafetensorError, ValueError, KeyError, OverflowError, RuntimeError) as error:
            raise DirectionError(
                f"{source} is not a complete safetensors file ({error}). Copy it again, or publish it again."
            ) from error
        if set(tensors) != {"vectors"}:
            held = ", ".join(sorted(tensors))
            raise DirectionError(
                f"{source} must hold exactly one tensor named 'vectors'; it holds {held[:MAX_DETAILS] or 'none'}."
            )
        vectors = tensors["vectors"]
        expected = (len(meta.blocks), meta.base.width)
        if vectors.dtype != torch.float32 or tuple(vectors.shape) != expected:
            raise DirectionError(
                f"{source}: 'vectors' must be float32 of shape {expected} (blocks x width); it is {vectors.dtype} "
                f"{tuple(vectors.shape)}. Refit it for this model."
            )
        if not torch.isfinite(vectors).all():
            raise DirectionError(f"{source} holds values that are not finite. Refit it; do not repair it by hand.")
        lengths = vectors.double().norm(dim=1)
        if not torch.allclose(lengths, torch.ones_like(lengths), atol=1e-4):
            raise DirectionError(
                f"{source}: every vector must have unit length (strength is stored apart); lengths are {lengths[:8].tolist()}."
            )
        return cls(meta, vectors, data)

    def save(self, path: str | Path) -> None:
        """Write the file by way of a temporary name, so that no reader sees half of it."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        temporary.write_bytes(self.data)
        temporary.replace(path)

    @property
    def sha256(self) -> str:
        """Digest of the file's bytes, hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def name(self) -> str:
        return self.meta.name

    @property
    def model(self) -> str:
        return self.meta.model

    @property
    def version(self) -> str:
        return self.meta.version

    @property
    def operation(self) -> str:
        return self.meta.operation

    @property
    def branches(self) -> str:
        return self.meta.branches

    @property
    def blocks(self) -> tuple[int, ...]:
        return self.meta.blocks

    @property
    def serving_strength(self) -> float:
        return self.meta.strength.serving

    @property
    def max_strength(self) -> float:
        return self.meta.strength.max

    def unit(self, position: int) -> float:
        """Size of strength 1 at the block of `meta.blocks[position]`: a length for `add`, 1 for `setpoint`."""
        statistics = self.meta.statistics[position]
        return {"gap": statistics.gap, "ref_norm": statistics.ref_norm, "deficit": 1.0}[self.meta.strength.unit]

    def target(self, position: int) -> float:
        """Projection below which a set-point pushes, at the block of `meta.blocks[position]`.

        Half of what is safe projects below the safe mean: with a margin a benign token is pushed less, or not at all.
        """
        statistics = self.meta.statistics[position]
        margin = self.meta.margin if self.guard(position) is None else 0.0
        return statistics.safe_mean - margin * statistics.gap

    def guard(self, position: int) -> Guard | None:
        """What the block of `meta.blocks[position]` guards by; None where it pushes every clip."""
        guard = self.meta.guard
        return guard if guard is not None and self.meta.blocks[position] in guard.blocks else None

    def condition(self, position: int) -> tuple[float, float]:
        """Below which mean projection of a clip the block of `meta.blocks[position]` pushes, and how much further below in full.

        Infinite where it is no guard.
        """
        guard, statistics = self.guard(position), self.meta.statistics[position]
        if guard is None:
            return math.inf, 1.0
        short = guard.shortfall * statistics.gap
        return statistics.safe_mean - short, short


def _read_meta(data: bytes, source: str) -> DirectionMeta:
    """The metadata in a safetensors header, validated. Raises DirectionError."""
    refusal = f"{source} is not a safetensors direction file"
    try:
        length = int.from_bytes(data[:8], "little")
        if len(data) < 8 or length > len(data) - 8:
            raise ValueError("the header is cut off")
        if length > MAX_HEADER:
            raise DirectionError(f"{refusal}: its header takes {length} bytes, and no direction needs {MAX_HEADER}.")
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_unique)
        text = header["__metadata__"][METADATA_KEY]
        json.loads(text, object_pairs_hook=_unique)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DirectionError(
            f"{refusal} (no readable `{METADATA_KEY}` header). Pickles and other formats are never loaded: make the file "
            "with `reins-serve recalibrate`."
        ) from error
    try:
        return DirectionMeta.model_validate_json(text, strict=True)
    except (ValidationError, TypeError) as error:
        raise DirectionError(
            f"{source} is refused: {_details(error)}. Make it again with this version of reins-serve."
        ) from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON, in which another reader must find what this one does. Raises DirectionError."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise DirectionError(
            "A key is there twice in the direction's header, so that it could be read in two ways. Make the file again with "
            "`reins-serve recalibrate`."
        )
    return found


def _details(error: ValidationError | TypeError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    wrong = error.errors(include_url=False, include_context=False, include_input=False)[:5]
    details = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'metadata'}: {e['msg']}" for e in wrong)
    return details if len(details) <= MAX_DETAILS else details[:MAX_DETAILS] + "..."
