"""Waiting requests of equal key join one call: a thread takes the oldest, gathers its like, and runs them together.

Rules: the oldest waiting ticket decides the key, so none starves; it waits at most `max_wait_s` from its arrival; a ticket
that is cancelled while it waits is dropped; a running batch is told to stop only when every one of its tickets is cancelled.
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Work = TypeVar("Work")

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Ticket(Generic[Work]):
    """One piece of work that waits or runs; tickets of equal `key` may share a batch."""

    work: Work
    key: Hashable
    arrived: float = field(default_factory=time.monotonic)
    cancelled: bool = False


@dataclass(frozen=True, eq=False)
class Batch(Generic[Work]):
    """Tickets that run together."""

    tickets: tuple[Ticket[Work], ...]

    def is_set(self) -> bool:
        """Whether nobody needs it any more, as a generation's `cancel` asks at every step."""
        return all(ticket.cancelled for ticket in self.tickets)


class Batcher(Generic[Work]):
    """Runs batches one after the other in a thread of its own.

    Args:
        run: Called with each batch in that thread; an exception is logged and ends only that batch.
        max_size: Most tickets of a batch.
        max_wait_s: How long the oldest ticket waits for others, in seconds from its arrival.
    """

    def __init__(self, run: Callable[[Batch[Work]], None], max_size: int, max_wait_s: float) -> None:
        self._run = run
        self._max_size = max_size
        self._max_wait_s = max_wait_s
        self._waiting: list[Ticket[Work]] = []
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="reins-batcher", daemon=True)
        self._thread.start()

    def submit(self, ticket: Ticket[Work]) -> None:
        """Let a ticket wait for its batch."""
        with self._changed:
            self._waiting.append(ticket)
            self._changed.notify_all()

    def cancel(self, ticket: Ticket[Work]) -> None:
        """Drop a ticket: at once while it waits; its batch stops if nobody else needs it. Harmless when it is over."""
        with self._changed:
            ticket.cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """Tickets that wait for a batch."""
        with self._changed:
            return len(self._waiting)

    def close(self) -> None:
        """Stop after the running batch, and wait for it. Tickets that still wait are dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _loop(self) -> None:
        while (batch := self._next()) is not None:
            try:
                self._run(batch)
            except Exception:
                logger.exception("a batch of %d failed", len(batch.tickets))

    def _next(self) -> Batch[Work] | None:
        """Wait for the next batch; None once closed."""
        with self._changed:
            while not self._closed:
                if not self._waiting:
                    self._changed.wait()
                    continue
                oldest = self._waiting[0]
                alike = [ticket for ticket in self._waiting if ticket.key == oldest.key][: self._max_size]
                patience = oldest.arrived + self._max_wait_s - time.monotonic()
                if len(alike) < self._max_size and patience > 0:
                    self._changed.wait(patience)
                    continue
                self._waiting = [ticket for ticket in self._waiting if ticket not in alike]
                return Batch(tuple(alike))
            return None
