"""The registry ends automatic canaries by what replicas report, once, whoever dies meanwhile."""

import time
import uuid
from collections.abc import Iterator

import pytest
import ray

from reins_serve.errors import RegistryUnavailable
from reins_serve.rollout.audit import Event
from reins_serve.rollout.client import Registry, connect
from reins_serve.rollout.registry import LOOK_S
from reins_serve.rollout.snapshot import Report
from reins_serve.rollout.storage import DirectionStore
from reins_serve.steering.outcomes import Outcome
from tests.rollout.conftest import made
from tests.serving.local import until

SAID = {"who": "ann", "why": "a test"}
AUTO = {"min_generations": 100, "max_failed_rate": 0.1}


@pytest.fixture(scope="module")
def registry(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry of its own."""
    opened = connect(str(tmp_path_factory.mktemp("registry") / "store"), uuid.uuid4().hex)
    yield opened
    ray.kill(opened._actor)


class Canary:
    """A model of its own with version 1 live, and replicas of it that say what they have counted."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.model = f"m-{uuid.uuid4().hex}"
        self.directions = {
            number: made(number, "failed" if number == 3 else "passed", model=self.model) for number in (1, 2, 3)
        }
        for direction in self.directions.values():
            registry.publish(direction, **SAID)
        registry.promote(self.model, "1", **SAID)

    def sha256(self, number: int) -> str:
        return self.directions[number].sha256

    def begin(self, number: int = 2, override: str | None = None, **limits: float) -> int:
        """Give a version a share; the epoch from which outcomes are counted."""
        said = SAID | {"override": override, "auto": AUTO | limits}
        return self.registry.canary(self.model, str(number), 0.5, **said).epoch

    def poll(
        self, replica: str, epoch: int, candidate: Outcome, number: int = 2, asked: Registry | None = None
    ) -> None:
        """One poll of a replica, with everything that it has counted so far."""
        outcomes = {self.sha256(1): Outcome(steered=50), self.sha256(number): candidate}
        report = Report(replica, epoch, self.sha256(1), self.sha256(number), time.time(), None, epoch, outcomes)

        def answered() -> bool:
            try:
                return (asked or self.registry).wait(self.model, 0, report) is not None
            except RegistryUnavailable:  # as a replica does, try again
                return False

        until(answered)

    def ended(self) -> Event:
        """The move that ended the canary, once there is one."""
        until(lambda: self.registry.history(self.model)[-1].by == "auto")
        until(lambda: self.registry.status(self.model)["candidate"] is None)  # it is on storage first
        return self.registry.history(self.model)[-1]

    def goes_on(self) -> None:
        """The canary has not ended after the registry has looked at it twice."""
        time.sleep(2.5 * LOOK_S)
        status = self.registry.status(self.model)
        assert status["candidate"] is not None
        assert self.registry.history(self.model)[-1].action == "canary"


@pytest.fixture
def canary(registry: Registry) -> Canary:
    return Canary(registry)


def test_a_candidate_that_keeps_its_limits_on_all_replicas_together_is_promoted(canary: Canary) -> None:
    epoch = canary.begin()
    canary.poll("one", epoch, Outcome(steered=60))
    canary.poll("two", epoch, Outcome(steered=39))
    canary.goes_on()
    canary.poll("two", epoch, Outcome(steered=41))
    event = canary.ended()
    assert (event.action, event.after) == ("promote", canary.sha256(2))
    assert "every limit is kept after 101 generations of the candidate (at least 100): 0 of 101 failed" in event.why
    live = canary.registry.wait(canary.model, 0).live
    assert live is not None and live.number == 2


def test_a_candidate_that_breaks_one_is_withdrawn_at_once(canary: Canary) -> None:
    epoch = canary.begin()
    canary.poll("one", epoch, Outcome(steered=10, failed=10))
    event = canary.ended()
    assert (event.action, event.before, event.after) == ("withdraw", canary.sha256(2), None)
    assert "a limit is broken after 20 generations of the candidate: 10 of 20 failed" in event.why
    status = canary.registry.status(canary.model)
    assert (status["live"]["number"], status["candidate"], status["auto"]) == (1, None, None)


def test_one_that_shows_nothing_in_time_is_withdrawn(canary: Canary) -> None:
    canary.begin(deadline_s=1)
    canary.registry.wait(canary.model, 0)
    event = canary.ended()
    assert event.action == "withdraw"
    assert "not shown to keep its limits in time, after 0 generations" in event.why


def test_the_status_has_the_counts_by_version_and_the_limits(canary: Canary) -> None:
    epoch = canary.begin(deadline_s=3600)
    canary.poll(
        "one", epoch, Outcome(steered=3, failed=1, scored=2, score_sum=1.0, score_squares=1.0, judged=2, unsafe=1)
    )
    canary.poll("two", epoch, Outcome(steered=1))
    status = canary.registry.status(canary.model)
    assert status["candidate"]["outcomes"] == {"steered": 4, "failed": 1, "score": 0.5, "judged": 2, "unsafe": 1}
    assert status["live"]["outcomes"]["steered"] == 100
    assert status["auto"]["limits"]["max_failed_rate"] == 0.1


def test_what_was_counted_before_the_canary_or_elsewhere_counts_for_nothing(canary: Canary) -> None:
    epoch = canary.begin()
    canary.poll("one", epoch - 1, Outcome(steered=1000))
    canary.goes_on()


def test_the_counts_of_a_replica_that_died_remain_and_those_of_its_successor_are_added(canary: Canary) -> None:
    epoch = canary.begin()
    canary.poll("dead", epoch, Outcome(steered=70))
    canary.poll("successor", epoch, Outcome(steered=40))
    assert "after 110 generations" in canary.ended().why


def test_a_registry_that_is_killed_has_the_counts_again_from_the_replicas_that_live(canary: Canary) -> None:
    epoch = canary.begin()
    canary.poll("one", epoch, Outcome(steered=90))
    ray.kill(canary.registry._actor, no_restart=False)
    canary.poll("one", epoch, Outcome(steered=95))
    canary.goes_on()
    canary.poll("one", epoch, Outcome(steered=100))
    assert "after 100 generations" in canary.ended().why


def test_two_registries_on_one_storage_decide_once(canary: Canary) -> None:
    other = connect(canary.registry.url(), uuid.uuid4().hex)
    try:
        other.wait(canary.model, 0)
        epoch = canary.begin()
        until(lambda: other.wait(canary.model, 0).epoch == epoch)
        for _ in range(2):
            canary.poll("one", epoch, Outcome(steered=200))
            canary.poll("two", epoch, Outcome(steered=300), asked=other)
        canary.ended()
        until(lambda: other.wait(canary.model, 0).auto is None)
        time.sleep(2 * LOOK_S)
    finally:
        ray.kill(other._actor)
    assert [event.action for event in canary.registry.history(canary.model) if event.by == "auto"] == ["promote"]


def test_a_candidate_that_failed_a_gate_is_promoted_by_the_override_of_its_canary_only(canary: Canary) -> None:
    epoch = canary.begin(3, override="for measuring")
    canary.poll("one", epoch, Outcome(steered=200), number=3)
    event = canary.ended()
    assert (event.action, event.override) == ("promote", "for measuring")


def test_one_whose_override_is_gone_is_withdrawn_although_it_kept_its_limits(canary: Canary) -> None:
    epoch = canary.begin(3, override="for measuring")
    store = DirectionStore(canary.registry.url())
    found = store._find(canary.model)
    assert found.pointer is not None and found.pointer.auto is not None
    without = found.pointer.auto.model_copy(update={"override": None})
    store._pointers.move(canary.model, found, "collect", "eve", "by hand", auto=without.model_dump())
    canary.poll("one", epoch, Outcome(steered=200), number=3)
    event = canary.ended()
    assert event.action == "withdraw"
    assert "it may not be promoted" in event.why and "failed utility" in event.why
