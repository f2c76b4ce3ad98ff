"""A request becomes a clip: one pipeline call for one or more requests of equal shape, each row with its own seed."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from reins_serve.errors import ReinsError
from reins_serve.models.catalog import CatalogEntry
from reins_serve.models.spec import Pipeline


@dataclass(frozen=True)
class ClipRequest:
    """What one clip shall be. Sizes in pixels, lengths in frames."""

    prompt: str
    seed: int
    width: int
    height: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    negative_prompt: str = ""

    @property
    def batch_key(self) -> Hashable:
        """Requests with equal keys may share one pipeline call."""
        return (self.width, self.height, self.num_frames, self.num_inference_steps, self.guidance_scale)


def request(entry: CatalogEntry, prompt: str, seed: int, **overrides: object) -> ClipRequest:
    """A ClipRequest with the catalogue's defaults where `overrides` says nothing."""
    fields = ("width", "height", "num_frames", "num_inference_steps", "guidance_scale")
    values: dict[str, object] = {name: getattr(entry, name) for name in fields} | overrides
    return ClipRequest(prompt=prompt, seed=seed, **values)  # type: ignore[arg-type]


def generate(
    pipeline: Pipeline,
    entry: CatalogEntry,
    requests: Sequence[ClipRequest],
    arguments: Mapping[str, object] = {},
) -> np.ndarray:
    """Generate one clip per request in a single pipeline call.

    Each row draws its noise from its own seed, so a clip's noise does not depend on what shares its batch.

    Args:
        arguments: Further arguments of the call: `generation.arguments` of the steering middleware.

    Returns:
        uint8 array `[B, T, H, W, 3]`.

    Raises:
        ReinsError: no request, or requests that do not share one `batch_key`.
    """
    if len({r.batch_key for r in requests}) != 1:
        raise ReinsError("A batch needs at least one request, and all of one size, length, steps and guidance.")
    first = requests[0]
    output = pipeline(
        prompt=[r.prompt for r in requests],
        negative_prompt=[r.negative_prompt for r in requests],
        width=first.width,
        height=first.height,
        num_frames=first.num_frames + entry.pipeline_frames_offset,
        num_inference_steps=first.num_inference_steps,
        guidance_scale=first.guidance_scale,
        generator=[torch.Generator("cpu").manual_seed(r.seed) for r in requests],
        output_type="np",
        **entry.arguments,
        **arguments,
    )
    return (np.asarray(output.frames) * 255).round().clip(0, 255).astype(np.uint8)
