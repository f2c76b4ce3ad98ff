"""The HTTP API's objects: what a request may say, and what an answer looks like. The shape is that of OpenAI's video jobs."""

from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from reins_serve.models.catalog import CatalogEntry
from reins_serve.serving.files import Variant
from reins_serve.serving.jobs import Job
from reins_serve.serving.served import ServedModel
from reins_serve.steering.direction import Direction
from reins_serve.steering.policy import DEFAULT, LIVE

NO_NUL = r"^[^\x00]*$"  # PostgreSQL stores no such character
JOB_ID = r"^video_[0-9a-f]{32}$"
# Of a clip's steering, what depends on the clip; the rest follows from the plan.
FIGURES = ("displacement", "score", "moved", "guarded")
Text = Annotated[str, Field(max_length=100_000, pattern=NO_NUL)]
Word = Annotated[str, Field(max_length=128, pattern=NO_NUL)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Digits = Annotated[
    str, Field(pattern=r"^(0*[1-9][0-9]{0,5}(\.[0-9]{1,6})?|0+\.[0-9]{0,5}[1-9][0-9]{0,5})$", max_length=16)
]
Seconds = Annotated[Annotated[Finite, Field(gt=0, le=86_400)] | Digits, AfterValidator(float)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Steering(_Request):
    """What a request asks of steering; the operator's policy decides what it gets."""

    policy: Word | None = None
    strength: Finite | None = None


class InputReference(_Request):
    """The image that a clip begins with: a data URL, or an https address at a host that the operator lists."""

    image_url: Annotated[str, Field(min_length=1)]


class CreateVideo(_Request):
    """`POST /v1/videos`. What is absent is the model's default; `seconds` and `num_frames` say the same and exclude each other."""

    prompt: Annotated[Text, Field(min_length=1, examples=["a red square moving left"])]
    model: Word | None = None
    seconds: Seconds | None = None
    size: Annotated[str, Field(pattern=r"^[0-9]{1,5}x[0-9]{1,5}$")] | None = None
    input_reference: InputReference | None = None
    negative_prompt: Text = ""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    fps: Annotated[Finite, Field(gt=0)] | None = None
    num_frames: Annotated[int, Field(ge=1)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1)] | None = None
    guidance_scale: Annotated[Finite, Field(ge=0)] | None = None
    steering: Steering = Steering()
    metadata: Annotated[dict[Word, Annotated[str, Field(max_length=512, pattern=NO_NUL)]], Field(max_length=16)] = {}


class ListQuery(_Request):
    """Query of `GET /v1/videos`."""

    after: Annotated[str, Field(pattern=JOB_ID)] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"


class ContentQuery(_Request):
    """Query of `GET /v1/videos/{id}/content`."""

    variant: Variant = "video"


class ErrorBody(BaseModel):
    """What went wrong; `param` names the field at fault, where there is one."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """Every answer that is not a success."""

    error: ErrorBody


class JobErrorBody(BaseModel):
    """Why a job failed."""

    code: str
    message: str


class SteeringState(BaseModel):
    """How a clip is steered; see `GenerationRecord` for the meanings.

    What was done is null until the clip is finished, and the figures of FIGURES also where the operator tells them only to
    holders of the admin key.
    """

    policy: str
    strength: float
    direction: str | None
    version: str | None = None
    sha256: str | None = None
    operation: str | None = None
    planned: int | None = None
    applied: int | None = None
    steps_steered: int | None = None
    displacement: float | None = None
    score: float | None = None
    moved: float | None = None
    guarded: float | None = None
    steered: bool | None = None
    proved: bool | None = None
    reason: str | None = None


class Video(BaseModel):
    """A video job. Times are Unix seconds; `progress` is in per cent, and 100 only once the files are stored."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    prompt: str
    negative_prompt: str
    created_at: int
    started_at: int | None
    completed_at: int | None
    expires_at: int | None
    error: JobErrorBody | None
    remixed_from_video_id: str | None = None
    seconds: str
    size: str
    fps: float
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    seed: int
    inference_time_s: float | None
    queue_position: int | None
    steering: SteeringState
    metadata: dict[str, str]


class VideoList(BaseModel):
    """A page of jobs; pass `last_id` as `after` for the next."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(BaseModel):
    """The job and its files are gone."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class VideoEvent(BaseModel):
    """A state of a job, as `GET /v1/videos/{id}/events` sends it; `deleted` when the job is gone."""

    id: str
    status: Literal["queued", "in_progress", "completed", "failed", "deleted"]
    progress: int
    queue_position: int | None
    error: JobErrorBody | None


class LiveDirection(BaseModel):
    """The direction that steers a model's clips unless a request chooses another policy."""

    name: str
    version: str
    sha256: str
    operation: str
    branches: str
    blocks: list[int]
    serving_strength: float
    max_strength: float


class Model(BaseModel):
    """A served model and the clips that it makes; sizes are in pixels."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["reins-serve"] = "reins-serve"
    tasks: list[str]
    input_reference: Literal["none", "optional", "required"]
    fps: float
    size: str
    size_multiple: int
    min_side: int
    max_side: int
    num_frames: int
    max_frames: int
    frame_multiple: int
    num_inference_steps: int
    guidance_scale: float
    steering_required: bool
    policies: list[str]
    direction: LiveDirection | None


class ModelList(BaseModel):
    """All served models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """Answer of `/healthz` and `/readyz`."""

    status: Literal["ok", "ready"]


def video(job: Job, entry: CatalogEntry, position: int | None, figures: bool) -> Video:
    """A job as the API shows it.

    Args:
        position: In the queue; None where it does not wait.
        figures: Whether the caller is told the figures of FIGURES.
    """
    steering = asdict(job.result.record) if job.result else asdict(job.row) | {"direction": None}
    if not figures:
        steering |= dict.fromkeys(FIGURES)
    return Video(
        id=job.id,
        model=job.model,
        status=job.status,
        progress=job.progress,
        prompt=job.clip.prompt,
        negative_prompt=job.clip.negative_prompt,
        created_at=int(job.created_at),
        started_at=_seconds(job.started_at),
        completed_at=_seconds(job.completed_at),
        expires_at=_seconds(job.expires_at),
        error=JobErrorBody(code=job.error.code, message=job.error.message) if job.error else None,
        seconds=f"{job.clip.num_frames / entry.fps:g}",
        size=f"{job.clip.width}x{job.clip.height}",
        fps=entry.fps,
        num_frames=job.clip.num_frames,
        num_inference_steps=job.clip.num_inference_steps,
        guidance_scale=job.clip.guidance_scale,
        seed=job.clip.seed,
        inference_time_s=job.result.inference_time_s if job.result else None,
        queue_position=position,
        steering=SteeringState.model_validate(steering),
        metadata=dict(job.metadata),
    )


def _seconds(time: float | None) -> int | None:
    return None if time is None else int(time)


def model_card(model: ServedModel, created: int) -> Model:
    """A served model as the API shows it. Policies for holders of the admin key are not listed."""
    entry, policy = model.entry, model.config.policy
    live = model.directions.get(LIVE)
    return Model(
        id=entry.name,
        created=created,
        tasks=list(model.tasks),
        input_reference=model.image,
        fps=entry.fps,
        size=f"{entry.width}x{entry.height}",
        size_multiple=entry.size_multiple,
        min_side=entry.min_side,
        max_side=entry.max_side,
        num_frames=entry.num_frames,
        max_frames=entry.max_frames,
        frame_multiple=entry.frame_multiple,
        num_inference_steps=entry.num_inference_steps,
        guidance_scale=entry.guidance_scale,
        steering_required=policy.required,
        policies=[DEFAULT, *(name for name, named in policy.policies.items() if not named.admin_only)],
        direction=_live_direction(live) if live else None,
    )


def _live_direction(direction: Direction) -> LiveDirection:
    return LiveDirection(
        name=direction.name,
        version=direction.version,
        sha256=direction.sha256,
        operation=direction.operation,
        branches=direction.branches,
        blocks=list(direction.blocks),
        serving_strength=direction.serving_strength,
        max_strength=direction.max_strength,
    )
