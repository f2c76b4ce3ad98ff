"""Which databases jobs are kept in, and what is set there."""

import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from reins_serve.errors import ReinsError, StoreUnavailable
from reins_serve.serving.backlog import backlog
from reins_serve.serving.engines import open_engine, reading
from reins_serve.serving.sql_jobs import SqlJobs
from tests.serving.databases import opened
from tests.serving.examples import job
from tests.serving.ports import free_port


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file::memory:?uri=true",
        "sqlite:///file:jobs?mode=memory&uri=true",
        "sqlite+pysqlite:///:memory:",
    ],
)
def test_a_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(ReinsError, match="name a file"):
        SqlJobs(url)


@pytest.mark.parametrize("url", ["", "jobs.sqlite", "mysql://me@host/jobs", "postgresql+asyncpg://me:secret@host/jobs"])
def test_what_is_neither_sqlite_nor_postgresql_is_refused(url: str) -> None:
    with pytest.raises(ReinsError, match=r"sqlite:///path/to/jobs\.sqlite or postgresql://") as caught:
        SqlJobs(url)
    assert "secret" not in str(caught.value)


def test_without_its_driver_postgresql_is_refused_with_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ReinsError, match=r"reins-serve\[postgres\]"):
        SqlJobs("postgresql://me@host/jobs")


def test_sqlite_is_set_to_lose_nothing(tmp_path: Path) -> None:
    with reading(open_engine(f"sqlite:///{tmp_path}/new/folder/jobs.sqlite", 1)) as connection:
        said = [connection.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous", "foreign_keys")]
    assert said == ["wal", 2, 1]


def test_postgresql_is_set_to_let_go_of_a_gateway_whose_machine_is_gone(postgres_url: str) -> None:
    with reading(open_engine(postgres_url, 1)) as connection:
        said = [
            connection.scalar(text(f"SHOW {name}")) for name in ("idle_in_transaction_session_timeout", "lock_timeout")
        ]
    assert said == ["30s", "30s"]


def test_only_the_servers_user_may_read_the_file(tmp_path: Path) -> None:
    open_engine(f"sqlite:///{tmp_path}/jobs.sqlite", 1)
    assert (tmp_path / "jobs.sqlite").stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ReinsError, match="cannot be made"):
        SqlJobs(f"sqlite:///{tmp_path}/file/jobs.sqlite")


@pytest.mark.anyio
async def test_a_database_that_is_away_is_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    url = f"postgresql://me:secret@127.0.0.1:{free_port()}/jobs"
    async with opened(url, patience_s=0.1) as jobs:
        for asked in (jobs.get("a"), jobs.add(job("a"), 9), jobs.claim("tiny", "one", 1), jobs.totals()):
            with pytest.raises(StoreUnavailable, match="does not answer") as caught:
                await asked
            assert caught.value.code == "not_ready"
    with pytest.raises(StoreUnavailable):
        backlog(url, "tiny")
    assert "does not answer" in caplog.text and "secret" not in caplog.text and "a clip" not in caplog.text


@pytest.mark.anyio
async def test_a_file_that_cannot_be_opened_is_said_to_be_away(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").mkdir()
    async with opened(f"sqlite:///{tmp_path}/jobs.sqlite", patience_s=0.1) as jobs:
        with pytest.raises(StoreUnavailable):
            await jobs.get("a")
