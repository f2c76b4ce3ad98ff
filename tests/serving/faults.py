"""Faults in this process's transactions, at the moment in which they would be committed."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError

from tests.serving.processes import PATIENCE_S


@contextmanager
def at_commit(do: Callable[[Connection], None], skip: int = 0) -> Iterator[list[Connection]]:
    """Do something when a transaction of this process would be committed, once."""
    left, seen = [skip], list[Connection]()
    once = threading.Lock()

    def listener(connection: Connection) -> None:
        with once:
            left[0] -= 1
            if left[0] != -1:
                return
        seen.append(connection)
        do(connection)

    event.listen(Engine, "commit", listener)
    try:
        yield seen
    finally:
        event.remove(Engine, "commit", listener)


class Held:
    """A transaction that waits with its COMMIT until `go_on` is set."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self._reached = threading.Event()

    async def reached(self) -> None:
        """Wait until it is there."""
        assert await asyncio.to_thread(self._reached.wait, PATIENCE_S)

    def wait(self, connection: Connection) -> None:
        self._reached.set()
        assert self.go_on.wait(PATIENCE_S)


@contextmanager
def held_at_commit() -> Iterator[Held]:
    """Hold the next transaction at its COMMIT."""
    held = Held()
    try:
        with at_commit(held.wait):
            yield held
    finally:
        held.go_on.set()


def break_off(connection: Connection) -> None:
    """The connection breaks before COMMIT has arrived."""
    driver = connection.connection.dbapi_connection
    assert driver is not None
    driver.rollback()
    driver.close()
    raise OperationalError("COMMIT", {}, Exception("the connection was broken"))


def lose_answer(connection: Connection) -> None:
    """The connection breaks when COMMIT has taken effect, before its answer has arrived."""
    driver = connection.connection.dbapi_connection
    assert driver is not None
    driver.commit()
    driver.close()
    raise OperationalError("COMMIT", {}, Exception("the connection was broken"))
