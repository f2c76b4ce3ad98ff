"""The database breaks off, restarts or is locked, and gateways are killed or cancelled: nothing is lost or done twice."""

import asyncio
import os
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, func, select

from reins_serve.errors import StoreUnavailable
from reins_serve.serving.engines import open_engine, reading
from reins_serve.serving.jobs import Job, QueueFull
from reins_serve.serving.sql_jobs import SqlJobs
from reins_serve.serving.tables import commits
from tests.serving.databases import PostgresServer, opened
from tests.serving.examples import ERROR, RESULT, job, started
from tests.serving.faults import at_commit, break_off, held_at_commit, lose_answer
from tests.serving.processes import PATIENCE_S, running

pytestmark = pytest.mark.anyio


STORIES: dict[str, tuple[str, Callable[[SqlJobs], Awaitable[Any]]]] = {
    "add": ("nothing", lambda jobs: jobs.add(job("new"), 1)),
    "claim": ("waits", lambda jobs: jobs.claim("tiny", "one", 1)),
    "begin": ("claimed", lambda jobs: jobs.begin("a", 1)),
    "renew": ("begun", lambda jobs: jobs.renew("one", {"a": (1, 50), "b": (1, 50)})),
    "complete": ("begun", lambda jobs: jobs.complete("a", 1, RESULT)),
    "fail": ("begun", lambda jobs: jobs.fail("a", ERROR, 1)),
    "release": ("begun", lambda jobs: jobs.release("a", 1)),
    "hand back": ("begun", lambda jobs: jobs.release("a", 1, lost=False)),
    "remove": ("begun", lambda jobs: jobs.remove("a")),
    "reap": ("begun", lambda jobs: jobs.reap()),
    "expire": ("ended", lambda jobs: jobs.expire()),
}


async def before(jobs: SqlJobs, state: str) -> None:
    """Bring the job `a` there; its lease and its time pass at once."""
    if state == "nothing":
        return
    await jobs.add(job("a"), 1)
    if state in ("claimed", "begun", "ended"):
        await jobs.claim("tiny", "one", 1)
    if state in ("begun", "ended"):
        await jobs.begin("a", 1)
    if state == "ended":
        await jobs.complete("a", 1, RESULT)


async def state_of(jobs: SqlJobs) -> object:
    """Everything but times."""
    found = await jobs.page("me", None, 9, newest_first=True)
    kept = [(item.id, item.status, item.attempts, item.returned, item.progress, item.holder) for item in found.jobs]
    totals = [(count.metric, count.labels, count.value) for count in await jobs.totals() if count.part == "value"]
    return kept, sorted(totals)


def told(result: Any) -> object:
    """What a method says, but times."""
    jobs = result if isinstance(result, list) else [result]
    return [(item.id, item.status, item.attempts) if isinstance(item, Job) else item for item in jobs]


@pytest.mark.parametrize("fault", [break_off, lose_answer])
@pytest.mark.parametrize("method", STORIES)
async def test_a_change_whose_commit_breaks_off_is_made_once_and_its_answer_is_the_same(
    jobs_url: str, tmp_path: Path, method: str, fault: Callable[[Connection], None]
) -> None:
    state, call = STORIES[method]
    lease_s = 1000.0 if method != "reap" else -1.0
    async with (
        opened(f"sqlite:///{tmp_path}/undisturbed.sqlite", lease_s=lease_s, retention_s=0) as undisturbed,
        opened(jobs_url, lease_s=lease_s, retention_s=0) as jobs,
    ):
        await before(undisturbed, state)
        expected = told(await call(undisturbed))
        await before(jobs, state)
        with at_commit(fault, skip=1 if state == "nothing" else 0) as seen:  # the first one then makes the tables
            assert told(await call(jobs)) == expected
        assert len(seen) == 1
        assert await state_of(jobs) == await state_of(undisturbed)


async def test_what_did_not_fit_is_refused_although_the_answer_was_lost(jobs: SqlJobs) -> None:
    await started(jobs, "a")
    with at_commit(lose_answer):
        assert await jobs.complete("a", 2, RESULT) is None
    with at_commit(lose_answer):
        assert await jobs.claim("tiny", "one", 9) is None
    with pytest.raises(QueueFull):
        await jobs.add(job("b"), 0)


async def test_marks_of_commits_are_removed_in_time(
    jobs: SqlJobs, jobs_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def marks() -> int | None:
        with reading(open_engine(jobs_url, 1)) as connection:
            return connection.scalar(select(func.count()).select_from(commits))

    await started(jobs, "a")
    await jobs.reap()
    assert marks() == 3
    monkeypatch.setattr("reins_serve.serving.sql_jobs.COMMITS_KEPT_S", -1)
    await jobs.reap()
    assert marks() == 0


def die(connection: Connection) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_after_commit(connection: Connection) -> None:
    driver = connection.connection.dbapi_connection
    assert driver is not None
    driver.commit()
    die(connection)


def act_and_die(url: str, method: str, how: Callable[[Connection], None]) -> None:
    """In a process: call a method, and be killed at its commit."""

    async def main() -> None:
        async with opened(url) as jobs:
            await jobs.get("a")
            with at_commit(how):
                await STORIES[method][1](jobs)

    asyncio.run(main())


@pytest.mark.parametrize("how", [die, die_after_commit])
@pytest.mark.parametrize("method", ["add", "claim", "complete", "remove"])
def test_a_gateway_that_is_killed_in_a_transaction_leaves_it_wholly_done_or_not_at_all(
    jobs_url: str, tmp_path: Path, method: str, how: Callable[[Connection], None]
) -> None:
    state, call = STORIES[method]

    async def prepare(url: str, done: bool) -> object:
        async with opened(url) as jobs:
            await before(jobs, state)
            if done:
                await call(jobs)
            return await state_of(jobs)

    async def look() -> object:
        async with opened(jobs_url) as jobs:
            seen = await state_of(jobs)
            await jobs.add(job("next"), 99)  # the database is free
            return seen

    expected = asyncio.run(prepare(f"sqlite:///{tmp_path}/undisturbed.sqlite", done=how is die_after_commit))
    asyncio.run(prepare(jobs_url, done=False))
    with running(act_and_die, (jobs_url, method, how)) as (process,):
        process.join(PATIENCE_S)
        assert process.exitcode == -signal.SIGKILL
    assert asyncio.run(look()) == expected


async def work_off(jobs: SqlJobs, holder: str) -> int:
    """Claim and complete until nothing waits."""
    done = 0
    while (claimed := await jobs.claim("tiny", holder, 99)) is not None:
        assert await jobs.begin(claimed.id, claimed.attempts) is not None
        assert await jobs.complete(claimed.id, claimed.attempts, RESULT) is not None
        done += 1
    return done


async def completed(jobs: SqlJobs) -> float:
    """How many jobs are counted as completed."""
    counted = [count for count in await jobs.totals() if count.labels == ("tiny", "completed")]
    return sum(count.value for count in counted)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_restart_of_the_database_under_use_is_not_noticed(
    postgres: PostgresServer, postgres_url: str, mode: str
) -> None:
    async with opened(postgres_url, patience_s=PATIENCE_S) as one, opened(postgres_url, patience_s=PATIENCE_S) as two:
        for number in range(150):
            await one.add(job(f"{number}"), 150)
        working = [asyncio.create_task(work_off(jobs, f"{number}")) for number, jobs in enumerate((one, one, two, two))]
        for at_least in (20, 60):
            while await completed(one) < at_least:
                await asyncio.sleep(0)
            await asyncio.to_thread(postgres.stop, mode)
            await asyncio.to_thread(postgres.start)
        assert sum(await asyncio.gather(*working)) == 150
        assert await completed(two) == 150
        assert not [item for item in (await one.page("me", None, 200, newest_first=True)).jobs if item.attempts != 1]


async def test_while_the_database_is_away_methods_say_so_and_afterwards_all_is_there(
    postgres: PostgresServer, postgres_url: str
) -> None:
    async with opened(postgres_url, patience_s=0.1) as jobs:
        begun = await started(jobs, "a")
        await asyncio.to_thread(postgres.stop)
        try:
            for asked in (jobs.get("a"), jobs.complete("a", 1, RESULT), jobs.renew("one", {"a": (1, 50)}), jobs.reap()):
                with pytest.raises(StoreUnavailable):
                    await asked
        finally:
            await asyncio.to_thread(postgres.start)
        assert await jobs.get("a") == begun
        assert await jobs.complete("a", 1, RESULT) is not None


async def test_connections_that_the_server_ends_are_replaced(postgres: PostgresServer, postgres_url: str) -> None:
    async with opened(postgres_url) as jobs:
        for number in range(20):
            await jobs.add(job(f"{number}"), 20)
            with psycopg.connect(postgres.url, autocommit=True) as connection:
                others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'reins-serve'"
                connection.execute(others)
        assert await jobs.count("tiny", "queued") == 20


async def test_a_locked_sqlite_file_is_waited_for_and_then_said_to_be_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reins_serve.serving.engines.BUSY_TIMEOUT_MS", 10)
    path = tmp_path / "jobs.sqlite"
    async with (
        opened(f"sqlite:///{path}", patience_s=0.1) as jobs,
        opened(f"sqlite:///{path}", patience_s=60) as patient,
    ):
        await jobs.add(job("a"), 9)
        await patient.get("a")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable):
            await jobs.add(job("b"), 9)
        assert await jobs.get("a") is not None  # reading goes on
        waits = asyncio.create_task(patient.add(job("c"), 9))
        with pytest.raises(StoreUnavailable):
            await jobs.remove("a")
        other.execute("ROLLBACK")
        other.close()
        assert (await waits).id == "c"
        assert await jobs.get("b") is None


async def test_of_two_changes_at_once_the_second_finds_what_the_first_has_made_of_the_job(
    postgres: PostgresServer, postgres_url: str
) -> None:
    async with opened(postgres_url) as jobs:
        await started(jobs, "a")
        with held_at_commit() as held:
            completing = asyncio.create_task(jobs.complete("a", 1, RESULT))
            await held.reached()
            failing = asyncio.create_task(jobs.fail("a", ERROR, 1))
            removing = asyncio.create_task(jobs.remove("a"))
            await postgres.somebody_waits(2)
            held.go_on.set()
            done = await completing
            assert done is not None and done.status == "completed"
            assert await failing is None
            assert await removing == done
        assert await completed(jobs) == 1
        assert not [count for count in await jobs.totals() if count.labels[1:] in (("failed",), ("cancelled",))]


async def test_a_claim_passes_over_a_job_that_is_being_removed(postgres_url: str) -> None:
    async with opened(postgres_url) as jobs:
        for name in "ab":
            await jobs.add(job(name), 2)
        with held_at_commit() as held:
            removing = asyncio.create_task(jobs.remove("a"))
            await held.reached()
            claimed = await jobs.claim("tiny", "one", 9)
            held.go_on.set()
            assert claimed is not None and claimed.id == "b"
            assert await removing is not None


async def test_a_claim_that_is_cancelled_on_its_way_hands_back_what_it_took(jobs: SqlJobs) -> None:
    await jobs.add(job("a"), 1)
    with held_at_commit() as held:
        claiming = asyncio.create_task(jobs.claim("tiny", "one", 1))
        await held.reached()
        claiming.cancel()
        await asyncio.sleep(0)
        held.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await claiming
    found = await jobs.get("a")
    assert found is not None and (found.holder, found.attempts, found.returned) == (None, 1, 1)
