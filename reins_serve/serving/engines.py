"""Connections to the two databases that jobs may be kept in, and what differs between them.

SQLite: one file, many readers, one writer at a time; a write takes the lock as it begins, so nothing that it has read changes
under it. PostgreSQL: transactions at READ COMMITTED, in which a statement sees what was committed before it began; whatever
must not run side by side takes an advisory lock first.
"""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, extract, func, make_url, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError

from reins_serve.errors import ReinsError

WRITES = "reins_writes"  # execution option of a connection whose transactions write
BUSY_TIMEOUT_MS = 2000
CONNECT_TIMEOUT_S = 3
# A machine that is gone says nothing any more: how long a gateway waits for the server's, and the server, with the locks that
# it keeps from others, for a gateway's.
DEAD_SERVER_MS = 10_000
DEAD_GATEWAY_MS = 30_000


def open_engine(url: str, connections: int) -> Engine:
    """An engine that keeps at most so many connections; nothing is connected yet.

    Raises:
        ReinsError: not the URL of a database that jobs can be kept in; says which there are.
    """
    checked = _checked(url)
    # Parameters stay out of messages and logs: prompts are among them.
    options: dict[str, Any] = {"pool_size": connections, "max_overflow": 0, "hide_parameters": True}
    if checked.get_backend_name() == "sqlite":
        _make_file(Path(str(checked.database)))
        engine = create_engine(checked, **options)
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        engine = create_engine(
            checked,
            isolation_level="READ COMMITTED",
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT_S,
                "tcp_user_timeout": DEAD_SERVER_MS,
                "fallback_application_name": "reins-serve",
            },
            **options,
        )
    except ModuleNotFoundError:
        raise ReinsError(
            "PostgreSQL needs the driver psycopg: pip install 'reins-serve[postgres]'.", param="jobs"
        ) from None
    event.listen(engine, "connect", _set_up_postgres)
    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that changes something; committed at the end, rolled back on an error."""
    with engine.connect().execution_options(**{WRITES: True}) as connection, connection.begin():
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection to look something up with. On PostgreSQL each statement stands for itself."""
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execution_options(isolation_level="AUTOCOMMIT")
        yield connection


def lock(connection: Connection, name: str) -> None:
    """Let no other transaction that takes the lock of this name run beside this one. On SQLite none that writes does anyway."""
    if connection.dialect.name == "postgresql":
        number = int.from_bytes(hashlib.sha256(f"reins-serve {name}".encode()).digest()[:8], signed=True)
        connection.execute(select(func.pg_advisory_xact_lock(number)))


def clock(connection: Connection) -> float:
    """Unix time by the one clock that all gateways of a database share, whatever theirs say."""
    if connection.dialect.name == "postgresql":
        return float(connection.scalar(select(extract("epoch", func.clock_timestamp()))) or 0)
    return time.time()


def insert(connection: Connection, table: Table) -> Any:
    """An INSERT that knows `on_conflict_do_nothing` and `on_conflict_do_update`, which both databases do alike."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


def _checked(url: str) -> URL:
    try:
        checked = make_url(url)
    except ArgumentError:
        checked = URL.create("unknown")
    if checked.drivername in ("postgresql", "postgresql+psycopg"):
        return checked.set(drivername="postgresql+psycopg")
    if checked.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise ReinsError(
            "Jobs are kept in SQLite or PostgreSQL: give sqlite:///path/to/jobs.sqlite or postgresql://user@host/database.",
            param="jobs",
        )
    if not checked.database or ":memory:" in checked.database or "memory" in checked.query.values():
        raise ReinsError(
            "A database in memory is another one for each connection, and ends with the process: name a file, such as "
            "sqlite:///jobs.sqlite.",
            param="jobs",
        )
    return checked


def _make_file(path: Path) -> None:
    """Make the file if it is not there, for nobody else to read: prompts will be in it."""
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        raise ReinsError(
            f"The file of the jobs' database cannot be made: {error.strerror}. Name one in a folder that this user may write to.",
            param="jobs",
        ) from None


def _set_up_sqlite(connection: Any, record: object) -> None:
    # The driver must begin no transaction of its own: it would begin them late, and without the lock.
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _set_up_postgres(connection: Any, record: object) -> None:
    connection.execute(f"SET idle_in_transaction_session_timeout = {DEAD_GATEWAY_MS}")
    connection.execute(f"SET lock_timeout = {DEAD_GATEWAY_MS}")
    connection.commit()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
