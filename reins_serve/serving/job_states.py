"""What may become of a job: each function takes it as it is and returns it as it shall be, or None where that is refused."""

from dataclasses import replace

from reins_serve.serving.jobs import MAX_ATTEMPTS, Job, JobError, JobResult

WORKER_LOST = JobError("worker_lost", "The replica that was making this clip was lost, twice.")


def claimed(job: Job, holder: str, until: float) -> Job:
    """A gateway takes a waiting job."""
    return replace(job, holder=holder, lease_until=until, attempts=job.attempts + 1)


def begun(job: Job, attempt: int, now: float) -> Job | None:
    """Denoising has begun."""
    if job.status != "queued" or not _held(job, attempt):
        return None
    return replace(job, status="in_progress", started_at=now)


def completed(job: Job, attempt: int, result: JobResult, now: float, expires_at: float | None) -> Job | None:
    """The clip is stored."""
    if job.status != "in_progress" or not _held(job, attempt):
        return None
    done = replace(job, status="completed", progress=100, result=result)
    return _ended(done, now, expires_at)


def failed(job: Job, attempt: int, error: JobError, now: float, expires_at: float | None) -> Job | None:
    """There will be no clip."""
    if job.terminal or not _held(job, attempt):
        return None
    return _ended(replace(job, status="failed", error=error), now, expires_at)


def released(job: Job, attempt: int, lost: bool) -> Job | None:
    """Its holder gives it back."""
    if job.terminal or not _held(job, attempt) or (lost and not _may_try_again(job)):
        return None
    return _waiting(job if lost else replace(job, returned=job.returned + 1))


def reaped(job: Job, now: float, expires_at: float | None) -> Job:
    """Its holder has not been heard of."""
    if _may_try_again(job):
        return _waiting(job)
    return _ended(replace(job, status="failed", error=WORKER_LOST), now, expires_at)


def expired(job: Job, forgotten_at: float | None) -> Job:
    """Its time is over: what remains says that it was there, and nothing of what was asked for."""
    clip = replace(job.clip, prompt="", negative_prompt="", image=None)
    return replace(job, status="expired", clip=clip, metadata={}, error=None, result=None, expires_at=forgotten_at)


def _held(job: Job, attempt: int) -> bool:
    return job.holder is not None and job.attempts == attempt


def _may_try_again(job: Job) -> bool:
    return job.attempts - job.returned < MAX_ATTEMPTS


def _waiting(job: Job) -> Job:
    return replace(job, status="queued", holder=None, lease_until=None, progress=0, started_at=None)


def _ended(job: Job, now: float, expires_at: float | None) -> Job:
    return replace(job, holder=None, lease_until=None, completed_at=now, expires_at=expires_at)
