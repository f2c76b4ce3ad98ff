"""1,000 mutated direction files, at publish and at the replica: what is not valid is refused in words, and breaks nothing."""

import hashlib
import json
import os
import tracemalloc
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from reins_serve.errors import DirectionError, ReinsError
from reins_serve.plugin import SteeringMiddleware, attach
from reins_serve.rollout.client import Registry, connect
from reins_serve.rollout.snapshot import Staged
from reins_serve.rollout.storage import DirectionStore
from reins_serve.steering.direction import MAX_BYTES, Direction, Window
from tests import tiny
from tests.rollout.conftest import made
from tests.rollout.mutations import Mutator
from tests.rollout.reader import read

SAID = {"who": "ann", "why": "a test"}
FILES = 1000
SHORTEST, LONGEST = 20, 2000  # characters of a message that a person can use


@pytest.fixture
def mutator(tmp_path: Path) -> Iterator[Mutator]:
    """Mutations of a direction of the tiny model, with every field; none of its pickles may be loaded."""
    meta = made(0).meta
    fit = meta.fit.model_copy(update={"captured": Window(start=0.25, end=0.5), "auc": 0.9})
    valid = Direction.create(meta.model_copy(update={"fit": fit, "parent": made(1).sha256}), made(0).vectors)
    yield Mutator(valid.data, 6, tmp_path / "loaded")
    assert not (tmp_path / "loaded").exists()


def steering() -> SteeringMiddleware:
    return attach(tiny.pipeline(), model="tiny", directions={"live": made(9)})


def check_refusal(error: ReinsError) -> None:
    assert SHORTEST < len(str(error)) < LONGEST, str(error)[:LONGEST]
    assert "Traceback" not in str(error)


def check_accepted(data: bytes) -> None:
    """It must be valid, for the tiny model, and understood as the other reader understands it."""
    found, direction = read(data), Direction.parse(data)
    assert found is not None, data[:LONGEST]
    meta, body = found
    assert (meta["model"], meta["base"]) == ("tiny", made(0).meta.base.model_dump())
    whole: dict[str, float] = {"start": 0.0, "end": 0.5}
    fit = {"auc": None, "captured": None, "sources": []} | meta["fit"]
    fit["captured"] = fit["captured"] and whole | fit["captured"]
    parts = {"fit": fit, "window": whole | meta["window"]}
    assert json.loads(direction.meta.model_dump_json()) == {"parent": None, "margin": 0.0, "guard": None} | meta | parts
    assert direction.vectors.numpy().tobytes() == body


def test_of_a_thousand_files_only_valid_ones_are_published(mutator: Mutator, local: DirectionStore) -> None:
    local.publish(made(9), **SAID)
    accepted: list[str] = []
    for number in range(FILES):
        data = mutator.file(number)
        try:
            version = local.publish(data, model="tiny", **SAID)
        except ReinsError as error:
            check_refusal(error)
            continue
        check_accepted(data)
        accepted.append(version.sha256)
    assert FILES / 100 < len(set(accepted)) < FILES / 5  # the fuzzer reaches both
    assert {version.sha256 for version in local.versions("tiny")} == {made(9).sha256, *accepted}


def test_of_a_thousand_files_only_valid_ones_are_taken_up_by_a_replica(mutator: Mutator) -> None:
    replica = steering()
    before, taken = dict(replica.directions), 0
    for number in range(FILES):
        data = mutator.file(number)
        staged = Staged(hashlib.sha256(data).hexdigest(), number, data)
        try:
            replica.swap({"live": staged.direction("tiny")})
        except ReinsError as error:
            check_refusal(error)
            assert replica.directions == before
            continue
        check_accepted(data)
        before, taken = dict(replica.directions), taken + 1
    assert FILES / 100 < taken < FILES / 5


def test_the_registrys_process_outlives_them_without_growing(cluster: None, mutator: Mutator, tmp_path: Path) -> None:
    registry = connect(str(tmp_path / "store"), uuid.uuid4().hex)
    try:
        process = registry_process(registry)
        registry.publish(made(9), **SAID)
        before, published = process.memory_info().rss, {made(9).sha256}
        bombs = [bomb(MAX_BYTES), b"\x00" * (MAX_BYTES + 1)]
        for data in [*bombs, *map(mutator.file, range(8 * len(mutator.kinds)))]:
            try:
                published.add(registry.publish(data, model="tiny", **SAID).sha256)
            except ReinsError as error:
                check_refusal(error)
        assert registry_process(registry).pid == process.pid
        assert process.memory_info().rss - before < 4 * MAX_BYTES
        assert {event.after for event in registry.history("tiny")} == published
    finally:
        ray.kill(registry._actor)


def registry_process(registry: Registry) -> psutil.Process:
    return psutil.Process(ray.get(registry._actor.__ray_call__.remote(lambda actor: os.getpid())))


def bomb(size: int) -> bytes:
    """A header of a million small things: as JSON it takes twenty times its bytes."""
    header = b'{"__metadata__":[' + b"[]," * ((size - 100) // 3) + b"[]]}"
    return len(header).to_bytes(8, "little") + header


def test_a_large_header_is_refused_before_it_is_read() -> None:
    data = bomb(MAX_BYTES)
    tracemalloc.start()
    try:
        with pytest.raises(DirectionError, match="header"):
            Direction.parse(data)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(data)
    finally:
        tracemalloc.stop()
