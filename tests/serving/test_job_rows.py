"""A job as a row: everything comes back, and what another version has written is read."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import ANY

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sqlalchemy import RowMapping, select, text

from reins_serve.models.generation import ClipRequest
from reins_serve.plugin import SteeringRow
from reins_serve.serving.engines import open_engine, reading
from reins_serve.serving.job_rows import from_png, to_job, to_png, to_row
from reins_serve.serving.jobs import Job, JobError, JobResult
from reins_serve.serving.sql_jobs import SqlJobs
from reins_serve.serving.tables import images
from tests.serving.examples import ERROR, FIRST_DOCUMENTS, RESULT, STEERED, job, started

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(max_size=20)  # NUL among them, and characters beyond the basic plane
CLIPS = st.builds(
    ClipRequest, TEXTS, st.integers(), *(st.integers(1, 4096),) * 4, FLOATS, negative_prompt=TEXTS, image=st.none()
)
ROWS = st.builds(
    SteeringRow,
    st.none() | TEXTS,
    FLOATS,
    TEXTS,
    st.none() | TEXTS,
    st.sampled_from(["exact", "serving", "asked"]),
    st.none() | TEXTS,
)
RECORDS = st.builds(lambda score, reason: replace(STEERED, score=score, reason=reason), st.none() | FLOATS, TEXTS)
JOBS = st.builds(
    Job,
    TEXTS,
    TEXTS,
    TEXTS,
    CLIPS,
    ROWS,
    st.dictionaries(TEXTS, TEXTS, max_size=3),
    st.sampled_from(["queued", "in_progress", "completed", "failed", "expired"]),
    created_at=FLOATS,
    lease_until=st.none() | FLOATS,
    error=st.none() | st.builds(JobError, TEXTS, TEXTS, st.none() | TEXTS),
    result=st.none() | st.builds(JobResult, RECORDS, FLOATS, st.integers(1, 99)),
)


def read(row: Mapping[str, Any]) -> Job:
    return to_job(cast(RowMapping, row))


@settings(deadline=None)
@given(JOBS)
def test_a_job_comes_back_as_it_was(stored: Job) -> None:
    assert read(to_row(stored)) == stored


def test_words_that_a_newer_version_has_added_are_ignored() -> None:
    stored = job("a", result=RESULT, error=ERROR)
    row = to_row(stored)
    request, result, error = (json.loads(row[name]) for name in ("request", "result", "error"))
    for document in (request, request["clip"], request["row"], result, result["record"], error):
        document["later"] = {"a": 1}
    row |= {"request": json.dumps(request), "result": json.dumps(result), "error": json.dumps(error), "later": 1}
    assert read(row) == stored


def test_documents_of_the_first_version_are_read() -> None:
    assert read(to_row(job("a")) | FIRST_DOCUMENTS) == replace(
        job("a"), created_at=ANY, metadata={"shot": "7"}, result=RESULT, error=ERROR
    )


def test_documents_have_every_word_that_the_first_version_needs() -> None:
    row = to_row(job("a", metadata={"shot": "7"}, result=RESULT, error=ERROR))

    def words(document: Any) -> set[str]:
        if not isinstance(document, dict):
            return set()
        return set(document) | {f"{key}.{word}" for key, value in document.items() for word in words(value)}

    for name, first in FIRST_DOCUMENTS.items():
        assert words(json.loads(first)) <= words(json.loads(row[name]))


@pytest.mark.anyio
async def test_an_image_comes_with_the_claim_and_goes_when_the_job_is_over(jobs: SqlJobs, jobs_url: str) -> None:
    image = Image.effect_noise((16, 12), 50).convert("RGB")
    asked = job("a")
    asked = replace(asked, clip=replace(asked.clip, image=image))

    def stored() -> int:
        with reading(open_engine(jobs_url, 1)) as connection:
            return len(connection.execute(select(images.c.job_id)).all())

    await jobs.add(asked, 9)
    found = await jobs.get("a")
    assert found is not None and found.clip.image is None
    for attempt in (1, 2):
        claimed = await jobs.claim("tiny", "one", 1)
        assert claimed is not None and claimed.clip.image is not None
        assert claimed.clip.image.tobytes() == image.tobytes()
        assert claimed.clip.batch_key == asked.clip.batch_key
        await jobs.release("a", attempt, lost=False)
    await jobs.claim("tiny", "one", 1)
    assert stored() == 1
    assert await jobs.fail("a", ERROR, 3) is not None
    assert stored() == 0
    await jobs.add(replace(asked, id="b"), 9)
    await jobs.remove("b")
    assert stored() == 0


@pytest.mark.anyio
async def test_the_guides_query_finds_whose_clips_guards_held(jobs: SqlJobs, jobs_url: str) -> None:
    for name, owner, share in (("a", "me", 0.75), ("b", "me", 1.0), ("c", "you", 0.25), ("d", "you", None)):
        begun = await started(jobs, name, owner=owner)
        result = replace(RESULT, record=replace(STEERED, guarded=share))
        assert await jobs.complete(name, begun.attempts, result) is not None
    await jobs.add(job("e"), 9)
    query = re.search(r"```sql\n(.+?)```", Path("docs/operations.md").read_text(), re.DOTALL)
    assert query is not None
    engine = open_engine(jobs_url, 1)
    said = query[1] if engine.dialect.name == "postgresql" else query[1].replace("::json", "")
    with reading(engine) as connection:
        assert [tuple(row) for row in connection.execute(text(said))] == [("me", 2)]


def test_an_image_is_kept_without_loss() -> None:
    image = Image.effect_noise((9, 5), 50).convert("RGB")
    assert from_png(to_png(image)).tobytes() == image.tobytes()
