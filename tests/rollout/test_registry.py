"""The registry on a Ray cluster: storage is its truth, a poll is answered by a change, and a crash loses nothing."""

import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from reins_serve.errors import ConflictError, DirectionError, ReinsError
from reins_serve.rollout.client import Registry, connect, find
from reins_serve.rollout.registry import LOOK_S
from reins_serve.rollout.snapshot import Report
from reins_serve.rollout.storage import DirectionStore
from tests.rollout.conftest import large, made
from tests.serving.local import until

SAID = {"who": "ann", "why": "a test"}


@pytest.fixture(scope="module")
def registry(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry of its own."""
    opened = connect(str(tmp_path_factory.mktemp("registry") / "store"), uuid.uuid4().hex)
    yield opened
    ray.kill(opened._actor)


@pytest.fixture
def model(registry: Registry) -> str:
    """A model of its own, with three versions of which the first is live."""
    name = f"m-{uuid.uuid4().hex}"
    for seed in range(3):
        registry.publish(made(seed, model=name), **SAID)
    registry.promote(name, "1", **SAID)
    return name


def test_a_poll_is_answered_by_a_change_and_says_who_has_what(registry: Registry, model: str) -> None:
    first = registry.wait(model, 0)
    assert first.live is not None and first.live.direction(model).sha256 == made(0, model=model).sha256
    answers: list = []
    report = Report("one", first.generation, first.live.sha256, None, time.time())
    waiting = threading.Thread(target=lambda: answers.append(registry.wait(model, first.generation, report)))
    waiting.start()
    until(lambda: registry.status(model)["replicas"])
    assert not answers
    registry.promote(model, "2", **SAID)
    waiting.join(20)
    assert (answers[0].generation, answers[0].live.number) == (first.generation + 1, 2)
    (replica,) = registry.status(model)["replicas"]
    assert (replica["replica"], replica["live"]) == ("one", made(0, model=model).sha256)


def test_a_poll_is_answered_in_time_when_nothing_changes(registry: Registry, model: str) -> None:
    first = registry.wait(model, 0)
    assert registry.wait(model, first.generation, hold_s=0.1).generation == first.generation


def test_canary_withdraw_and_rollback_are_shown(registry: Registry, model: str) -> None:
    registry.canary(model, "2", 0.25, **SAID)
    shown = registry.wait(model, 0)
    assert shown.candidate is not None and (shown.candidate.number, shown.fraction) == (2, 0.25)
    registry.withdraw(model, **SAID)
    assert registry.wait(model, 0).candidate is None
    registry.promote(model, "3", **SAID)
    registry.rollback(model, **SAID)
    shown = registry.wait(model, 0)
    assert shown.live is not None and shown.live.number == 1
    assert [event.action for event in registry.history(model)][-2:] == ["promote", "rollback"]


def test_errors_are_those_of_the_store(registry: Registry, model: str) -> None:
    with pytest.raises(ConflictError) as conflict:
        registry.promote(model, "2", generation=7, **SAID)
    assert conflict.value.code == "conflict"
    with pytest.raises(DirectionError) as refused:
        registry.promote(model, registry.publish(made(5, "failed", model=model), **SAID).sha256, **SAID)
    assert refused.value.code == "gates_failed"
    for bad in (b"\x80\x04pickle", made(0, model=model).data[:-4]):
        with pytest.raises(DirectionError):
            registry.publish(bad, **SAID)
    assert registry.wait(model, 0).generation == 1


def test_a_move_that_is_sent_twice_is_made_once(registry: Registry, model: str) -> None:
    registry.promote(model, "2", **SAID)
    registry.promote(model, "3", **SAID)
    generation = registry.wait(model, 0).generation
    once = registry.rollback(model, generation=generation, **SAID)
    assert registry.rollback(model, generation=generation, **SAID) == once
    with pytest.raises(ConflictError):
        registry.rollback(model, generation=generation, who="bob", why="another thing")
    assert once.live == made(1, model=model).sha256
    assert registry.publish(made(0, model=model), **SAID).number == 1


def test_what_is_large_goes_through_the_object_store(registry: Registry, model: str) -> None:
    registry.promote(model, registry.publish(large(model), **SAID).sha256, **SAID)
    live = registry.wait(model, 0).live
    assert live is not None and isinstance(live.data, ray.ObjectRef)
    assert live.direction(model).sha256 == large(model).sha256


def test_a_registry_that_is_killed_comes_back_with_its_state(registry: Registry, model: str) -> None:
    before = registry.wait(model, 0)
    ray.kill(registry._actor, no_restart=False)
    registry.promote(model, "2", **SAID)
    after = registry.wait(model, 0)
    assert after.generation == before.generation + 1
    assert after.live is not None and after.live.number == 2


def test_a_pointer_that_another_cluster_moves_is_noticed(registry: Registry, model: str) -> None:
    known = registry.wait(model, 0).generation
    DirectionStore(registry.url()).promote(model, "3", who="bob", why="from elsewhere")
    live = registry.wait(model, known, hold_s=10 * LOOK_S).live
    assert live is not None and live.number == 3


def test_a_replica_that_has_read_newer_storage_is_never_sent_back(registry: Registry, model: str) -> None:
    first = registry.wait(model, 0)
    moved = DirectionStore(registry.url()).promote(model, "3", who="bob", why="while the registry hangs")
    shown = registry.wait(model, moved.generation, hold_s=0.1)
    assert (shown.generation, shown.live.number) == (first.generation + 1, 3)  # type: ignore[union-attr]


def test_a_damaged_pointer_leaves_what_is_live(registry: Registry, model: str) -> None:
    first = registry.wait(model, 0)
    pointer = Path(registry.url(), model, "pointer.json")
    whole = pointer.read_bytes()
    pointer.write_bytes(b"{")
    until(lambda: registry.status(model)["error"])
    assert registry.wait(model, 0) == first
    pointer.write_bytes(whole)
    until(lambda: registry.status(model)["error"] is None)


def test_there_is_one_registry_of_one_store(cluster: None, tmp_path: Path) -> None:
    namespace = uuid.uuid4().hex
    assert find(namespace) is None
    with pytest.raises(ReinsError, match="neither a folder nor a URL"):
        connect("nowhere://x", namespace)
    assert find(namespace) is None
    one = connect(str(tmp_path / "one"), namespace)
    try:
        assert connect(str(tmp_path / "one"), namespace)._actor == one._actor
        with pytest.raises(ReinsError, match="keeps the store"):
            connect(str(tmp_path / "two"), namespace)
    finally:
        ray.kill(one._actor)
