"""Databases for tests: a fresh SQLite file, and a fresh database of a PostgreSQL server that this run starts for itself."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from reins_serve.serving.sql_jobs import SqlJobs
from tests.serving.ports import free_port
from tests.serving.processes import PATIENCE_S

INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))


class PostgresServer:
    """A private server in a temporary folder; `INSTALLED` says which. It refuses to run as root, so root lends it a user."""

    def __init__(self) -> None:
        self._bin = INSTALLED[-1].parent
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._port = free_port()
        self._numbers = count()
        if os.geteuid() == 0:
            shutil.chown(self._folder, "postgres", "postgres")
        self._run("initdb", "-D", self._data, "-U", "tests", "--auth=trust", "--no-sync", "-E", "UTF8")

    @property
    def pid(self) -> int:
        """Of the server's first process."""
        return int((Path(self._data) / "postmaster.pid").read_text().split()[0])

    @property
    def url(self) -> str:
        """Address of its database."""
        return f"postgresql://tests@127.0.0.1:{self._port}/postgres"

    def fresh(self) -> str:
        """Address of a new schema, in which its clients find nothing of others; it is made faster than a database."""
        name = f"jobs{next(self._numbers)}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"{self.url}?options=-csearch_path%3D{name}"

    def start(self) -> None:
        """Start, and wait until it answers. What survives a crash of clients and server needs no fsync."""
        options = (
            f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._folder} -c fsync=off"
        )
        log = str(self._folder / "log")
        self._run("pg_ctl", "start", "-w", "-D", self._data, "-l", log, "-o", options)

    def stop(self, mode: str = "immediate") -> None:
        """Stop: `fast` breaks connections off in good order, `immediate` is a crash."""
        self._run("pg_ctl", "stop", "-w", "-D", self._data, "-m", mode)

    async def somebody_waits(self, number: int) -> None:
        """Wait until so many connections wait for a lock."""
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        async with (
            asyncio.timeout(PATIENCE_S),
            await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection,
        ):
            while (await (await connection.execute(waiting)).fetchone() or (0,))[0] < number:
                await asyncio.sleep(0.01)

    def remove(self) -> None:
        """Stop it if it runs, and remove its files."""
        if (Path(self._data) / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._folder)

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def _run(self, program: str, *arguments: str) -> None:
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        # To a file: a server that pg_ctl starts would hold a pipe open.
        with (self._folder / "commands").open("a+") as said:
            done = subprocess.run(
                [*user, str(self._bin / program), *arguments], stdout=said, stderr=said, cwd=self._folder, timeout=120
            )
            said.seek(0)
            assert done.returncode == 0, said.read()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server."""
    if not INSTALLED:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql, as .ci/run does")
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> str:
    """Address of a new database of PostgreSQL."""
    return postgres.fresh()


@pytest.fixture(params=["sqlite", "postgresql"])
def jobs_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of a new database, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/jobs.sqlite"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def anyio_backend() -> str:
    """What runs the tests that are coroutines."""
    return "asyncio"


@pytest.fixture
async def jobs(jobs_url: str) -> AsyncIterator[SqlJobs]:
    """A store of jobs in a new database, of each kind."""
    async with opened(jobs_url) as store:
        yield store


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[SqlJobs]:
    """A store of jobs, closed at the end."""
    store = SqlJobs(url, **options)
    try:
        yield store
    finally:
        await store.close()
