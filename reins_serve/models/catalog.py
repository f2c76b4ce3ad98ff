"""The checkpoints that are offered, one entry each: where they come from and which clips they can make."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from reins_serve.embedded import MODEL_DIR
from reins_serve.errors import ReinsError, UnsupportedRequest


@dataclass(frozen=True)
class CatalogEntry:
    """One checkpoint.

    Attributes:
        name: The word by which requests and configurations ask for it.
        source: Hub repository id or local folder in diffusers layout.
        revision: Pinned revision of a repository; None for a folder.
        tasks: `text-to-video` and so on.
        fps: Frames per second of the clips that it was trained on.
        width, height: Default size in pixels.
        size_multiple: Both sides must be multiples of this, at least `min_side` and at most `max_side`.
        num_frames, max_frames: Default and largest length; `num_frames - 1` must be a multiple of `frame_multiple`.
        num_inference_steps, max_steps, guidance_scale: Defaults and bounds of sampling.
        pipeline_frames_offset: What to add to the number of frames in the pipeline's own argument.
        arguments: Further arguments that every call of the pipeline needs.
    """

    name: str
    source: str | Path
    revision: str | None
    tasks: tuple[str, ...]
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
    max_steps: int = 100
    max_guidance: float = 20.0
    pipeline_frames_offset: int = 0
    licence: str = "Apache-2.0"
    arguments: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))

    def check(
        self, *, width: int, height: int, num_frames: int, num_inference_steps: int, guidance_scale: float
    ) -> None:
        """Raise UnsupportedRequest, naming the nearest possible value, for a clip that the model cannot make."""
        near = tuple(self._nearest_side(side) for side in (width, height))
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
        frames = max(1, round((num_frames - 1) / self.frame_multiple) * self.frame_multiple + 1)
        if num_frames != frames:
            raise UnsupportedRequest(
                f"{self.name} makes {self.frame_multiple}k+1 frames; the nearest to {num_frames} is {frames}.",
                param="num_frames",
            )
        if not 1 <= num_inference_steps <= self.max_steps:
            raise UnsupportedRequest(
                f"num_inference_steps must lie between 1 and {self.max_steps}.", param="num_inference_steps"
            )
        if not 0 <= guidance_scale <= self.max_guidance:
            raise UnsupportedRequest(
                f"guidance_scale must lie between 0 and {self.max_guidance}.", param="guidance_scale"
            )

    def _nearest_side(self, side: int) -> int:
        low = -(-self.min_side // self.size_multiple)
        return min(max(round(side / self.size_multiple), low), self.max_side // self.size_multiple) * self.size_multiple


EMBEDDED = CatalogEntry(
    name="embedded",
    source=MODEL_DIR,
    revision=None,
    tasks=("text-to-video",),
    fps=8,
    width=32,
    height=32,
    size_multiple=8,
    min_side=32,
    max_side=32,
    num_frames=8,
    max_frames=8,
    frame_multiple=1,
    num_inference_steps=10,
    guidance_scale=4.0,
    # WanPipeline rounds lengths to "multiple + 1", which for a VAE without temporal compression adds one frame.
    pipeline_frames_offset=-1,
    # The text encoder was trained on exactly 16 tokens.
    arguments=MappingProxyType({"max_sequence_length": 16}),
)

_ENTRIES = {entry.name: entry for entry in (EMBEDDED,)}


def register(entry: CatalogEntry) -> None:
    """Offer a checkpoint of your own under its name, in this process."""
    _ENTRIES[entry.name] = entry


def names() -> list[str]:
    """Names of all entries."""
    return list(_ENTRIES)


def get(name: str) -> CatalogEntry:
    """Return an entry. Raises ReinsError (`model_not_found`), listing the names, for an unknown one."""
    try:
        return _ENTRIES[name]
    except KeyError:
        raise ReinsError(
            f"There is no model {name!r} in the catalogue; it has: {', '.join(_ENTRIES)}.",
            code="model_not_found",
            param="model",
        ) from None
