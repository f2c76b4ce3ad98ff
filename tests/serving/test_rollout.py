"""Directions roll out to running replicas: somebody's own deployment, which knows no more of it than `reins://`."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray import serve

from reins_serve.rollout.client import Registry, connect, find
from reins_serve.rollout.storage import DirectionStore
from reins_serve.steering.policy import takes_candidate
from tests.rollout.conftest import made
from tests.rollout.load import Clip, Load
from tests.serving.local import until

SAID = {"who": "ann", "why": "a test"}
REPLICAS = 2
DIGEST = {number: made(number - 1).sha256 for number in (1, 2)}


@serve.deployment(num_replicas=REPLICAS, max_ongoing_requests=1, ray_actor_options={"num_cpus": 0})
class Video:
    """A deployment of somebody else's."""

    def __init__(self, directions: str) -> None:
        import reins_serve
        from tests import tiny

        self.steering = reins_serve.attach(tiny.pipeline(), model="tiny", directions=directions)

    def __call__(self, key: str) -> tuple[str | None, bool, bool]:
        from tests.rollout.load import clip

        return tuple(clip(self.steering, key))


def loaded(handle: Any) -> Load:
    """As many clients as there are replicas."""
    return Load([lambda key: Clip(*handle.remote(key).result())] * REPLICAS)


@pytest.fixture(scope="module")
def deployed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Registry, Any, str]]:
    """A registry, a handle to two replicas that follow it, and its namespace."""
    namespace, url = uuid.uuid4().hex, str(tmp_path_factory.mktemp("rollout") / "store")
    registry = connect(url, namespace)
    for number in DIGEST:
        registry.publish(made(number - 1), **SAID)
    registry.promote("tiny", "1", **SAID)
    app = Video.bind(f"reins://{url}?namespace={namespace}")
    handle = serve.run(app, name="own", route_prefix=None)
    yield registry, handle, namespace
    serve.delete("own")
    found = find(namespace)
    if found is not None:
        ray.kill(found._actor)


def everywhere(registry: Registry, number: int) -> list[dict]:
    """Wait until all replicas say that they serve a version."""

    def reports() -> list[dict] | None:
        seen = [r for r in registry.status("tiny")["replicas"] if r["live"] == DIGEST[number]]
        return seen if len(seen) == REPLICAS else None

    return until(reports)


@pytest.fixture
def fresh(deployed: tuple[Registry, Any, str]) -> tuple[Registry, Any]:
    """The registry and the handle, with version 1 live on all replicas."""
    registry, handle, _ = deployed
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


def test_a_registry_killed_under_load_comes_back_and_nobody_fails(fresh: tuple[Registry, Any]) -> None:
    registry, handle = fresh
    with loaded(handle) as load:
        load.more()
        ray.kill(registry._actor, no_restart=False)
        load.more()
        registry.promote("tiny", "2", **SAID)
        everywhere(registry, 2)
        load.more()
    assert not load.errors
    assert load.answers[-1][2].sha256 == DIGEST[2]


def test_a_pointer_moved_behind_its_back_reaches_the_replicas(fresh: tuple[Registry, Any]) -> None:
    registry, _ = fresh
    DirectionStore(registry.url()).promote("tiny", "2", who="bob", why="from elsewhere")
    everywhere(registry, 2)


def test_a_registry_killed_for_good_is_made_again_by_those_who_need_it(deployed: tuple[Registry, Any, str]) -> None:
    registry, handle, namespace = deployed
    url = registry.url()
    ray.kill(registry._actor)
    assert handle.remote("key").result()[1]
    found = until(lambda: find(namespace))
    assert found.url() == url
    found.promote("tiny", "1", **SAID)
    everywhere(found, 1)
