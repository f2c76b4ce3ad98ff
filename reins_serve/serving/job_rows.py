"""A job as a row of the table and back.

What never changes (the clip, its steering, the metadata) is one JSON document, the outcome two more. Words in them that a
newer version has added are ignored, so its rows are read during a rolling upgrade; a field that it adds needs a default.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from pydantic import ConfigDict, TypeAdapter
from sqlalchemy import RowMapping

from reins_serve.models.generation import ClipRequest
from reins_serve.serving.jobs import Job, JobError, JobResult
from reins_serve.steering.policy import SteeringRow

Values = dict[str, Any]

# Columns whose names and values are those of the job's fields, and that may change.
CHANGING = (
    "status",
    "priority",
    "holder",
    "lease_until",
    "attempts",
    "returned",
    "progress",
    "started_at",
    "completed_at",
    "expires_at",
)
PLAIN = ("id", "owner", "model", "created_at", *CHANGING)


@dataclass(frozen=True)
class _Request:
    """What was asked for. The clip's image lies in a table of its own."""

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)

    clip: ClipRequest
    row: SteeringRow
    metadata: Mapping[str, str]


_request = TypeAdapter(_Request)
_error = TypeAdapter(JobError)
_result = TypeAdapter(JobResult)


def to_row(job: Job) -> Values:
    """All columns of a job."""
    return {name: getattr(job, name) for name in PLAIN} | outcome_columns(job) | request_column(job)


def changed_columns(job: Job) -> Values:
    """The columns that a change of state may change."""
    return {name: getattr(job, name) for name in CHANGING} | outcome_columns(job)


def request_column(job: Job) -> Values:
    """What was asked for."""
    request = _Request(replace(job.clip, image=None), job.row, job.metadata)
    return {"request": _request.dump_json(request).decode()}


def outcome_columns(job: Job) -> Values:
    """What became of the job."""
    return {
        "error": None if job.error is None else _error.dump_json(job.error).decode(),
        "result": None if job.result is None else _result.dump_json(job.result).decode(),
    }


def to_job(row: RowMapping) -> Job:
    """The job of a row, without its image."""
    request = _request.validate_json(row["request"])
    return Job(
        clip=request.clip,
        row=request.row,
        metadata=request.metadata,
        error=None if row["error"] is None else _error.validate_json(row["error"]),
        result=None if row["result"] is None else _result.validate_json(row["result"]),
        **{name: row[name] for name in PLAIN},
    )


def to_png(image: Image.Image) -> bytes:
    """An image, losslessly."""
    written = io.BytesIO()
    image.save(written, "png")
    return written.getvalue()


def from_png(data: bytes) -> Image.Image:
    """What `to_png` has written."""
    with Image.open(io.BytesIO(data)) as image:
        return image.copy()
