"""The states of a job in the store, on SQLite and on PostgreSQL alike: what may follow what, and what is refused."""

import pytest

from reins_serve.serving.jobs import MAX_ATTEMPTS, Idempotency, IdempotencyConflict, QueueFull
from reins_serve.serving.sql_jobs import SqlJobs
from tests.serving.databases import opened
from tests.serving.examples import ERROR, RESULT, job, started

pytestmark = pytest.mark.anyio


async def test_a_job_goes_from_queued_to_completed(jobs: SqlJobs) -> None:
    added = job("a", metadata={"shot": "7"}, priority=3)
    assert await jobs.add(added, 1) == await jobs.get("a") == added
    claimed = await jobs.claim("tiny", "one", 1)
    assert claimed is not None and claimed.lease_until is not None
    assert (claimed.status, claimed.holder, claimed.attempts, claimed.metadata) == ("queued", "one", 1, {"shot": "7"})
    begun = await jobs.begin("a", 1)
    assert begun is not None and begun.started_at is not None and begun.status == "in_progress"
    assert await jobs.renew("one", {"a": (1, 40)}) == set()
    done = await jobs.complete("a", 1, RESULT)
    assert done is not None and done.completed_at is not None and done.expires_at is not None
    assert (done.status, done.progress, done.result, done.holder, done.attempts) == ("completed", 100, RESULT, None, 1)
    assert done.expires_at > done.completed_at >= begun.started_at
    assert await jobs.get("a") == done


async def test_a_job_that_is_not_there_is_none(jobs: SqlJobs) -> None:
    assert await jobs.get("a") is None
    assert await jobs.begin("a", 1) is None
    assert await jobs.complete("a", 1, RESULT) is None
    assert await jobs.fail("a", ERROR, 1) is None
    assert await jobs.release("a", 1) is None
    assert await jobs.remove("a") is None
    assert await jobs.position(job("a")) is None
    assert await jobs.claim("tiny", "one", 1) is None


@pytest.mark.parametrize("outcome", ["completed", "failed"])
async def test_a_terminal_state_never_changes(jobs: SqlJobs, outcome: str) -> None:
    await started(jobs, "a")
    ended = await (jobs.complete("a", 1, RESULT) if outcome == "completed" else jobs.fail("a", ERROR, 1))
    assert ended is not None and ended.status == outcome
    assert await jobs.begin("a", 1) is None
    assert await jobs.complete("a", 1, RESULT) is None
    assert await jobs.fail("a", ERROR, 1) is None
    assert await jobs.release("a", 1) is None
    assert await jobs.renew("one", {"a": (1, 5)}) == {"a"}
    assert await jobs.get("a") == ended


async def test_a_job_that_was_not_begun_cannot_complete(jobs: SqlJobs) -> None:
    await jobs.add(job("a"), 1)
    assert await jobs.complete("a", 0, RESULT) is None
    assert await jobs.begin("a", 0) is None  # nobody has claimed it
    await jobs.claim("tiny", "one", 1)
    assert await jobs.complete("a", 1, RESULT) is None


async def test_a_claimed_job_may_fail_before_it_is_begun(jobs: SqlJobs) -> None:
    await jobs.add(job("a"), 1)
    assert await jobs.fail("a", ERROR, 0) is None
    await jobs.claim("tiny", "one", 1)
    failed = await jobs.fail("a", ERROR, 1)
    assert failed is not None and (failed.status, failed.error, failed.holder) == ("failed", ERROR, None)
    assert failed.expires_at is not None


async def test_progress_never_falls_and_stays_below_100_until_the_end(jobs: SqlJobs) -> None:
    await jobs.add(job("a"), 1)
    await jobs.claim("tiny", "one", 1)
    seen = []
    for value in (10, None, 30, 10, 60, 100):
        if value is None:
            await jobs.begin("a", 1)
        else:
            assert await jobs.renew("one", {"a": (1, value)}) == set()
            found = await jobs.get("a")
            assert found is not None
            seen.append(found.progress)
    assert seen == [0, 30, 30, 60, 99]  # it had not begun at first


async def test_a_heartbeat_prolongs_the_leases_that_are_the_holders_and_names_the_others(jobs_url: str) -> None:
    async with opened(jobs_url, lease_s=100) as short, opened(jobs_url, lease_s=1000) as jobs:
        for name in ("kept", "other", "removed", "unknown attempt"):
            await started(short, name, "two" if name == "other" else "one")
        await jobs.remove("removed")
        before = {name: await jobs.get(name) for name in ("kept", "other", "unknown attempt")}
        said = dict.fromkeys(("kept", "other", "removed", "never there"), (1, 50)) | {"unknown attempt": (2, 50)}
        assert await jobs.renew("one", said) == {"other", "removed", "never there", "unknown attempt"}
        after = {name: await jobs.get(name) for name in before}
        assert after["other"] == before["other"] and after["unknown attempt"] == before["unknown attempt"]
        assert after["kept"].progress == 50  # type: ignore[union-attr]
        assert after["kept"].lease_until > before["kept"].lease_until + 800  # type: ignore[union-attr,operator]
        assert await jobs.renew("one", {}) == set()


async def test_a_lost_job_is_tried_once_more_before_younger_ones(jobs: SqlJobs) -> None:
    await started(jobs, "a")
    await jobs.renew("one", {"a": (1, 70)})
    await jobs.add(job("b"), 2)
    released = await jobs.release("a", 1)
    assert released is not None
    assert (released.status, released.progress, released.holder, released.started_at) == ("queued", 0, None, None)
    again = await jobs.claim("tiny", "two", 9)
    assert again is not None and (again.id, again.attempts) == ("a", 2)
    assert await jobs.release("a", 2) is None
    assert await jobs.fail("a", ERROR, 2) is not None


async def test_a_job_that_is_handed_back_keeps_its_attempts(jobs: SqlJobs) -> None:
    await jobs.add(job("a"), 1)
    for number in range(1, 2 * MAX_ATTEMPTS):
        claimed = await jobs.claim("tiny", "one", 1)
        assert claimed is not None and claimed.attempts == number
        assert await jobs.release("a", number, lost=False) is not None
    lost = await jobs.claim("tiny", "one", 1)
    assert lost is not None
    assert await jobs.release("a", lost.attempts) is not None
    last = await jobs.claim("tiny", "one", 1)
    assert last is not None
    assert await jobs.release("a", last.attempts) is None
    assert await jobs.release("a", last.attempts, lost=False) is not None


@pytest.mark.parametrize("lost", [True, False])
async def test_whoever_has_lost_a_job_can_change_it_no_more(jobs: SqlJobs, lost: bool) -> None:
    await started(jobs, "a", "one")
    await jobs.release("a", 1, lost)
    waits = await jobs.get("a")

    async def refused() -> None:
        assert await jobs.begin("a", 1) is None
        assert await jobs.complete("a", 1, RESULT) is None
        assert await jobs.fail("a", ERROR, 1) is None
        assert await jobs.release("a", 1) is None
        assert await jobs.release("a", 1, lost=False) is None
        assert await jobs.renew("one", {"a": (1, 50)}) == {"a"}

    await refused()
    assert await jobs.get("a") == waits
    taken = await jobs.claim("tiny", "two", 1)
    await refused()
    assert await jobs.get("a") == taken
    begun = await jobs.begin("a", 2)
    await refused()
    assert await jobs.get("a") == begun


async def test_jobs_whose_lease_has_passed_go_back_to_the_queue_once_and_then_fail(jobs_url: str) -> None:
    async with opened(jobs_url, lease_s=-1) as dead, opened(jobs_url) as alive:
        await started(dead, "a", "dead")
        await started(alive, "b", "alive")
        assert [(found.id, found.status, found.progress) for found in await alive.reap()] == [("a", "queued", 0)]
        assert await alive.reap() == []
        again = await dead.claim("tiny", "dead", 9)
        assert again is not None and again.attempts == 2
        (lost,) = await alive.reap()
        assert lost.error is not None and lost.expires_at is not None
        assert (lost.id, lost.status, lost.error.code) == ("a", "failed", "worker_lost")
        assert await alive.get("a") == lost
        assert await alive.begin("b", 1) is None  # it has begun: nobody took it away
        assert await alive.complete("b", 1, RESULT) is not None


async def test_a_holder_that_was_late_keeps_its_job_while_nobody_has_taken_it(jobs_url: str) -> None:
    async with opened(jobs_url, lease_s=-1) as late, opened(jobs_url) as jobs:
        await started(late, "a", "late")
        assert await jobs.renew("late", {"a": (1, 50)}) == set()
        assert await jobs.reap() == []
        assert await late.complete("a", 1, RESULT) is not None


async def test_a_removed_job_is_forgotten_whatever_its_state(jobs: SqlJobs) -> None:
    for number, name in enumerate(("queued", "claimed", "begun", "done")):
        await jobs.add(job(name), 9)
        if number >= 1:
            await jobs.claim("tiny", "one", 9)
        if number >= 2:
            await jobs.begin(name, 1)
        if number == 3:
            await jobs.complete(name, 1, RESULT)
        before = await jobs.get(name)
        assert before is not None
        assert await jobs.remove(name) == before
        assert await jobs.get(name) is None
        assert await jobs.remove(name) is None


async def test_the_same_request_again_is_the_same_job(jobs: SqlJobs) -> None:
    first = await jobs.add(job("a"), 1, Idempotency("key", "digest"))
    assert await jobs.add(job("b"), 1, Idempotency("key", "digest")) == first  # although the queue is full
    assert await jobs.get("b") is None
    with pytest.raises(IdempotencyConflict):
        await jobs.add(job("c", model="other"), 1, Idempotency("key", "another digest"))
    with pytest.raises(QueueFull):
        await jobs.add(job("d"), 1, Idempotency("another key", "digest"))
    assert (await jobs.add(job("e", owner="you"), 2, Idempotency("key", "their digest"))).id == "e"
    await started_again(jobs, first.id)
    done = await jobs.complete("a", 1, RESULT)
    assert await jobs.add(job("f"), 9, Idempotency("key", "digest")) == done
    await jobs.remove("a")
    assert (await jobs.add(job("g"), 9, Idempotency("key", "digest"))).id == "g"


async def started_again(jobs: SqlJobs, name: str) -> None:
    claimed = await jobs.claim("tiny", "one", 9)
    assert claimed is not None and claimed.id == name
    assert await jobs.begin(name, 1) is not None


async def test_an_expired_job_leaves_a_mark_without_what_was_asked_for_and_then_nothing(jobs_url: str) -> None:
    async with opened(jobs_url, retention_s=0) as jobs, opened(jobs_url, retention_s=1000) as later:
        await jobs.add(job("open"), 9)
        for name in ("a", "b"):
            await jobs.add(job(name, metadata={"note": "mine"}, priority=1), 9, Idempotency(name, "digest"))
            await jobs.claim("tiny", "one", 9)
            await jobs.begin(name, 1)
        done = await jobs.complete("a", 1, RESULT)
        kept = await later.complete("b", 1, RESULT)
        assert await later.expire() == [done]
        assert await later.expire() == []
        mark = await jobs.get("a")
        assert mark is not None and mark.expires_at is not None and mark.terminal
        assert (mark.status, mark.owner, mark.clip.prompt, mark.metadata) == ("expired", "me", "", {})
        assert mark.result is None and mark.error is None
        assert await jobs.get("b") == kept
        assert [found.id for found in (await jobs.page("me", None, 9, newest_first=False)).jobs] == ["open", "b"]
        assert await jobs.begin("a", 1) is None and await jobs.fail("a", ERROR, 1) is None
        assert (await jobs.add(job("c"), 9, Idempotency("a", "another digest"))).id == "c"  # the key is free again

        await jobs.add(job("x", priority=1), 9)
        await jobs.claim("tiny", "one", 9)
        await jobs.fail("x", ERROR, 1)
        assert [found.id for found in await jobs.expire()] == ["x"]
        assert await jobs.expire() == []
        assert await jobs.get("x") is None  # its mark was to last no time
        assert await jobs.get("a") == mark


async def test_jobs_expire_a_few_at_a_time_the_oldest_first(jobs_url: str) -> None:
    async with opened(jobs_url, retention_s=0) as jobs, opened(jobs_url, retention_s=None) as forever:
        for name in "abc":
            await started(jobs, name)
            await jobs.complete(name, 1, RESULT)
        await started(forever, "kept")
        done = await forever.complete("kept", 1, RESULT)
        assert done is not None and done.expires_at is None
        assert [found.id for found in await jobs.expire(2)] == ["a", "b"]
        assert [found.id for found in await jobs.expire(2)] == ["c"]
        assert await jobs.get("kept") == done
