"""A request becomes a clip: one pipeline call for one or more requests of equal shape, each row with its own seed.

One request type serves every pipeline. Which of its fields a pipeline takes, and under which name, is read from the
signature of its call: `SYNONYMS` holds the names that diffusers uses, a catalogue entry's `names` the exceptions.
"""

import base64
import binascii
import hashlib
import inspect
import io
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from pydantic import PlainSerializer, PlainValidator

from reins_serve.errors import ReinsError, UnsupportedRequest
from reins_serve.models.catalog import CatalogEntry
from reins_serve.models.spec import Pipeline

# Names under which pipelines take a field of a request, in the order in which they are looked for.
SYNONYMS = {"num_frames": ("num_frames", "frames", "video_length")}
# Pipelines that take an image for each prompt of a batch; the others take one for all of them.
IMAGE_PER_PROMPT = ("CogVideoXImageToVideoPipeline", "Cosmos2VideoToWorldPipeline", "LTXImageToVideoPipeline")


def png_text(image: Image.Image) -> str:
    """The image as a PNG, in base64."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)  # a fifth of the time for a tenth more bytes
    return base64.b64encode(buffer.getvalue()).decode()


def _from_text(value: Any) -> Image.Image:
    """The image of a stored request; its pixels are decoded on first use, so that reading a record stays cheap."""
    if isinstance(value, Image.Image):
        return value
    try:
        return Image.open(io.BytesIO(base64.b64decode(value, validate=True)), formats=["PNG"])
    except (TypeError, OSError, binascii.Error) as error:
        raise ValueError("an image is stored as the base64 text of a PNG") from error


# An image in a request, which pydantic writes as base64 of a PNG: then a job's record has all that its clip needs, on
# whatever machine it is generated, and the image goes when the record goes.
StoredImage = Annotated[
    Image.Image, PlainValidator(_from_text), PlainSerializer(png_text, return_type=str, when_used="json")
]


@dataclass(frozen=True)
class ClipRequest:
    """What one clip shall be. Sizes in pixels, lengths in frames; `image` is the first frame of an image-to-video clip."""

    prompt: str
    seed: int
    width: int
    height: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    negative_prompt: str = ""
    image: StoredImage | None = None

    @property
    def batch_key(self) -> Hashable:
        """Requests with equal keys may share one pipeline call; an image is shared, because most pipelines take only one."""
        image = hashlib.sha256(self.image.tobytes()).digest() if self.image is not None else None
        return (self.width, self.height, self.num_frames, self.num_inference_steps, self.guidance_scale, image)


def request(entry: CatalogEntry, prompt: str, seed: int, **overrides: object) -> ClipRequest:
    """A ClipRequest with the catalogue's defaults where `overrides` says nothing."""
    fields = ("width", "height", "num_frames", "num_inference_steps", "guidance_scale")
    values: dict[str, object] = {name: getattr(entry, name) for name in fields} | overrides
    return ClipRequest(prompt=prompt, seed=seed, **values)  # type: ignore[arg-type]


def needs_image(pipeline: Pipeline, entry: CatalogEntry) -> bool:
    """Whether a clip of this pipeline begins with an image."""
    return "image" in inspect.signature(type(pipeline).__call__).parameters and not entry.optional_image


def call_arguments(
    pipeline: Pipeline, entry: CatalogEntry, requests: Sequence[ClipRequest], output_type: str = "np"
) -> dict[str, Any]:
    """The arguments of the pipeline's call for a batch of requests; each row draws its noise from its own seed.

    Raises:
        ReinsError: no request, or requests that do not share one `batch_key`.
        UnsupportedRequest: a field that this pipeline cannot honour: an image, or the lack of one, or a negative prompt.
    """
    if len({r.batch_key for r in requests}) != 1:
        raise ReinsError("A batch needs at least one request, and all of one size, length, steps and guidance.")
    first, accepted = requests[0], inspect.signature(type(pipeline).__call__).parameters
    takes_image = "image" in accepted
    if first.image is None and needs_image(pipeline, entry):
        raise UnsupportedRequest(f"{entry.name} begins with an image: add one.", param="image")
    if first.image is not None and not takes_image:
        raise UnsupportedRequest(f"{entry.name} makes clips from a prompt alone: leave the image out.", param="image")
    negative = [r.negative_prompt for r in requests]
    wanted: dict[str, Any] = {
        "prompt": [r.prompt for r in requests],
        "negative_prompt": negative,
        "width": first.width,
        "height": first.height,
        "num_frames": first.num_frames + entry.pipeline_frames_offset,
        "num_inference_steps": first.num_inference_steps,
        "guidance_scale": first.guidance_scale,
        "generator": [torch.Generator("cpu").manual_seed(r.seed) for r in requests],
        "output_type": output_type,
    }
    if first.image is not None:
        per_prompt = type(pipeline).__name__ in IMAGE_PER_PROMPT
        wanted["image"] = [r.image for r in requests] if per_prompt else first.image
    arguments: dict[str, Any] = {}
    for field, value in wanted.items():
        names = (entry.names[field],) if field in entry.names else SYNONYMS.get(field, (field,))
        name = next((name for name in names if name in accepted), None)
        if name is not None:
            arguments[name] = value[0] if entry.max_batch == 1 and isinstance(value, list) else value
        elif field == "negative_prompt" and any(negative):
            raise UnsupportedRequest(f"{entry.name} knows no negative prompt: leave it out.", param="negative_prompt")
        elif field == "guidance_scale" and getattr(pipeline, "guider", None) is not None:
            pipeline.guider.guidance_scale = value
    return arguments | dict(entry.arguments)


def generate(
    pipeline: Pipeline,
    entry: CatalogEntry,
    requests: Sequence[ClipRequest],
    arguments: Mapping[str, object] = {},
) -> np.ndarray:
    """Generate one clip per request in a single pipeline call.

    Args:
        arguments: Further arguments of the call: `generation.arguments` of the steering middleware.

    Returns:
        uint8 array `[B, T, H, W, 3]`.

    Raises:
        ReinsError, UnsupportedRequest: as `call_arguments`.
    """
    return frames_of(pipeline(**call_arguments(pipeline, entry, requests), **arguments))


def frames_of(output: Any) -> np.ndarray:
    """The frames of a pipeline's output, asked for as `np`: uint8 `[B, T, H, W, 3]`."""
    return (np.asarray(output.frames) * 255).round().clip(0, 255).astype(np.uint8)
