"""Directions roll out to running replicas: somebody's own deployment, which knows no more of it than `reins://`.

Then the registry, a replica and the publishing job are killed under load: no version, pointer or event is lost, and no generation
is un-steered, torn or of two versions.
"""

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve
from ray.exceptions import RayActorError

from reins_serve.errors import SteeringUnavailable
from reins_serve.plugin import attach
from reins_serve.rollout.client import Registry, connect, find
from reins_serve.rollout.storage import DirectionStore
from reins_serve.steering.policy import takes_candidate
from tests import tiny
from tests.rollout.conftest import large, made
from tests.rollout.load import Clip, Load
from tests.serving.local import until

SAID = {"who": "ann", "why": "a test"}
REPLICAS = 2
VERSIONS = {1: made(0), 2: made(1), 3: large()}
DIGEST = {number: direction.sha256 for number, direction in VERSIONS.items()}
PUBLISH = """
import os, sys, ray
from reins_serve.rollout.client import connect
ray.init(address=sys.argv[1], log_to_driver=False)
registry = connect(sys.argv[2], sys.argv[3])
version = registry.publish(open(sys.argv[4], "rb").read(), who="job", why="fitted")
registry.promote("tiny", version.sha256, who="job", why="fitted")
os._exit(0)
"""


@serve.deployment(num_replicas=REPLICAS, max_ongoing_requests=1, ray_actor_options={"num_cpus": 0})
class Video:
    """A deployment of somebody else's."""

    def __init__(self, directions: str, patience_s: float = 60.0) -> None:
        import reins_serve
        from reins_serve.rollout import client
        from tests import tiny

        client.ANSWER_S = patience_s
        self.steering = reins_serve.attach(tiny.pipeline(), model="tiny", directions=directions)

    def __call__(self, key: str, stop: str = "") -> tuple[str | None, bool, bool]:
        """A clip; with `stop`, it comes no further than its first step and leaves the process's id in that file."""
        from tests.rollout.load import clip

        def on_step() -> None:
            if stop:
                Path(stop).write_text(str(os.getpid()))
                time.sleep(600)

        return tuple(clip(self.steering, key, on_step))


def loaded(handle: Any) -> Load:
    """As many clients as there are replicas."""
    return Load([lambda key: Clip(*handle.remote(key).result())] * REPLICAS)


@pytest.fixture(scope="module")
def deployed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Registry, Any, str]]:
    """A registry, a handle to two replicas that follow it, and its namespace."""
    namespace, url = uuid.uuid4().hex, str(tmp_path_factory.mktemp("rollout") / "store")
    registry = connect(url, namespace)
    for direction in VERSIONS.values():
        registry.publish(direction, **SAID)
    registry.promote("tiny", "1", **SAID)
    app = Video.bind(f"reins://{url}?namespace={namespace}")
    handle = serve.run(app, name="own", route_prefix=None)
    yield registry, handle, namespace
    serve.delete("own")
    found = find(namespace)
    if found is not None:
        ray.kill(found._actor)


def everywhere(registry: Registry, number: int, replicas: int = REPLICAS) -> list[dict]:
    """Wait until all replicas say that they serve a version; those that have not asked since the last move are dead."""

    def reports() -> list[dict] | None:
        moved = registry.find("tiny").updated.timestamp()  # type: ignore[union-attr]
        seen = [r for r in registry.status("tiny")["replicas"] if r["asked"] >= moved and r["live"] == DIGEST[number]]
        return seen if len(seen) == replicas else None

    return until(reports)


def check(registry: Registry) -> None:
    """No version and no event is missing."""
    store = DirectionStore(registry.url())
    events = registry.history("tiny")
    assert [e.generation for e in events if e.generation] == list(range(1, store.read("tiny").generation + 1))
    assert [e.number for e in events if e.number] == [version.number for version in store.versions("tiny")]
    assert all(store.load("tiny", version.sha256) for version in store.versions("tiny"))


def process_of(registry: Registry) -> int:
    """The id of the registry's process."""
    return ray.get(registry._actor.__ray_call__.remote(lambda actor: os.getpid()))


@pytest.fixture
def fresh(deployed: tuple[Registry, Any, str]) -> tuple[Registry, Any]:
    """The registry and the handle, with version 1 live on all replicas."""
    _, handle, namespace = deployed
    registry = until(lambda: find(namespace))
    registry.promote("tiny", "1", **SAID)
    everywhere(registry, 1)
    return registry, handle


def test_replicas_swap_and_roll_back_under_load_without_a_failed_request(fresh: tuple[Registry, Any]) -> None:
    registry, handle = fresh
    with loaded(handle) as load:
        load.more()
        for moved in range(5):
            if moved % 2:
                registry.rollback("tiny", **SAID)
            else:
                registry.promote("tiny", "2", **SAID)
            number = 1 if moved % 2 else 2
            swapped = max(report["since"] for report in everywhere(registry, number))
            load.more()
            assert load.since(swapped) == {DIGEST[number]}
            registry.promote("tiny", str(number), **SAID)
    assert not load.errors


def test_a_canary_gets_its_share_by_key_alone(fresh: tuple[Registry, Any]) -> None:
    registry, handle = fresh
    registry.canary("tiny", "2", 0.3, **SAID)
    until(lambda: all(r["candidate"] == DIGEST[2] for r in registry.status("tiny")["replicas"]))
    keys = [f"job-{number}" for number in range(40)]
    answers = [handle.remote(key) for key in keys]
    for key, answer in zip(keys, answers, strict=True):
        assert answer.result()[0] == DIGEST[2 if takes_candidate(key, 0.3) else 1]


def test_a_pointer_moved_behind_its_back_reaches_the_replicas(fresh: tuple[Registry, Any]) -> None:
    registry, _ = fresh
    DirectionStore(registry.url()).promote("tiny", "2", who="bob", why="from elsewhere")
    everywhere(registry, 2)


@pytest.mark.slow
def test_a_registry_killed_while_it_moves_the_pointer_again_and_again_loses_nothing(
    fresh: tuple[Registry, Any],
) -> None:
    registry, handle = fresh
    moves: list[tuple[int, str]] = []
    killed = 0

    def move() -> None:
        number = 0
        while killed < 3:
            number += 1
            why = f"move {number}"
            moves.append((registry.promote("tiny", "321"[number % 3], who="eve", why=why).generation, why))

    with loaded(handle) as load, ThreadPoolExecutor(1) as pool:
        moving = pool.submit(move)
        while killed < 3:
            process, goal = process_of(registry), len(moves) + random.randint(2, 9)
            until(lambda goal=goal: len(moves) >= goal)
            os.kill(process, signal.SIGKILL)
            killed += 1
        moving.result()
        registry.promote("tiny", "2", **SAID)
        swapped = max(report["since"] for report in everywhere(registry, 2))
        load.more()
    assert not load.errors
    assert load.since(swapped) == {DIGEST[2]}
    told = [(event.generation, event.why) for event in registry.history("tiny") if event.by == "eve"]
    assert told == moves
    check(registry)


def test_a_generation_cut_by_a_kill_is_an_error_that_may_be_tried_again(
    fresh: tuple[Registry, Any], tmp_path: Path
) -> None:
    registry, handle = fresh
    with loaded(handle) as load:
        cut = handle.remote("key", str(tmp_path / "process"))
        process = until(lambda: (tmp_path / "process").exists() and (tmp_path / "process").read_text())
        os.kill(int(process), signal.SIGKILL)
        with pytest.raises(RayActorError):
            cut.result()
        assert Clip(*handle.remote("key").result()) == (DIGEST[1], True, True)
        registry.promote("tiny", "2", **SAID)
        swapped = max(report["since"] for report in everywhere(registry, 2))  # its successor among them
        load.more()
    assert all(isinstance(error, RayActorError) for error in load.errors)
    assert load.since(swapped) == {DIGEST[2]}


def test_a_publishing_job_may_exit_at_once(fresh: tuple[Registry, Any], deployed: Any, tmp_path: Path) -> None:
    registry, handle = fresh
    (tmp_path / "file").write_bytes(VERSIONS[3].data)
    address = ray.get_runtime_context().gcs_address
    with loaded(handle) as load:
        arguments = [address, registry.url(), deployed[2], str(tmp_path / "file")]
        subprocess.run([sys.executable, "-c", PUBLISH, *arguments], check=True, timeout=200)
        swapped = max(report["since"] for report in everywhere(registry, 3))
        load.more()
    assert not load.errors
    assert load.since(swapped) == {DIGEST[3]}
    assert registry.history("tiny")[-1].by == "job"


@pytest.mark.parametrize("state", ["restarting", "gone", "hung"])
def test_a_replica_that_starts_without_the_registry_serves_from_storage_and_follows_later(
    fresh: tuple[Registry, Any], deployed: Any, state: str
) -> None:
    (registry, handle), namespace = fresh, deployed[2]
    url = registry.url()
    with loaded(handle) as load:
        process = process_of(registry)
        if state == "hung":
            os.kill(process, signal.SIGSTOP)
        else:
            ray.kill(registry._actor, no_restart=state == "gone")
        started = ray.remote(num_cpus=0)(Video.func_or_class).remote(f"reins://{url}?namespace={namespace}", 2.0)
        try:
            assert Clip(*ray.get(started.__call__.remote("key"))) == (DIGEST[1], True, True)
        finally:
            if state == "hung":
                os.kill(process, signal.SIGCONT)
        found = until(lambda: find(namespace))
        assert found.url() == url
        found.promote("tiny", "2", **SAID)
        everywhere(found, 2, REPLICAS + 1)
        assert Clip(*ray.get(started.__call__.remote("key"))) == (DIGEST[2], True, True)
        load.more()
        ray.kill(started)
    assert not load.errors
    check(found)


def test_a_replica_that_knows_no_store_but_the_registrys_does_not_start_without_it(cluster: None) -> None:
    with pytest.raises(SteeringUnavailable, match=r"no registry of directions.*Name it: reins://STORE"):
        attach(tiny.pipeline(), model="tiny", directions=f"reins://?namespace={uuid.uuid4().hex}")
