"""Transactions off the event loop: in threads of their own, tried again while the database is away, never applied twice."""

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from reins_serve.errors import StoreUnavailable
from reins_serve.serving.engines import clock, insert, open_engine, reading, writing
from reins_serve.serving.migrations import upgrade
from reins_serve.serving.tables import commits

T = TypeVar("T")

WRITERS = 4
READERS = 2
PAUSES_S = (0.02, 0.05, 0.1, 0.2, 0.5)  # before the second try, the third, ...; the last one from then on

logger = logging.getLogger(__name__)


class Transactions:
    """The transactions of one process on one database.

    The tables are made, or brought up to date, before the first of them. Each is tried until it is through, or until
    `patience_s` have passed, which raises StoreUnavailable.

    Raises:
        ReinsError: the URL is not one of a database that jobs can be kept in.
    """

    def __init__(self, url: str, patience_s: float) -> None:
        self.engine = open_engine(url, WRITERS + READERS)
        # SQLite lets one write at a time: a second thread would only sleep on its lock.
        self._writers = ThreadPoolExecutor(1 if self.engine.dialect.name == "sqlite" else WRITERS, "jobs-write")
        self._readers = ThreadPoolExecutor(READERS, "jobs-read")
        self._patience_s = patience_s
        self._upgrading = threading.Lock()
        self._upgraded = False

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Look something up."""

        def once() -> T:
            with reading(self.engine) as connection:
                return work(connection)

        return await self._through(self._readers, once)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Do work in a transaction. It returns something true if it changed what a second time would change again."""
        return await self._through(self._writers, _Write(self.engine, work).once)

    async def close(self) -> None:
        """End the threads, after what they do now, and the connections."""
        for threads in (self._writers, self._readers):
            await asyncio.to_thread(threads.shutdown)
        self.engine.dispose()

    async def _through(self, threads: ThreadPoolExecutor, once: Callable[[], T]) -> T:
        def upgraded() -> T:
            self._upgrade()
            return once()

        deadline = time.monotonic() + self._patience_s
        tries = 0
        while True:
            try:
                return await asyncio.get_running_loop().run_in_executor(threads, upgraded)
            except DBAPIError as error:
                if not _may_pass(error):
                    raise
                pause = PAUSES_S[min(tries, len(PAUSES_S) - 1)]
                if time.monotonic() + pause > deadline:
                    logger.error("the database of jobs does not answer: %s", error.orig)
                    raise StoreUnavailable(
                        "The database of jobs does not answer. Accepted jobs are kept; try again soon."
                    ) from error
            tries += 1
            await asyncio.sleep(pause)

    def _upgrade(self) -> None:
        with self._upgrading:
            if not self._upgraded:
                upgrade(self.engine)
                self._upgraded = True


class _Write(Generic[T]):
    """One transaction that writes, which may be tried several times and takes effect once.

    When the connection breaks during COMMIT nobody says whether it took effect. The next try therefore begins by leaving the
    transaction's token itself: it cannot if the try before left it there.
    """

    def __init__(self, engine: Engine, work: Callable[[Connection], T]) -> None:
        self._engine = engine
        self._work = work
        self._token = uuid.uuid4().hex
        self._results: list[T] = []  # of the tries that came as far as COMMIT

    def once(self) -> T:
        with writing(self._engine) as connection:
            again = bool(self._results)
            if again and not self._leave_token(connection):
                return self._results[-1]
            result = self._work(connection)
            if result and not again:
                self._leave_token(connection)
            self._results.append(result)
        return result

    def _leave_token(self, connection: Connection) -> bool:
        """Whether it was not there. Waits for the end of a transaction that has left it and still runs."""
        statement = insert(connection, commits).values(token=self._token, committed_at=clock(connection))
        done = connection.execute(statement.on_conflict_do_nothing().execution_options(preserve_rowcount=True))
        return done.rowcount == 1


def _may_pass(error: DBAPIError) -> bool:
    """Whether the same transaction may succeed later: the database is away, busy, or chose it to break a deadlock."""
    return isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated
