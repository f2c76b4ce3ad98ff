"""Two writers on one store: exactly one wins a race, the other is told to read again, and no change is lost."""

import multiprocessing
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from reins_serve.errors import ConflictError, StorageError
from reins_serve.rollout.document import now
from reins_serve.rollout.files.leased import Lease
from reins_serve.rollout.storage import DirectionStore
from tests.rollout.conftest import Connect, made
from tests.rollout.racing import NAMES, ROUNDS, race, race_in_a_process


def prepared(store: DirectionStore) -> None:
    for seed in range(3):
        store.publish(made(seed), who="test", why="race")
    store.promote("tiny", "1", who="test", why="race")


def check(store: DirectionStore, ann: list[bool], bob: list[bool]) -> None:
    assert [a + b for a, b in zip(ann, bob, strict=True)] == [1] * ROUNDS
    assert store.read("tiny").generation == ROUNDS + 1
    promotions = [event for event in store.history("tiny") if event.action == "promote"]
    assert [event.by for event in promotions[1:]] == [NAMES[won] for won in bob]
    assert [event.before for event in promotions[1:]] == [event.after for event in promotions[:-1]]


@pytest.mark.slow
def test_of_two_threads_exactly_one_wins_each_of_fifty_races(connect: Connect) -> None:
    store = connect()
    prepared(store)
    meet = threading.Barrier(2, timeout=60).wait
    with ThreadPoolExecutor(2) as pool:
        ann, bob = pool.map(lambda who: race(connect(client=True), who, meet), NAMES)
    check(store, ann, bob)


@pytest.mark.slow
def test_of_two_processes_exactly_one_wins_each_of_fifty_races(tmp_path: Path) -> None:
    store = DirectionStore(str(tmp_path))
    prepared(store)
    spawn = multiprocessing.get_context("spawn")
    meet, results = spawn.Barrier(2, timeout=60), spawn.Queue()
    racers = [spawn.Process(target=race_in_a_process, args=(str(tmp_path), who, meet, results)) for who in NAMES]
    for racer in racers:
        racer.start()
    won = dict(results.get(timeout=120) for _ in racers)
    for racer in racers:
        racer.join()
    check(store, won["ann"], won["bob"])


def test_two_clients_of_one_bucket_exclude_each_other(s3: tuple[str, dict]) -> None:
    url, options = s3
    one, two = (DirectionStore(url, skip_instance_cache=True, **options) for _ in range(2))
    assert one._files._system is not two._files._system  # type: ignore[attr-defined]
    prepared(one)
    found = two._find("tiny")
    one.promote("tiny", "2", who="ann", why="first")
    with pytest.raises(ConflictError, match="at the same moment"):  # decided on what was read before
        two._pointers.move("tiny", found, "promote", "bob", "late", live=made(2).sha256)
    assert two.read("tiny").by == "ann"
    assert two.promote("tiny", "3", who="bob", why="read again").previous == (made(1).sha256, made(0).sha256)


def test_of_two_first_promotions_one_wins(connect: Connect) -> None:
    store = connect()
    store.publish(made(), who="test", why="race")
    found = store._find("tiny")
    connect().promote("tiny", "1", who="ann", why="first")
    with pytest.raises(ConflictError):
        store._pointers.move("tiny", found, "promote", "bob", "first, too", live=made().sha256)


def test_writers_who_do_not_agree_on_a_generation_lose_no_change(connect: Connect) -> None:
    store = connect()
    prepared(store)

    def write(who: str) -> int:
        done = 0
        for number in "123" * 2:
            try:
                done += store.promote("tiny", number, who=who, why="race").by == who
            except ConflictError:
                continue
        return done

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, NAMES))
    generations = [event.generation for event in store.history("tiny") if event.generation]
    assert generations == list(range(1, store.read("tiny").generation + 1))


def test_publishers_of_many_directions_get_different_numbers_and_of_the_same_one_the_same(connect: Connect) -> None:
    seeds = [0, 0, 1, 1, 2, 2, 3, 3]

    def publish(seed: int) -> int:
        while True:  # a store with leases asks for another try
            try:
                return connect().publish(made(seed), who="test", why="race").number
            except ConflictError:
                continue

    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(publish, seeds))
    assert numbers[::2] == numbers[1::2]
    assert sorted(numbers[::2]) == [1, 2, 3, 4]
    assert [version.number for version in connect().versions("tiny")] == [1, 2, 3, 4]


class TestLock:
    """A local folder."""

    def test_a_lock_that_is_never_released_is_a_conflict_that_names_it(
        self, local: DirectionStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prepared(local)
        monkeypatch.setattr("reins_serve.rollout.files.local.LOCK_WAIT_S", 0.02)
        with local._files._locked("tiny"), pytest.raises(ConflictError, match=r"tiny/\.lock"):  # type: ignore[attr-defined]
            local.promote("tiny", "2", who="ann", why="locked")
        assert local.promote("tiny", "2", who="ann", why="free").generation == 2


class TestLease:
    """memory:// and whatever else has no compare-and-swap."""

    @pytest.fixture
    def store(self) -> DirectionStore:
        store = DirectionStore(f"memory://{uuid.uuid4().hex}")
        prepared(store)
        return store

    def write_lease(self, store: DirectionStore, seconds: float) -> None:
        lease = Lease(format="reins.lease/1", owner="other", expires=now() + timedelta(seconds=seconds))
        store._files.put("tiny/.lease.json", lease.encoded())

    def test_anothers_lease_is_a_conflict_until_it_ends(self, store: DirectionStore) -> None:
        self.write_lease(store, 60)
        with pytest.raises(ConflictError, match=r"Another writer holds .*Read again"):
            store.promote("tiny", "2", who="ann", why="x")
        assert store.read("tiny").generation == 1
        self.write_lease(store, -1)
        assert store.promote("tiny", "2", who="ann", why="x").generation == 2
        assert store._files.read("tiny/.lease.json") is None

    def test_of_two_who_take_the_lease_at_once_the_last_has_it(
        self, store: DirectionStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("reins_serve.rollout.files.leased.time.sleep", lambda _: self.write_lease(store, 60))
        with pytest.raises(ConflictError, match="at the same moment"):
            store.promote("tiny", "2", who="ann", why="x")
        assert store.read("tiny").generation == 1

    def test_a_file_that_another_thread_moves_away_while_a_folder_is_listed_costs_nothing(
        self, store: DirectionStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Moving(dict):
            def __getitem__(self, name: str) -> Any:
                if name.endswith(".part"):
                    self.pop(name, None)
                return super().__getitem__(name)

        store._files.put("tiny/numbers/.00000004.json.0123.part", b"half")
        monkeypatch.setattr(MemoryFileSystem, "store", Moving(MemoryFileSystem.store))
        assert [version.number for version in store.versions("tiny")] == [1, 2, 3]

    def test_a_lease_that_ran_out_writes_nothing(self, store: DirectionStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("reins_serve.rollout.files.leased.LEASE_S", -1.0)
        with pytest.raises(ConflictError, match="ran out"):
            store.promote("tiny", "2", who="ann", why="x")
        assert store.read("tiny").generation == 1


class TestConditionalWrites:
    """S3."""

    def test_the_server_honours_both_conditions(self, s3: tuple[str, dict]) -> None:
        files = DirectionStore(s3[0], **s3[1])._files
        assert files.swap("tiny/a", b"1", None)
        stored = files.read("tiny/a")
        assert stored is not None
        assert not files.swap("tiny/a", b"2", None)
        assert files.swap("tiny/a", b"3", stored.tag)
        assert not files.swap("tiny/a", b"4", stored.tag)
        assert not files.swap("tiny/none", b"5", stored.tag)
        assert files.read("tiny/a").data == b"3"  # type: ignore[union-attr]

    @pytest.mark.parametrize(("condition", "word"), [("IfNoneMatch", "If-None-Match"), ("IfMatch", "If-Match")])
    def test_a_server_that_ignores_a_condition_is_refused(
        self, s3: tuple[str, dict], monkeypatch: pytest.MonkeyPatch, condition: str, word: str
    ) -> None:
        store = DirectionStore(s3[0], **s3[1])
        call = store._files._system.call_s3  # type: ignore[attr-defined]

        def ignoring(method: str, **arguments: Any) -> Any:
            arguments.pop(condition, None)
            return call(method, **arguments)

        monkeypatch.setattr(store._files._system, "call_s3", ignoring)  # type: ignore[attr-defined]
        with pytest.raises(StorageError, match=rf"ignores {word}, so two writers could both win"):
            store.publish(made(), who="ann", why="x")
        assert store.versions("tiny") == []

    def test_a_put_that_was_repeated_because_its_answer_was_lost_has_won(
        self, s3: tuple[str, dict], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = DirectionStore(s3[0], **s3[1])
        prepared(store)
        call = store._files._system.call_s3  # type: ignore[attr-defined]

        def twice(method: str, **arguments: Any) -> Any:
            if "IfMatch" in arguments:
                call(method, **arguments)
            return call(method, **arguments)

        monkeypatch.setattr(store._files._system, "call_s3", twice)  # type: ignore[attr-defined]
        assert store.promote("tiny", "2", who="ann", why="x").generation == 2
        assert store.read("tiny").live == made(1).sha256

    def test_a_bucket_that_does_not_exist_is_an_error_and_not_an_empty_store(self, s3: tuple[str, dict]) -> None:
        store = DirectionStore("s3://no-such-bucket/directions", **s3[1])
        for ask in (store.versions, store.read):
            with pytest.raises(StorageError, match="bucket does not exist"):
                ask("tiny")
