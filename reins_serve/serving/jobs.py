"""Video jobs: one record each, and the store that alone may change a record.

`JobStore` is everything that the rest of the application knows about storage; `sql_jobs.SqlJobs` is the one that there is.
A job goes `queued -> in_progress -> completed | failed`, and `expired` when its time is over. A change that does not fit the
state it finds is refused, so the outcome of a job never changes and the progress of an attempt never falls. Whoever works on a
job holds it on a lease, and names the attempt that it was given: after another has taken over, its changes are refused.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from reins_serve.errors import ReinsError
from reins_serve.errors import StoreUnavailable as StoreUnavailable
from reins_serve.models.generation import ClipRequest
from reins_serve.steering.plan import GenerationRecord
from reins_serve.steering.policy import SteeringRow

OpenStatus = Literal["queued", "in_progress"]
Status = OpenStatus | Literal["completed", "failed", "expired"]

MAX_ATTEMPTS = 2  # a job whose replica or gateway died is tried once more
LEASE_S = 30.0
RETENTION_S = 7 * 24 * 3600.0


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
        clip, row: What to generate, and its steering as resolved on admission. The clip's image comes with `claim` alone.
        status: `expired` is what is left of a job whose time is over: no prompt, no metadata, no outcome, no files.
        priority: Of the jobs that wait, higher ones go first.
        holder: The gateway that has it (`queued` all the same, until denoising begins); None while it waits, and at its end.
        lease_until: Until then nobody else takes the job over.
        attempts: How often the job was claimed. Never falls, so the number of an attempt tells its holder from a later one.
        returned: Attempts that do not count towards MAX_ATTEMPTS, because a gateway handed the job back in good order.
        progress: Per cent; 100 only once the files are stored.
        created_at, started_at, completed_at: Unix time in seconds.
        expires_at: When record and files go; of an expired job, when the record itself goes. None: never.
    """

    id: str
    owner: str
    model: str
    clip: ClipRequest
    row: SteeringRow
    metadata: Mapping[str, str] = field(default_factory=dict)
    status: Status = "queued"
    priority: int = 0
    holder: str | None = None
    lease_until: float | None = None
    attempts: int = 0
    returned: int = 0
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
        return self.status not in ("queued", "in_progress")


@dataclass(frozen=True)
class Page:
    """A part of a list, and whether there is more after it."""

    jobs: tuple[Job, ...]
    has_more: bool


@dataclass(frozen=True)
class Count:
    """One number behind a metric, as it is kept and added to.

    Attributes:
        metric: Its name in `reins_serve.metrics`.
        labels: Values of its labels, in that metric's order.
        part: `value` of a counter; `sum` and `count` of a summary; of a histogram its `sum`, and for each bucket that holds
            something the upper bound, such as `0.25` or `inf`. A bucket counts what fell into it and into none below.
    """

    metric: str
    labels: tuple[str, ...]
    part: str
    value: float


class JobStore(Protocol):
    """Where jobs live.

    Methods that change a job return it as it is afterwards, or None if the change was refused. `attempt` is `Job.attempts`
    as `claim` returned it; once the job is no longer that attempt's, the change is refused. Metrics are counted in the
    transaction that changes the job. All methods raise StoreUnavailable when the database does not answer; what they were
    to do has then not been done, or has been done wholly, and never twice.
    """

    async def add(self, job: Job, max_queued: int, idempotency: Idempotency | None = None) -> Job:
        """Store a new job; with a key that the owner has used, return the job that was stored then.

        Raises:
            QueueFull: `max_queued` jobs of its model are queued already. Decided in the transaction that stores the job.
            IdempotencyConflict: the owner has used the key for a request with another digest.
        """

    async def get(self, job_id: str) -> Job | None:
        """The job, also an expired one, or None."""

    async def page(self, owner: str, after: str | None, limit: int, newest_first: bool) -> Page:
        """Jobs of one owner by time of creation, beginning behind the job `after`, without expired ones.

        Raises:
            KeyError: the owner has no job `after`.
        """

    async def claim(self, model: str, holder: str, limit: int) -> Job | None:
        """Take the next waiting job on a lease; counts an attempt.

        The order is: priority, then the owner who has the fewest jobs of this model on their way, then age.

        Args:
            limit: So many jobs of the model may be on their way (claimed or in progress) over all gateways.
        """

    async def begin(self, job_id: str, attempt: int) -> Job | None:
        """A replica has begun to denoise: `queued -> in_progress`."""

    async def renew(self, holder: str, progress: Mapping[str, tuple[int, int]]) -> set[str]:
        """Heartbeat, in one transaction: prolong the leases of the holder's jobs, and raise their progress to at most 99.

        Args:
            progress: Attempt and per cent by job; a lower progress than before changes nothing.

        Returns:
            The jobs that are no longer the holder's (removed, ended, or their lease lost): it must give them up.
        """

    async def complete(self, job_id: str, attempt: int, result: JobResult) -> Job | None:
        """The files are stored: `in_progress -> completed`."""

    async def fail(self, job_id: str, error: JobError, attempt: int) -> Job | None:
        """`queued | in_progress -> failed`."""

    async def release(self, job_id: str, attempt: int, lost: bool = True) -> Job | None:
        """Back to `queued`, progress 0.

        Args:
            lost: Its replica died: refused when the job has had MAX_ATTEMPTS. False: its gateway goes away in good order and
                hands the job back; the attempt does not count.
        """

    async def remove(self, job_id: str) -> Job | None:
        """Forget the job, whatever its state. Returns what it was."""

    async def reap(self) -> list[Job]:
        """Take back the jobs whose lease has passed: to the queue, or failed with `worker_lost` after MAX_ATTEMPTS."""

    async def expire(self, limit: int = 100) -> list[Job]:
        """Let at most `limit` jobs that are past `expires_at` expire, and forget those that expired as long ago again.

        Returns:
            What they were; the caller deletes their files.
        """

    async def count(self, model: str, status: OpenStatus) -> int:
        """How many jobs of a model have this status."""

    async def position(self, job: Job) -> int | None:
        """How many jobs of its model go before this one, if none but these come and none ends; None unless it is queued."""

    async def totals(self) -> Sequence[Count]:
        """What was counted since the database was made, for `Totals.text`."""

    async def close(self) -> None:
        """Let the database go. What runs is waited for."""
