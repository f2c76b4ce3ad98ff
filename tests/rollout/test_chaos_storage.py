"""Storage fails, refuses, is full, hangs or loses its answer while replicas generate: they go on, and nothing is lost."""

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import fsspec
import pytest

from reins_serve.errors import RegistryUnavailable, SteeringUnavailable, StorageError
from reins_serve.plugin import SteeringMiddleware, attach
from reins_serve.rollout import registry as registry_module
from reins_serve.rollout import watcher as watcher_module
from reins_serve.rollout.source import Source
from reins_serve.rollout.storage import DirectionStore
from tests import tiny
from tests.rollout.conftest import made
from tests.rollout.load import Load, clip
from tests.rollout.trouble import InProcess, Trouble, troubled_folder, troubled_s3
from tests.serving.local import until

SAID = {"who": "ann", "why": "a test"}
ONE, TWO, THREE = (made(seed).sha256 for seed in range(3))
TROUBLES = [
    ("fails", "read"),
    ("fails", "write"),
    ("refuses", "read"),
    ("refuses", "write"),
    ("full", "write"),
]


class Place(NamedTuple):
    """A store, its trouble, a registry of it, and two replicas: one that follows the registry, one that has storage alone."""

    store: DirectionStore
    trouble: Trouble
    registry: InProcess
    replicas: list[SteeringMiddleware]
    attached: Callable[[str], SteeringMiddleware]

    def load(self) -> Load:
        return Load([lambda key, one=one: clip(one, key) for one in self.replicas], pause_s=0.1)

    def everywhere(self, sha256: str) -> None:
        """Wait until both replicas are where the pointer is, and see that this is their live version."""
        generation = self.store.read("tiny").generation
        until(lambda: all(replica.watcher.snapshot.generation == generation for replica in self.replicas))
        assert {replica.directions["live"].sha256 for replica in self.replicas} == {sha256}

    def contents(self) -> tuple[object, ...]:
        """The names of all files, and the pointer."""
        folders = ("versions", "numbers", "audit")
        return *(self.store._files.names(f"tiny/{folder}") for folder in folders), self.store.find("tiny")

    def check(self) -> None:
        """No version and no event is missing."""
        events, versions = self.store.history("tiny"), self.store.versions("tiny")
        generations = [event.generation for event in events if event.generation]
        assert generations == list(range(1, self.store.read("tiny").generation + 1))
        assert [event.number for event in events if event.number] == [version.number for version in versions]
        assert all(self.store.load("tiny", version.sha256) for version in versions)


@pytest.fixture(scope="module", params=["local", "s3"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "local":
            url, trouble = str(tmp_path_factory.mktemp("chaos") / "store"), troubled_folder(patch)
        else:
            server = request.getfixturevalue("s3_server")
            bucket = f"b-{uuid.uuid4().hex}"
            fsspec.filesystem("s3", **server).call_s3("create_bucket", Bucket=bucket)
            url, trouble = f"s3://{bucket}/directions", troubled_s3(patch)
            for name, value in (("ENDPOINT_URL", server["endpoint_url"]), ("DEFAULT_REGION", "us-east-1"),
                                ("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test")):  # fmt: skip
                patch.setenv(f"AWS_{name}", value)
            fsspec.get_filesystem_class("s3").clear_instance_cache()
        store, registry = DirectionStore(url), InProcess(url)
        for seed in range(3):
            store.publish(made(seed), **SAID)
        store.promote("tiny", "1", **SAID)

        def connected(self: Source) -> InProcess:
            if self._address.namespace == "none":
                raise RegistryUnavailable("a test")
            return registry

        patch.setattr(Source, "_connect", connected)
        patch.setattr(registry_module, "LOOK_S", 0.3)
        patch.setattr(watcher_module, "LONGEST_RETRY_S", 0.3)
        opened: list[SteeringMiddleware] = []

        def attached(namespace: str) -> SteeringMiddleware:
            address = f"reins://{url}?namespace={namespace}"
            opened.append(attach(tiny.pipeline(), model="tiny", directions=address))
            return opened[-1]

        place = Place(store, trouble, registry, [attached("reins"), attached("none")], attached)
        yield place
        for steering in opened:
            steering.watcher.close()
        registry.close()
        place.check()
    if request.param == "s3":
        fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def place(built: Place) -> Place:
    """Version 1 is live, and version 2 was so before."""
    for number in "121":
        built.store.promote("tiny", number, **SAID)
    built.everywhere(ONE)
    return built


@pytest.mark.parametrize(("kind", "access"), TROUBLES, ids=[f"{k}-{a}" for k, a in TROUBLES])
def test_no_change_is_half_made_and_generations_go_on(place: Place, kind: str, access: str) -> None:
    registry, before = place.registry, place.contents()
    fresh = made(uuid.uuid4().int % 10**6)
    attempts = [
        lambda: registry.publish(fresh, **SAID),
        lambda: registry.canary("tiny", "3", 0.5, **SAID),
        lambda: registry.rollback("tiny", **SAID),
        lambda: registry.promote("tiny", "3", **SAID),
    ]
    with place.load() as load:
        load.more()
        with place.trouble(kind, access):
            for attempt in attempts:
                with pytest.raises(StorageError, match=r"cannot be (read|listed|written).*Check that the storage"):
                    attempt()
            load.more()
        assert place.contents() == before
        for attempt in attempts:
            attempt()
        place.everywhere(THREE)
        moved = time.time()
        load.more()
    assert not load.errors
    assert load.since(moved) == {THREE}


@pytest.mark.parametrize("access", ["read", "write"])
def test_a_pointer_that_hangs_holds_up_its_move_and_nothing_else(place: Place, access: str) -> None:
    with place.load() as load, ThreadPoolExecutor(1) as pool:
        load.more()
        with place.trouble("hangs", access, only="pointer.json"):
            moving = pool.submit(lambda: place.registry.promote("tiny", "2", **SAID))
            assert place.trouble.met.wait(60)
            load.more()
            assert place.registry.wait("tiny", -1).live.sha256 == ONE  # type: ignore[union-attr]
            assert not moving.done()
        assert moving.result().live == TWO
        place.everywhere(TWO)
        moved = time.time()
        load.more()
    assert not load.errors
    assert load.since(moved) == {TWO}


def test_a_move_whose_answer_is_lost_is_made_and_recorded_and_may_be_asked_for_again(place: Place) -> None:
    fresh = made(uuid.uuid4().int % 10**6)
    with place.load() as load:
        for wanted, move in (
            ("numbers/", lambda: place.registry.publish(fresh, who="bob", why="lost")),
            ("pointer.json", lambda: place.registry.promote("tiny", fresh.sha256, who="bob", why="lost")),
        ):
            with place.trouble("loses its answer", "answer", only=wanted), pytest.raises(StorageError):
                move()
            again = move()
            assert (again.by, again.why) == ("bob", "lost")
        place.everywhere(fresh.sha256)
        load.more()
    assert not load.errors
    told = [(e.action, e.by, e.after) for e in place.store.history("tiny")]
    assert [told.count((action, "bob", fresh.sha256)) for action in ("publish", "promote")] == [1, 1]


def test_a_version_that_cannot_be_read_is_taken_up_once_it_can(place: Place) -> None:
    with place.load() as load:
        with place.trouble("fails", "read", only="/versions/"):
            found = place.store._find("tiny")
            place.store._pointers.move("tiny", found, "promote", "bob", "from elsewhere", live=THREE, previous=(ONE,))
            assert "cannot be read" in until(lambda: place.registry.status("tiny")["error"])
            load.more()
            assert {replica.directions["live"].sha256 for replica in place.replicas} == {ONE}
        place.everywhere(THREE)
        load.more()
    assert not load.errors


def test_a_registry_that_comes_back_to_storage_in_trouble_is_followed_once_that_is_over(place: Place) -> None:
    with place.load() as load:
        with place.trouble("fails", "read"):
            place.registry.kill()
            with pytest.raises(StorageError):
                place.registry.status("tiny")
            load.more()
        place.registry.promote("tiny", "2", **SAID)
        place.everywhere(TWO)
        load.more()
    assert not load.errors


def test_a_registry_that_cannot_read_what_a_replica_has_read_does_not_send_it_back(place: Place) -> None:
    known = place.registry.wait("tiny", -1).generation
    with place.trouble("fails", "read"), pytest.raises(StorageError, match="cannot be read"):
        place.registry.wait("tiny", known + 1)
    assert place.registry.wait("tiny", known + 1).generation == known  # storage says so


def test_a_replica_that_starts_has_a_direction_from_the_registry_or_is_not_ready(place: Place) -> None:
    with place.load() as load, place.trouble("fails", "read"):
        assert clip(place.attached("reins"), "key").sha256 == ONE
        with pytest.raises(SteeringUnavailable, match=r"no valid live direction.*cannot be read"):
            place.attached("none")
        load.more()
    assert not load.errors
    assert clip(place.attached("none"), "key") == (ONE, True, True)
