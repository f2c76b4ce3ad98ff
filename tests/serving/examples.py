"""Jobs and outcomes for tests of the store."""

from typing import Any

from reins_serve.models.generation import ClipRequest
from reins_serve.plugin import GenerationRecord, SteeringRow
from reins_serve.serving.jobs import Job, JobError, JobResult
from reins_serve.serving.sql_jobs import SqlJobs

CLIP = ClipRequest("a clip", 0, 16, 16, 4, 4, 4.0)
OFF = GenerationRecord(None, None, None, None, "off", 0.0, 0, 0, 0, 0, None, None, None, False, False, "admin")
STEERED = GenerationRecord("d", "7", "ab" * 32, "add", "default", 2.0, 8, 8, 0, 2, 0.5, 0.25, 1.0, True, True, None)
RESULT = JobResult(STEERED, 0.3, 2)
ERROR = JobError("internal_error", "It failed.")

# What the first version of the store wrote for CLIP, RESULT and ERROR. It may only grow with a version that is served.
FIRST_DOCUMENTS = {
    "request": """{"clip":{"prompt":"a clip","seed":0,"width":16,"height":16,"num_frames":4,"num_inference_steps":4,
        "guidance_scale":4.0,"negative_prompt":"","image":null},"row":{"direction":"live","strength":2.0,"policy":"default",
        "reason":null,"basis":"exact","key":"a"},"metadata":{"shot":"7"}}""",
    "result": """{"record":{"direction":"d","version":"7","sha256":"%s","operation":"add","policy":"default","strength":2.0,
        "planned":8,"applied":8,"reused":0,"steps_steered":2,"displacement":0.5,"score":0.25,"moved":1.0,"steered":true,
        "proved":true,"reason":null},"inference_time_s":0.3,"batch_size":2}"""
    % ("ab" * 32),
    "error": """{"code":"internal_error","message":"It failed.","version":null,"sha256":null}""",
}


def job(name: str, owner: str = "me", model: str = "tiny", **fields: Any) -> Job:
    """A job that waits."""
    return Job(name, owner, model, CLIP, SteeringRow("live", 2.0, key=name), **fields)


async def started(jobs: SqlJobs, name: str, holder: str = "one", owner: str = "me") -> Job:
    """A new job that is claimed and in progress. No other may wait."""
    await jobs.add(job(name, owner), 1)
    claimed = await jobs.claim("tiny", holder, 99)
    assert claimed is not None and claimed.id == name
    begun = await jobs.begin(name, claimed.attempts)
    assert begun is not None
    return begun
