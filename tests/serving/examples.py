"""Jobs and outcomes for tests of the store."""

from typing import Any

from reins_serve.models.generation import ClipRequest
from reins_serve.plugin import GenerationRecord, SteeringRow
from reins_serve.serving.jobs import Job, JobError, JobResult
from reins_serve.serving.sql_jobs import SqlJobs

CLIP = ClipRequest("a clip", 0, 16, 16, 4, 4, 4.0)
OFF = GenerationRecord(None, None, None, None, "off", 0.0, 0, 0, 0, 0, None, None, None, False, False, "admin")
STEERED = GenerationRecord(
    "d", "7", "ab" * 32, "add", "default", 2.0, 8, 8, 0, 2, 0.5, 0.25, 1.0, True, True, None
)
RESULT = JobResult(STEERED, 0.3, 2)
ERROR = JobError("internal_error", "It failed.")


def job(name: str, owner: str = "me", model: str = "tiny", **fields: Any) -> Job:
    """A job that waits."""
    return Job(name, owner, model, CLIP, SteeringRow("live", 2.0, key=name), **fields)


async def started(jobs: SqlJobs, name: str, holder: str = "one") -> Job:
    """A new job that is claimed and in progress. No other may wait."""
    await jobs.add(job(name), 1)
    claimed = await jobs.claim("tiny", holder, 99)
    assert claimed is not None and claimed.id == name
    begun = await jobs.begin(name, claimed.attempts)
    assert begun is not None
    return begun
