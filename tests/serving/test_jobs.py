"""The states of a job: what may follow what, and what is refused."""

import asyncio

import pytest

from reins_serve.models.generation import ClipRequest
from reins_serve.plugin import GenerationRecord, SteeringRow
from reins_serve.serving.jobs import Job, JobError, JobResult, MemoryJobs, QueueFull

CLIP = ClipRequest("a clip", 0, 16, 16, 4, 4, 4.0)
RECORD = GenerationRecord(None, None, None, None, "off", 0.0, 0, 0, 0, 0, None, None, None, False, False, "admin")
RESULT = JobResult(RECORD, 0.1, 1)
ERROR = JobError("internal_error", "It failed.")


def job(name: str, owner: str = "me", model: str = "tiny") -> Job:
    return Job(name, owner, model, CLIP, SteeringRow(None, 0.0))


def test_a_job_goes_from_queued_to_completed() -> None:
    async def story() -> None:
        jobs = MemoryJobs()
        await jobs.add(job("a"), 1)
        assert (claimed := await jobs.claim("tiny")) is not None
        assert (claimed.status, claimed.attempts) == ("queued", 1)
        assert (begun := await jobs.begin("a")) is not None
        assert begun.status == "in_progress"
        assert (done := await jobs.complete("a", RESULT)) is not None
        assert (done.status, done.progress, done.result) == ("completed", 100, RESULT)

    asyncio.run(story())


def test_a_terminal_state_never_changes() -> None:
    async def story() -> None:
        jobs = MemoryJobs()
        await jobs.add(job("a"), 2)
        await jobs.begin("a")
        await jobs.complete("a", RESULT)
        assert await jobs.fail("a", ERROR) is None
        assert await jobs.release("a") is None
        await jobs.add(job("b"), 2)
        await jobs.fail("b", ERROR)
        assert await jobs.begin("b") is None
        assert await jobs.complete("b", RESULT) is None
        assert [(await jobs.get(name)).status for name in "ab"] == ["completed", "failed"]  # type: ignore[union-attr]

    asyncio.run(story())


def test_progress_never_falls_and_stays_below_100_until_the_end() -> None:
    async def story() -> None:
        jobs = MemoryJobs()
        await jobs.add(job("a"), 1)
        assert await jobs.advance("a", 10) is None  # it has not begun
        await jobs.begin("a")
        seen = [(await jobs.advance("a", value)).progress for value in (30, 10, 60, 100)]  # type: ignore[union-attr]
        assert seen == [30, 30, 60, 99]

    asyncio.run(story())


def test_a_job_that_was_not_begun_cannot_complete() -> None:
    async def story() -> None:
        jobs = MemoryJobs()
        await jobs.add(job("a"), 1)
        assert await jobs.complete("a", RESULT) is None

    asyncio.run(story())


def test_a_lost_job_is_tried_once_more_before_younger_ones() -> None:
    async def story() -> None:
        jobs = MemoryJobs()
        await jobs.add(job("a"), 2)
        await jobs.claim("tiny")
        await jobs.begin("a")
        await jobs.add(job("b"), 2)
        assert (released := await jobs.release("a")) is not None
        assert released.status == "queued"
        assert (again := await jobs.claim("tiny")) is not None
        assert again.id == "a"
        assert await jobs.release("a") is None

    asyncio.run(story())


def test_the_queue_is_bounded_for_each_model() -> None:
    async def story() -> None:
        jobs = MemoryJobs()
        await jobs.add(job("a"), 1)
        with pytest.raises(QueueFull):
            await jobs.add(job("b"), 1)
        await jobs.add(job("c", model="other"), 1)
        await jobs.begin("a")  # it waits no longer
        await jobs.add(job("b"), 1)

    asyncio.run(story())


def test_pages_show_the_owners_jobs_only() -> None:
    async def story() -> None:
        jobs = MemoryJobs()
        for name in "abcd":
            await jobs.add(job(name), 9)
        await jobs.add(job("x", owner="you"), 9)
        page = await jobs.page("me", None, 3, newest_first=True)
        assert ([item.id for item in page.jobs], page.has_more) == (["d", "c", "b"], True)
        page = await jobs.page("me", "b", 3, newest_first=True)
        assert ([item.id for item in page.jobs], page.has_more) == (["a"], False)
        page = await jobs.page("me", "a", 2, newest_first=False)
        assert ([item.id for item in page.jobs], page.has_more) == (["b", "c"], True)
        with pytest.raises(KeyError):
            await jobs.page("me", "x", 3, newest_first=True)

    asyncio.run(story())


def test_queue_positions_count_the_jobs_ahead() -> None:
    async def story() -> None:
        jobs = MemoryJobs()
        added = [await jobs.add(job(name), 9) for name in "abc"]
        assert [await jobs.position(item) for item in added] == [0, 1, 2]
        await jobs.begin("a")
        assert [await jobs.position(item) for item in added] == [None, 0, 1]
        await jobs.remove("b")
        assert await jobs.position(added[2]) == 0

    asyncio.run(story())
