"""Video jobs: one record each, and the store that alone may change a record.

`JobStore` is everything that the rest of the application knows about storage. A job goes `queued -> in_progress ->
completed | failed`; a change that does not fit the state it finds is refused, so a terminal state never changes and progress
never falls. This store keeps its records in the memory of one gateway.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from reins_serve.errors import ReinsError
from reins_serve.models.generation import ClipRequest
from reins_serve.steering.plan import GenerationRecord
from reins_serve.steering.policy import SteeringRow

OpenStatus = Literal["queued", "in_progress"]
Status = OpenStatus | Literal["completed", "failed", "expired"]

MAX_ATTEMPTS = 2  # a job whose replica died is tried once more


class QueueFull(ReinsError):
    """As many jobs wait for this model as its configuration allows."""

    code = "queue_full"


class IdempotencyConflict(ReinsError):
    """The same idempotency key came with another request."""

    code = "idempotency_conflict"


@dataclass(frozen=True)
class JobError:
    """Why a job failed: a code of the API's list, a sentence for its user, and the direction that was to steer it."""

    code: str
    message: str
    version: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class JobResult:
    """What is known about a finished clip besides its files."""

    record: GenerationRecord
    inference_time_s: float
    batch_size: int


@dataclass(frozen=True)
class Idempotency:
    """What makes a request the same as one before, among its owner's: the key that came with it, and its SHA-256 digest."""

    key: str
    digest: str


@dataclass(frozen=True)
class Job:
    """One clip that was asked for.

    Attributes:
        id: Random, so that it cannot be guessed.
        owner: Who asked: only the same owner sees the job.
        model: Name of the served model.
        clip, row: What to generate, and its steering as resolved on admission.
        attempts: How often the job was handed to a replica.
        claimed: A replica has it (`queued` all the same, until denoising begins).
        progress: Per cent; 100 only once the files are stored.
        created_at, started_at, completed_at: Unix time in seconds.
    """

    id: str
    owner: str
    model: str
    clip: ClipRequest
    row: SteeringRow
    metadata: Mapping[str, str] = field(default_factory=dict)
    status: Status = "queued"
    priority: int = 0
    claimed: bool = False
    attempts: int = 0
    progress: int = 0
    created_at: float = field(default_factory=time.time)
    started_at: float | None = None
    completed_at: float | None = None
    expires_at: float | None = None
    error: JobError | None = None
    result: JobResult | None = None

    @property
    def terminal(self) -> bool:
        """Whether the job is over."""
        return self.status in ("completed", "failed")


@dataclass(frozen=True)
class Page:
    """A part of a list, and whether there is more after it."""

    jobs: tuple[Job, ...]
    has_more: bool


class JobStore(Protocol):
    """Where jobs live. Methods that change a job return it as it is afterwards, or None if the change was refused."""

    async def add(self, job: Job, max_queued: int, idempotency: Idempotency | None = None) -> Job:
        """Store a new job. Raises QueueFull when `max_queued` jobs of its model are queued already."""

    async def get(self, job_id: str) -> Job | None:
        """The job, or None."""

    async def page(self, owner: str, after: str | None, limit: int, newest_first: bool) -> Page:
        """Jobs of one owner by time of creation, beginning behind the job `after`. Raises KeyError if that is unknown."""

    async def claim(self, model: str) -> Job | None:
        """Take the oldest queued job that no replica has; counts an attempt."""

    async def begin(self, job_id: str) -> Job | None:
        """A replica has begun to denoise: `queued -> in_progress`."""

    async def advance(self, job_id: str, progress: int) -> Job | None:
        """Raise the progress of a job `in_progress`, to at most 99; a lower value changes nothing."""

    async def complete(self, job_id: str, result: JobResult) -> Job | None:
        """The files are stored: `in_progress -> completed`."""

    async def fail(self, job_id: str, error: JobError) -> Job | None:
        """`queued | in_progress -> failed`."""

    async def release(self, job_id: str) -> Job | None:
        """The replica died: back to `queued`; refused when the job has had its attempts."""

    async def remove(self, job_id: str) -> Job | None:
        """Forget the job, whatever its state. Returns what it was."""

    async def count(self, model: str, status: OpenStatus) -> int:
        """How many jobs of a model have this status."""

    async def position(self, job: Job) -> int | None:
        """How many jobs of its model are queued before this one; None unless it is queued."""


class MemoryJobs:
    """A `JobStore` in memory, for one gateway: its records end with the process.

    All methods run in the gateway's event loop and none of them awaits, so each is atomic.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}  # by time of creation
        self._keys: dict[tuple[str, str], tuple[str, str]] = {}
        self._open: dict[str, Job] = {}  # those that are not terminal, in the same order: never many

    async def add(self, job: Job, max_queued: int, idempotency: Idempotency | None = None) -> Job:
        if idempotency is not None and (job.owner, idempotency.key) in self._keys:
            digest, first = self._keys[job.owner, idempotency.key]
            if digest != idempotency.digest:
                raise IdempotencyConflict("This idempotency key came with another request before. Take a new key.")
            return self._jobs[first]
        if await self.count(job.model, "queued") >= max_queued:
            raise QueueFull("Too many jobs are waiting for this model. Try again later.")
        if idempotency is not None:
            self._keys[job.owner, idempotency.key] = (idempotency.digest, job.id)
        return self._put(job)

    async def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    async def page(self, owner: str, after: str | None, limit: int, newest_first: bool) -> Page:
        jobs = [job for job in self._jobs.values() if job.owner == owner]
        if newest_first:
            jobs.reverse()
        if after is not None:
            position = next((number for number, job in enumerate(jobs) if job.id == after), None)
            if position is None:
                raise KeyError(after)
            jobs = jobs[position + 1 :]
        return Page(tuple(jobs[:limit]), len(jobs) > limit)

    async def claim(self, model: str) -> Job | None:
        for job in self._queued(model):
            if not job.claimed:
                return self._put(replace(job, claimed=True, attempts=job.attempts + 1))
        return None

    async def begin(self, job_id: str) -> Job | None:
        job = self._jobs.get(job_id)
        if job is None or job.status != "queued":
            return None
        return self._put(replace(job, status="in_progress", started_at=time.time()))

    async def advance(self, job_id: str, progress: int) -> Job | None:
        job = self._jobs.get(job_id)
        if job is None or job.status != "in_progress":
            return None
        return self._put(replace(job, progress=max(job.progress, min(progress, 99))))

    async def complete(self, job_id: str, result: JobResult) -> Job | None:
        job = self._jobs.get(job_id)
        if job is None or job.status != "in_progress":
            return None
        return self._put(replace(job, status="completed", progress=100, completed_at=time.time(), result=result))

    async def fail(self, job_id: str, error: JobError) -> Job | None:
        job = self._jobs.get(job_id)
        if job is None or job.terminal:
            return None
        return self._put(replace(job, status="failed", completed_at=time.time(), error=error))

    async def release(self, job_id: str) -> Job | None:
        job = self._jobs.get(job_id)
        if job is None or job.terminal or job.attempts >= MAX_ATTEMPTS:
            return None
        return self._put(replace(job, status="queued", claimed=False, started_at=None))

    async def remove(self, job_id: str) -> Job | None:
        self._open.pop(job_id, None)
        return self._jobs.pop(job_id, None)

    async def count(self, model: str, status: OpenStatus) -> int:
        return sum(job.model == model and job.status == status for job in self._open.values())

    async def position(self, job: Job) -> int | None:
        waiting = [other.id for other in self._queued(job.model)]
        return waiting.index(job.id) if job.id in waiting else None

    def _queued(self, model: str) -> list[Job]:
        return [job for job in self._open.values() if job.model == model and job.status == "queued"]

    def _put(self, job: Job) -> Job:
        self._jobs[job.id] = job
        if job.terminal:
            self._open.pop(job.id, None)
        else:
            self._open[job.id] = job
        return job
