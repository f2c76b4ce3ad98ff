"""What joins a batch, in which order, and what cancelling does."""

import threading
from collections.abc import Callable, Iterator

import pytest

from reins_serve.serving.batching import Batch, Batcher, Ticket
from tests.serving.local import until

LONG_S = 1000.0


class Gate:
    """Runs batches one by one, each only when it is let through; keeps what was run."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.last: Batch[str] | None = None
        self._permits = threading.Semaphore(0)

    def run(self, batch: Batch[str]) -> None:
        self.last = batch
        self.batches.append([ticket.work for ticket in batch.tickets])
        self._permits.acquire()

    def open(self, count: int = 1) -> None:
        self._permits.release(count)

    def wait(self, count: int) -> list[list[str]]:
        until(lambda: len(self.batches) >= count)
        return self.batches


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open(100)


@pytest.fixture
def batcher(gate: Gate) -> Iterator[Callable[..., Batcher[str]]]:
    made: list[Batcher[str]] = []

    def make(max_size: int = 2, max_wait_s: float = 0.0) -> Batcher[str]:
        made.append(Batcher(gate.run, max_size, max_wait_s))
        return made[-1]

    yield make
    gate.open(100)
    for one in made:
        one.close()


def submit(batcher: Batcher[str], *names: str) -> list[Ticket[str]]:
    """Submit tickets whose key is the first letter of their name."""
    tickets = [Ticket(name, name[0]) for name in names]
    for ticket in tickets:
        batcher.submit(ticket)
    return tickets


def test_equal_keys_join_up_to_the_size_and_the_oldest_goes_first(
    gate: Gate, batcher: Callable[..., Batcher[str]]
) -> None:
    made = batcher(max_size=2)
    submit(made, "x")
    gate.wait(1)
    submit(made, "a1", "b1", "a2", "a3", "b2")
    gate.open(4)
    assert gate.wait(4) == [["x"], ["a1", "a2"], ["b1", "b2"], ["a3"]]


def test_the_oldest_ticket_waits_for_company(gate: Gate, batcher: Callable[..., Batcher[str]]) -> None:
    made = batcher(max_size=3, max_wait_s=LONG_S)
    submit(made, "a1", "a2", "b1")
    assert gate.batches == []
    submit(made, "a3")
    assert gate.wait(1) == [["a1", "a2", "a3"]]


def test_waiting_for_company_ends(gate: Gate, batcher: Callable[..., Batcher[str]]) -> None:
    made = batcher(max_size=3, max_wait_s=0.01)
    submit(made, "a1")
    assert gate.wait(1) == [["a1"]]


def test_a_cancelled_ticket_that_waits_never_runs(gate: Gate, batcher: Callable[..., Batcher[str]]) -> None:
    made = batcher(max_size=1)
    submit(made, "x")
    gate.wait(1)
    first, _ = submit(made, "a1", "a2")
    made.cancel(first)
    gate.open()
    assert gate.wait(2) == [["x"], ["a2"]]


def test_a_batch_stops_only_when_all_its_tickets_are_cancelled(
    gate: Gate, batcher: Callable[..., Batcher[str]]
) -> None:
    made = batcher(max_size=2, max_wait_s=LONG_S)
    first, second = submit(made, "a1", "a2")
    gate.wait(1)
    assert gate.last is not None
    made.cancel(first)
    assert not gate.last.is_set()
    made.cancel(second)
    assert gate.last.is_set()


def test_an_exception_ends_only_its_own_batch(gate: Gate) -> None:
    def run(batch: Batch[str]) -> None:
        if batch.tickets[0].work == "bad":
            raise RuntimeError("this batch fails")
        gate.run(batch)

    made: Batcher[str] = Batcher(run, 1, 0.0)
    submit(made, "bad", "good")
    assert gate.wait(1) == [["good"]]
    gate.open()
    made.close()
