"""A request's body becomes a job, or is refused: the fields, the model's own rules, the steering policy, in that order."""

import asyncio
import hashlib
import json
import logging
import re
import secrets
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from reins_serve.models.catalog import CatalogEntry
from reins_serve.models.generation import ClipRequest
from reins_serve.serving.auth import Caller
from reins_serve.serving.config import ApplicationConfig, Limits
from reins_serve.serving.http_errors import RequestError
from reins_serve.serving.images import FIELD, first_frame, from_data_url
from reins_serve.serving.jobs import Idempotency, Job
from reins_serve.serving.privacy import shown
from reins_serve.serving.remote_images import fetch
from reins_serve.serving.schema import CreateVideo
from reins_serve.serving.served import ServedModel
from reins_serve.steering.policy import SteeringChoice, SteeringRow, resolve

JSON = "application/json"
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
IMAGE_TEXT = 4 / 3  # base64 in JSON takes a third more
DECODERS = ThreadPoolExecutor(2, thread_name_prefix="reins-image")  # few: a large image takes hundreds of MB on its way
BRACKETED = re.compile(r"^(\w+)\[([^\[\]]+)\]$")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Submission:
    """A request for a clip as it came.

    Attributes:
        body: Its fields, without the image.
        image: The bytes of an image that came with it, or the address of one.
        key: The idempotency key that came with it.
    """

    body: CreateVideo
    image: bytes | str | None = None
    key: str | None = None

    @property
    def idempotency(self) -> Idempotency | None:
        """The key with the digest of what was asked; how it was written (JSON or form, order, blanks) makes no difference."""
        if self.key is None:
            return None
        image = hashlib.sha256(self.image).hexdigest() if isinstance(self.image, bytes) else self.image
        canonical = json.dumps([self.body.model_dump(mode="json"), image], sort_keys=True)
        return Idempotency(self.key, hashlib.sha256(canonical.encode()).hexdigest())


def body_limit(limits: Limits, takes_images: bool) -> int:
    """How many bytes a request may have."""
    return limits.max_body_bytes + (int(limits.max_image_bytes * IMAGE_TEXT) if takes_images else 0)


async def read_submission(request: Request, key: str | None = None) -> Submission:
    """Parse a JSON or form body; in a form, `steering[strength]` and the like stand for nested fields.

    Raises:
        RequestError: not readable, or of another kind.
        pydantic.ValidationError: a field is unknown, missing or out of its range.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    image: bytes | str | None = None
    if kind == JSON:
        body = CreateVideo.model_validate_json(await request.body(), strict=True)
    elif kind in FORMS:
        async with request.form(max_files=1, max_fields=64, max_part_size=sys.maxsize) as form:  # see BodyLimits
            body = CreateVideo.model_validate(_nested(form))
            file = form.get(FIELD)
            image = await file.read() if isinstance(file, UploadFile) else None
    else:
        raise RequestError("Send the request as application/json or multipart/form-data.", code="invalid_value")
    if body.input_reference is not None:
        if image is not None:
            raise RequestError("A field is given twice.", code="invalid_value", param=FIELD)
        address = body.input_reference.image_url
        image = from_data_url(address) if address.startswith("data:") else address
        body = body.model_copy(update={FIELD: None})
    return Submission(body, image, key)


async def admit(asked: Submission, model: ServedModel, config: ApplicationConfig, caller: Caller) -> Job:
    """The job that a request asks for. Its image is fetched and decoded last, when all else is found to be right.

    Raises:
        ReinsError: the model cannot make such a clip, or the policy does not allow such a steering.
    """
    body, limits = asked.body, config.limits
    for name in ("prompt", "negative_prompt"):
        if len(getattr(body, name)) > limits.max_prompt_chars:
            raise RequestError(
                f"At most {limits.max_prompt_chars} characters are accepted.", code="invalid_value", param=name
            )
    if asked.image is None and model.image == "required":
        raise RequestError(
            "This model begins a clip with an image: send one.", code="missing_required_parameter", param=FIELD
        )
    if asked.image is not None and model.image == "none":
        raise RequestError("This model makes clips from text alone.", code="invalid_value", param=FIELD)
    clip = _clip(body, model.entry, limits)
    name = f"video_{secrets.token_hex(16)}"
    row = replace(_row(body, model, caller.admin), key=name)
    if asked.image is not None:
        data = asked.image
        if isinstance(data, str):
            data = await fetch(data, config.image_hosts, limits)
        loop = asyncio.get_running_loop()
        image = await loop.run_in_executor(DECODERS, first_frame, data, clip.width, clip.height, limits)
        clip = replace(clip, image=image)
    told = shown(body.prompt, model.config.log_prompts)
    logger.info("%s of %s on %s: %s", name, caller.owner, model.config.name, told)
    return Job(name, caller.owner, model.config.name, clip, row, metadata=dict(body.metadata), priority=caller.priority)


def _clip(body: CreateVideo, entry: CatalogEntry, limits: Limits) -> ClipRequest:
    if body.fps is not None and body.fps != entry.fps:
        raise RequestError(f"This model makes {entry.fps:g} frames per second.", code="invalid_value", param="fps")
    width, height = (int(side) for side in body.size.split("x")) if body.size else (entry.width, entry.height)
    clip = ClipRequest(
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        seed=body.seed if body.seed is not None else secrets.randbelow(2**31),
        width=width,
        height=height,
        num_frames=_num_frames(body, entry),
        num_inference_steps=_or(body.num_inference_steps, entry.num_inference_steps),
        guidance_scale=_or(body.guidance_scale, entry.guidance_scale),
    )
    entry.check(
        width=clip.width,
        height=clip.height,
        num_frames=clip.num_frames,
        num_inference_steps=clip.num_inference_steps,
        guidance_scale=clip.guidance_scale,
    )
    if limits.max_pixels is not None and width * height > limits.max_pixels:
        raise RequestError(
            f"This server makes clips of at most {limits.max_pixels} pixels.", code="unsupported_size", param="size"
        )
    if limits.max_frames is not None and clip.num_frames > limits.max_frames:
        raise RequestError(
            f"This server makes at most {limits.max_frames} frames.", code="too_many_frames", param="num_frames"
        )
    return clip


def _num_frames(body: CreateVideo, entry: CatalogEntry) -> int:
    """The length in frames: as asked; or the possible length nearest to the seconds asked for; or the model's default."""
    if body.seconds is None:
        return _or(body.num_frames, entry.num_frames)
    if body.num_frames is not None:
        raise RequestError("Give seconds or num_frames, not both.", code="invalid_value", param="num_frames")
    return entry.nearest_frames(float(body.seconds) * entry.fps)


def _row(body: CreateVideo, model: ServedModel, admin: bool) -> SteeringRow:
    choice = SteeringChoice(policy=body.steering.policy, strength=body.steering.strength)
    return resolve(choice, model.config.policy, model.directions, admin)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _nested(form: FormData) -> dict[str, Any]:
    """Form keys such as `steering[strength]` as nested fields, without the image that came as a file."""
    fields: dict[str, Any] = {}
    for key, value in form.multi_items():
        if key == FIELD and isinstance(value, UploadFile):
            continue
        bracketed = BRACKETED.match(key)
        outer, inner = bracketed.groups() if bracketed else (key, None)
        place = fields if inner is None else fields.setdefault(outer, {})
        name = outer if inner is None else inner
        if not isinstance(place, dict) or name in place:
            raise RequestError("A field is given twice.", code="invalid_value")
        place[name] = {} if isinstance(value, UploadFile) else value  # no other field is a file: the schema says so
    return fields
