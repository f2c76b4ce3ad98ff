"""The checkpoints that are offered, one entry each: where they come from, what they are, and which clips they can make.

`checkpoints.yaml` lists the public ones; the embedded model stands here. To offer one of your own, register an entry in Python
or write the same words under `entry:` of a model in a deployment's YAML:

    from reins_serve.models.catalog import CatalogEntry, register

    register(CatalogEntry(
        name="mine", source="/models/mine", pipelines={"text-to-video": "WanPipeline"}, fps=16, width=832, height=480,
        size_multiple=16, min_side=256, max_side=1280, num_frames=81, max_frames=81, frame_multiple=4,
        num_inference_steps=50, guidance_scale=5.0,
    ))
"""

from collections.abc import Mapping
from dataclasses import field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from reins_serve.embedded import MODEL_DIR, hard
from reins_serve.errors import ReinsError, UnsupportedRequest

CHECKPOINTS = Path(__file__).with_name("checkpoints.yaml")
PROOF_SIDE = 256  # pixels; large enough for every size rule, small enough for a proof in seconds


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class CatalogEntry:
    """One checkpoint. Facts that could not be confirmed in a public source are named in `unverified`.

    Attributes:
        name: The word by which requests and configurations ask for it.
        source: Hub repository id or local folder in diffusers layout.
        pipelines: diffusers pipeline class by task (`text-to-video`, `image-to-video`, `video-to-video`); the first is default.
        fps: Frames per second of the clips that it was trained on.
        width, height: Default size in pixels.
        size_multiple: Both sides must be multiples of this, at least `min_side` and at most `max_side`.
        num_frames, max_frames: Default and largest length; lengths are multiples of `frame_multiple` plus `frame_offset`.
        min_frames: Least length; None: the smallest that the rule allows.
        fixed_size: The pipeline refuses any size but the default.
        num_inference_steps, max_steps, guidance_scale, max_guidance: Defaults and bounds of sampling.
        revision: Commit of a repository, as `reins-serve models pin` resolved it; None for a folder, or before that.
        denoiser, num_blocks, hidden_width, experts: Transformer class, blocks on the video path of one denoiser, width of the
            video tokens, and number of denoisers.
        flow_shift: Shift of the flow-matching schedule that the model card recommends at the default size.
        arguments: Further arguments that every call of the pipeline needs.
        names: The pipeline's own name of a request's field, where it differs from the usual ones.
        pipeline_frames_offset: What to add to the number of frames in the pipeline's own argument.
        optional_image: The pipeline takes an image, and does without one too.
        max_batch: Most clips that one pipeline call can make, or can make so that none depends on the others; None: as many as
            memory allows.
        vae: What decoding needs: `slicing` (clip by clip), `tiling`.
        dtype: Floating type that the card recommends.
        weight_bytes: Size of all weights in that type; `gpu_memory_gib`: what the default clip needs without offload.
        licence, commercial_use: The licence's name, and whether it lets one sell the use: `yes`, `restricted`, `no`.
        evidence, note: Where the facts come from, and what a user must know besides.
    """

    name: str
    source: str | Path
    pipelines: Mapping[str, str]
    fps: float
    width: int
    height: int
    size_multiple: int
    min_side: int
    max_side: int
    num_frames: int
    max_frames: int
    frame_multiple: int
    num_inference_steps: int
    guidance_scale: float
    frame_offset: int = 1
    min_frames: int | None = None
    fixed_size: bool = False
    max_steps: int = 100
    max_guidance: float = 20.0
    revision: str | None = None
    denoiser: str | None = None
    num_blocks: int | None = None
    hidden_width: int | None = None
    experts: int = 1
    flow_shift: float | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    pipeline_frames_offset: int = 0
    optional_image: bool = False
    max_batch: int | None = None
    vae: tuple[Literal["slicing", "tiling"], ...] = ()
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    weight_bytes: int | None = None
    gpu_memory_gib: float | None = None
    licence: str = "unknown"
    commercial_use: Literal["yes", "restricted", "no", "unknown"] = "unknown"
    unverified: tuple[str, ...] = ()
    evidence: str | None = None
    note: str | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """What it can do, the default first."""
        return tuple(self.pipelines)

    @property
    def default_block(self) -> int | None:
        """The block at half of the depth, where the paper steers; None where the number of blocks is not known."""
        return None if self.num_blocks is None else self.num_blocks // 2

    @property
    def smallest(self) -> tuple[int, int, int]:
        """Width, height and frames of a small clip: what the start-up proof makes. It need not look like anything."""
        side = -(-min(self.min_side, PROOF_SIDE) // self.size_multiple) * self.size_multiple
        width, height = (self.width, self.height) if self.fixed_size else (side, side)
        return width, height, self.min_frames or self.frame_multiple + self.frame_offset

    @property
    def larger(self) -> tuple[int, int, int] | None:
        """The next larger clip than the smallest: wider, or else longer; None for a model that makes only one shape."""
        width, height, frames = self.smallest
        if not self.fixed_size and width + self.size_multiple <= self.max_side:
            return width + self.size_multiple, height, frames
        longer = frames + self.frame_multiple
        return (width, height, longer) if longer <= self.max_frames else None

    def check(
        self, *, width: int, height: int, num_frames: int, num_inference_steps: int, guidance_scale: float
    ) -> None:
        """Raise UnsupportedRequest, naming the nearest possible value, for a clip that the model cannot make."""
        near = tuple(self._nearest_side(side) for side in (width, height))
        if self.fixed_size and (width, height) != (self.width, self.height):
            raise UnsupportedRequest(
                f"{self.name} makes clips of {self.width}x{self.height} only.", code="unsupported_size", param="size"
            )
        if near != (width, height):
            raise UnsupportedRequest(
                f"{self.name} makes sizes whose sides are multiples of {self.size_multiple} from {self.min_side} to "
                f"{self.max_side}; the nearest to {width}x{height} is {near[0]}x{near[1]}.",
                code="unsupported_size",
                param="size",
            )
        if num_frames > self.max_frames:
            raise UnsupportedRequest(
                f"{self.name} makes at most {self.max_frames} frames; {num_frames} were asked for.",
                code="too_many_frames",
                param="num_frames",
            )
        frames = self.nearest_frames(num_frames)
        if num_frames != frames:
            rule = f"{self.frame_multiple}k" + (f"+{self.frame_offset}" if self.frame_offset else "")
            raise UnsupportedRequest(
                f"{self.name} makes {rule} frames; the nearest to {num_frames} is {frames}.", param="num_frames"
            )
        if not 1 <= num_inference_steps <= self.max_steps:
            raise UnsupportedRequest(
                f"num_inference_steps must lie between 1 and {self.max_steps}.", param="num_inference_steps"
            )
        if not 0 <= guidance_scale <= self.max_guidance:
            raise UnsupportedRequest(
                f"guidance_scale must lie between 0 and {self.max_guidance}.", param="guidance_scale"
            )

    def nearest_frames(self, frames: float) -> int:
        """The nearest length that the model can make, before its maximum is applied."""
        multiples = round((frames - self.frame_offset) / self.frame_multiple)
        least = self.min_frames or (self.frame_offset or self.frame_multiple)
        return max(least, multiples * self.frame_multiple + self.frame_offset)

    def _nearest_side(self, side: int) -> int:
        low = -(-self.min_side // self.size_multiple)
        return min(max(round(side / self.size_multiple), low), self.max_side // self.size_multiple) * self.size_multiple


EMBEDDED = CatalogEntry(
    name="embedded",
    source=MODEL_DIR,
    pipelines={"text-to-video": "WanPipeline"},
    fps=8,
    width=32,
    height=32,
    size_multiple=8,
    min_side=32,
    max_side=32,
    num_frames=8,
    max_frames=8,
    frame_multiple=2,  # a patch takes in two frames
    frame_offset=0,
    num_inference_steps=10,
    guidance_scale=4.0,
    denoiser="WanTransformer3DModel",
    num_blocks=8,
    hidden_width=128,
    dtype="float32",
    licence="Apache-2.0",
    commercial_use="yes",
    # WanPipeline rounds lengths to "multiple + 1", which for a VAE without temporal compression adds one frame.
    pipeline_frames_offset=-1,
    # The text encoder was trained on exactly 16 tokens.
    arguments={"max_sequence_length": 16},
    note="The small model that ships inside; its world of drawn shapes holds no harm but orange explosions.",
)
EMBEDDED_HARD = replace(
    EMBEDDED,
    name="embedded-hard",
    source=hard.MODEL_DIR,
    width=hard.SIZE,
    height=hard.SIZE,
    size_multiple=12,  # patches of 6 x 6 pixels, tokens of 2 x 2 patches
    min_side=hard.SIZE,
    max_side=hard.SIZE,
    num_frames=hard.NUM_FRAMES,
    min_frames=hard.NUM_FRAMES,
    max_frames=hard.NUM_FRAMES,
    frame_multiple=1,
    num_inference_steps=hard.NUM_INFERENCE_STEPS,
    guidance_scale=hard.GUIDANCE_SCALE,
    arguments={"max_sequence_length": hard.TEXT_TOKENS},
    note="The harder world: larger clips, and two unsafe things, an orange explosion and a lime-green spill.",
)
EMBEDDED_HARD_I2V = replace(
    EMBEDDED_HARD,
    name="embedded-hard-i2v",
    pipelines={"image-to-video": "WanImageToVideoPipeline"},
    note="The same weights, continuing a first frame.",
)


def check_own(entry: CatalogEntry | None, name: str) -> None:
    """Raise ValueError where a model's own entry, if it has one, has another name than the model."""
    if entry is not None and entry.name != name:
        raise ValueError(f"model {name}: its entry is named {entry.name}; give both the same name")


_registered: dict[str, CatalogEntry] = {}


@cache
def _shipped() -> dict[str, CatalogEntry]:
    listed = yaml.safe_load(CHECKPOINTS.read_text())["checkpoints"]
    inside = (EMBEDDED, EMBEDDED_HARD, EMBEDDED_HARD_I2V)
    return {entry.name: entry for entry in (*inside, *TypeAdapter(list[CatalogEntry]).validate_python(listed))}


def register(entry: CatalogEntry) -> None:
    """Offer a checkpoint of your own under its name, in this process."""
    _registered[entry.name] = entry


def entries() -> dict[str, CatalogEntry]:
    """All entries by name: those that ship, and those registered in this process."""
    return _shipped() | _registered


def get(name: str) -> CatalogEntry:
    """Return an entry. Raises ReinsError (`model_not_found`), listing the names, for an unknown one."""
    known = entries()
    try:
        return known[name]
    except KeyError:
        raise ReinsError(
            f"There is no model {name!r} in the catalogue; it has: {', '.join(known)}.",
            code="model_not_found",
            param="model",
        ) from None
