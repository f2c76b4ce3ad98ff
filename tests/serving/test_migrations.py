"""A database of the version before: its rows are read, and its gateways go on writing beside today's."""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, MetaData, Table, text

from reins_serve.serving.backlog import backlog
from reins_serve.serving.engines import open_engine, reading, writing
from reins_serve.serving.jobs import Idempotency
from reins_serve.serving.migrations import upgrade
from reins_serve.serving.sql_jobs import SqlJobs
from reins_serve.serving.tables import metadata
from tests.serving.databases import PostgresServer, opened
from tests.serving.examples import ERROR, FIRST_DOCUMENTS, RESULT, job, started
from tests.serving.faults import held_at_commit
from tests.serving.processes import CONTEXT, PATIENCE_S, running

pytestmark = pytest.mark.anyio

HEAD = "0002"
# What the first version wrote when a job came in.
FIRST_ROW = {
    "id": "old",
    "owner": "me",
    "model": "tiny",
    "status": "queued",
    "holder": None,
    "lease_until": None,
    "attempts": 0,
    "progress": 0,
    "created_at": 1000.5,
    "started_at": None,
    "completed_at": None,
    "expires_at": None,
    "request": FIRST_DOCUMENTS["request"],
    "error": None,
    "result": None,
}
BEGUN = {"status": "in_progress", "holder": "gone", "lease_until": 1.0, "attempts": 1, "started_at": 1001.0}
DONE = {"status": "completed", "attempts": 1, "progress": 100, "completed_at": 1002.0, "expires_at": 9e9}


@pytest.fixture
def engine(jobs_url: str) -> Iterator[Engine]:
    """A database in which the first version has made its tables."""
    made = open_engine(jobs_url, 2)
    upgrade(made, "0001")
    yield made
    made.dispose()


def revision(engine: Engine) -> str | None:
    with reading(engine) as connection:
        return MigrationContext.configure(connection).get_current_revision()


class FirstVersion:
    """Reads and writes as the first version does: the columns that it knew, and no others."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        known = MetaData()
        self.jobs = Table("jobs", known, autoload_with=engine)
        self.totals = Table("totals", known, autoload_with=engine)

    def add(self, name: str, **columns: object) -> None:
        with writing(self._engine) as connection:
            connection.execute(self.jobs.insert().values(FIRST_ROW | {"id": name} | columns))

    def change(self, name: str, **columns: object) -> None:
        with writing(self._engine) as connection:
            connection.execute(self.jobs.update().where(self.jobs.c.id == name).values(columns))

    def read(self, name: str) -> Mapping[str, Any]:
        with reading(self._engine) as connection:
            return connection.execute(self.jobs.select().where(self.jobs.c.id == name)).mappings().one()

    def count(self, metric: str, labels: str, value: float) -> None:
        with writing(self._engine) as connection:
            connection.execute(self.totals.insert().values(metric=metric, labels=labels, part="value", value=value))


async def test_the_migrations_make_the_tables_that_the_code_knows(jobs_url: str) -> None:
    async with opened(jobs_url) as jobs:
        await jobs.get("a")
    engine = open_engine(jobs_url, 1)
    with reading(engine) as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    assert revision(engine) == HEAD


async def test_rows_of_the_version_before_are_read_and_taken_on(jobs_url: str, engine: Engine) -> None:
    first = FirstVersion(engine)
    first.add("waits")
    first.add("lost", **BEGUN)
    first.add("done", **DONE, result=FIRST_DOCUMENTS["result"])
    first.count("reins_frames_total", '["tiny"]', 40.0)
    async with opened(jobs_url) as jobs:
        waits = job("waits", created_at=1000.5, metadata={"shot": "7"})
        found = await jobs.get("waits")
        assert found is not None
        assert (found.clip, found.metadata, found.priority, found.returned) == (waits.clip, {"shot": "7"}, 0, 0)
        done = await jobs.get("done")
        assert done is not None and done.result == RESULT
        assert [item.id for item in (await jobs.page("me", None, 9, newest_first=False)).jobs] == [
            "done",
            "lost",
            "waits",
        ]
        assert [item.id for item in await jobs.reap()] == ["lost"]
        for name in ("lost", "waits"):
            claimed = await jobs.claim("tiny", "one", 9)
            assert claimed is not None and claimed.id == name
            await jobs.begin(name, claimed.attempts)
            assert await jobs.complete(name, claimed.attempts, RESULT) is not None
        (frames,) = [count for count in await jobs.totals() if count.metric == "reins_frames_total"]
        assert frames.value == 48
    assert revision(engine) == HEAD


async def test_the_version_before_goes_on_writing_after_the_upgrade(jobs_url: str, engine: Engine) -> None:
    first = FirstVersion(engine)
    async with opened(jobs_url) as jobs:
        await jobs.get("a")
        assert revision(engine) == HEAD
        first.add("theirs")
        claimed = await jobs.claim("tiny", "one", 9)
        assert claimed is not None and (claimed.id, claimed.priority, claimed.returned) == ("theirs", 0, 0)

        await jobs.add(job("ours", priority=5), 9, Idempotency("key", "digest"))
        seen = first.read("ours")
        assert (seen["status"], seen["holder"], seen["attempts"]) == ("queued", None, 0)
        assert set(FIRST_ROW) == set(seen)
        first.change("ours", holder="gateway of the first version", lease_until=9e9, attempts=1)
        assert await jobs.claim("tiny", "one", 9) is None
        first.change("ours", status="in_progress", started_at=1001.0)
        first.change("ours", **DONE, holder=None, lease_until=None, result=FIRST_DOCUMENTS["result"])
        done = await jobs.get("ours")
        assert done is not None and (done.status, done.result, done.priority) == ("completed", RESULT, 5)
        assert await jobs.add(job("again"), 9, Idempotency("key", "digest")) == done

        first.count("reins_frames_total", '["theirs"]', 7.0)
        assert ("reins_frames_total", 7.0) in [(count.metric, count.value) for count in await jobs.totals()]


async def test_what_is_written_today_has_what_the_version_before_needs(jobs_url: str, engine: Engine) -> None:
    first = FirstVersion(engine)
    needed = {column.name for column in first.jobs.columns if not column.nullable}
    async with opened(jobs_url) as jobs:
        await started(jobs, "a")
        await jobs.fail("a", ERROR, 1)
    row = first.read("a")
    assert all(row[name] is not None for name in needed | {"error"})


async def test_a_database_of_a_newer_version_is_used_as_it_is(jobs_url: str) -> None:
    async with opened(jobs_url) as jobs:
        await jobs.add(job("a"), 9)
    engine = open_engine(jobs_url, 1)
    with writing(engine) as connection:
        connection.execute(text("ALTER TABLE jobs ADD COLUMN later TEXT DEFAULT 'x'"))
        connection.execute(text("UPDATE alembic_version SET version_num = 'later'"))
    async with opened(jobs_url) as jobs:
        found = await jobs.get("a")
        assert found is not None and found.clip.prompt == "a clip"
        await jobs.add(job("b"), 9)
    assert revision(engine) == "later"


def start_store(url: str, names: list[str], together: Any) -> None:
    """In a process: several stores that make the tables, if they are not there, and use them."""

    async def main() -> None:
        stores = [SqlJobs(url) for _ in names]
        together.wait()
        await asyncio.gather(*(store.add(job(name), 99) for store, name in zip(stores, names, strict=True)))
        for store in stores:
            await store.close()

    asyncio.run(main())


def test_several_gateways_may_start_at_once_on_an_empty_database(jobs_url: str) -> None:
    together = CONTEXT.Barrier(3, timeout=PATIENCE_S)
    with running(
        start_store, *((jobs_url, [f"{number}a", f"{number}b"], together) for number in range(3))
    ) as processes:
        pass
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert backlog(jobs_url, "tiny") == (6, 0)


async def test_a_gateway_waits_for_another_that_makes_the_tables(postgres: PostgresServer, postgres_url: str) -> None:
    with held_at_commit() as held:
        making = asyncio.create_task(asyncio.to_thread(upgrade, open_engine(postgres_url, 1)))
        await held.reached()
        with running(start_store, (postgres_url, ["a"], CONTEXT.Barrier(1))) as (process,):
            await postgres.somebody_waits(1)
            held.go_on.set()
            await making
            await asyncio.to_thread(process.join, PATIENCE_S)
            assert process.exitcode == 0
    assert backlog(postgres_url, "tiny") == (1, 0)
