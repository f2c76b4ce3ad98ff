"""What goes wrong half-way: nothing that is serving changes, nothing is lost, and the error names the file."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reins_serve.errors import DirectionError, ReinsError, StorageError
from reins_serve.rollout.audit import AuditLog
from reins_serve.rollout.document import now
from reins_serve.rollout.files import open_files
from reins_serve.rollout.files.local import LocalFiles
from reins_serve.rollout.pointer import Pointer
from reins_serve.rollout.storage import DirectionStore
from tests.rollout.conftest import made

SAID = {"who": "ann", "why": "a test"}


class Crash(BaseException):
    """The process dies here."""


def crash(*_: Any, **__: Any) -> None:
    raise Crash


@pytest.fixture
def live(local: DirectionStore) -> DirectionStore:
    """A store whose version 1 is live, with a version 2."""
    for seed in range(2):
        local.publish(made(seed), **SAID)
    local.promote("tiny", "1", **SAID)
    return local


POINTER = Pointer(
    format="reins.pointer/1", model="tiny", generation=3, live="a" * 64, candidate="b" * 64, fraction=0.25,
    previous=("c" * 64,), condemned=(), updated=now(), by="ann", why="a test", action="canary", before=None, override=None,
)  # fmt: skip


def file_of(store: DirectionStore, seed: int) -> Path:
    return Path(store.url, "tiny", "versions", f"{made(seed).sha256}.safetensors")


def contents(store: DirectionStore) -> dict[str, bytes]:
    files = (path for path in Path(store.url).rglob("*") if path.is_file())
    return {str(path.relative_to(store.url)): path.read_bytes() for path in files if path.name != ".lock"}


def test_a_crash_between_a_versions_file_and_its_number_leaves_no_version(
    local: DirectionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "swap", crash)
        with pytest.raises(Crash):
            local.publish(made(), **SAID)
    assert local.versions("tiny") == []
    assert local.publish(made(), **SAID).number == 1


def test_a_crash_between_a_version_and_the_pointer_leaves_the_live_one(
    live: DirectionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = live.read("tiny")
    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "swap", crash)
        with pytest.raises(Crash):
            live.promote("tiny", "2", **SAID)
    again = DirectionStore(live.url)
    assert again.read("tiny") == before
    assert again.load("tiny", before.live or "").data == made(0).data
    assert again.promote("tiny", "2", **SAID).generation == before.generation + 1


def test_a_crash_between_the_pointer_and_its_audit_event_loses_neither(
    live: DirectionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(AuditLog, "append_later", crash)
        with pytest.raises(Crash):
            live.promote("tiny", "2", who="bob", why="dies")
    assert live.read("tiny").live == made(1).sha256
    assert live.history("tiny")[-1].by == "bob"
    live.rollback("tiny", **SAID)
    assert [event.by for event in live.history("tiny")[-2:]] == ["bob", "ann"]
    assert [event.generation for event in live.history("tiny")[-3:]] == [1, 2, 3]


def test_a_crash_between_a_number_and_its_audit_event_loses_neither(
    local: DirectionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(AuditLog, "append_later", crash)
        with pytest.raises(Crash):
            local.publish(made(), **SAID)
    told = [(event.action, event.after) for event in local.history("tiny")]
    assert told == [("publish", made().sha256)]
    assert local._audit.events("tiny") == {}
    local.publish(made(), who="bob", why="again")
    assert len(local._audit.events("tiny")) == len(local.history("tiny")) == 1


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_file_that_was_cut_off_in_writing_is_never_seen(
    live: DirectionStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = contents(live)
    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), crash)
        with pytest.raises(Crash):
            live.publish(made(2), **SAID)
    assert contents(live) == before


def test_what_a_killed_writer_left_behind_is_not_listed_and_is_collected_when_it_is_old(live: DirectionStore) -> None:
    left = [Path(live.url, "tiny", folder, ".x.0123.part") for folder in ("versions", "numbers", "audit")]
    for file in left:
        file.write_bytes(b"half")
    assert len(live.versions("tiny")) == 2
    assert len(live.history("tiny")) == 3
    assert live._versions.stored("tiny") == {made(0).sha256, made(1).sha256}
    os.utime(left[0], (0, 0))
    live.collect("tiny", keep=9, **SAID)
    assert [file.exists() for file in left] == [False, True, True]  # the others may be in writing now


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "missing"])
def test_a_damaged_or_missing_version_is_named_and_nothing_moves_until_it_is_published_again(
    live: DirectionStore, damage: str
) -> None:
    file, data = file_of(live, 1), made(1).data
    changed = {"truncated": data[:-7], "flipped": data[:-1] + bytes([data[-1] ^ 1]), "empty": b""}
    file.unlink() if damage == "missing" else file.write_bytes(changed[damage])
    before = contents(live)
    for attempt in (
        lambda: live.load("tiny", made(1).sha256),
        lambda: live.promote("tiny", "2", **SAID),
        lambda: live.canary("tiny", "2", 0.1, **SAID),
    ):
        with pytest.raises(StorageError, match=rf"{file.name} is (missing|damaged).*publish the same direction again"):
            attempt()
    assert contents(live) == before
    assert live.publish(made(1), **SAID).number == 2
    assert live.promote("tiny", "2", **SAID).live == made(1).sha256


def test_a_rollback_to_a_missing_version_leaves_what_is_live(live: DirectionStore) -> None:
    before = live.promote("tiny", "2", **SAID)
    file_of(live, 0).unlink()
    with pytest.raises(StorageError, match=file_of(live, 0).name):
        live.rollback("tiny", **SAID)
    assert live.read("tiny") == before


def test_a_pointer_that_names_a_missing_file_is_read_and_its_file_refused_and_another_can_be_promoted(
    live: DirectionStore,
) -> None:
    file_of(live, 0).unlink()
    with pytest.raises(StorageError, match="is missing"):
        live.load("tiny", live.read("tiny").live or "")
    assert live.promote("tiny", "2", **SAID).live == made(1).sha256


GARBAGE = {
    "empty": b"",
    "binary": bytes(range(256)),
    "cut": b'{"format": "reins.pointer/1", "model": "ti',
    "list": b"[]",
}
CHANGES: dict[str, dict[str, Any]] = {
    "unknown field": {"alpha": 1},
    "format": {"format": "reins.pointer/2"},
    "digest": {"live": "abc"},
    "fraction without candidate": {"fraction": 0.5},
    "fraction above 1": {"candidate": "0" * 64, "fraction": 7},
    "generation": {"generation": 0},
    "other model": {"model": "embedded"},
    "nobody": {"by": ""},
}


@pytest.mark.parametrize("wrong", [*GARBAGE, *CHANGES])
def test_a_pointer_with_garbage_is_an_error_that_names_it_and_stays_as_it_is(live: DirectionStore, wrong: str) -> None:
    file = Path(live.url, "tiny", "pointer.json")
    file.write_bytes(GARBAGE.get(wrong) or json.dumps(json.loads(file.read_text()) | CHANGES.get(wrong, {})).encode())
    if wrong == "empty":
        file.write_bytes(b"")
    before = contents(live)
    for attempt in (
        lambda: live.read("tiny"),
        lambda: live.promote("tiny", "2", **SAID),
        lambda: live.rollback("tiny", **SAID),
        lambda: live.collect("tiny", keep=0, **SAID),
    ):
        with pytest.raises(StorageError, match=r"tiny/pointer\.json"):
            attempt()
    assert contents(live) == before
    assert [event.action for event in live.history("tiny")] == ["publish", "publish", "promote"]


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_pointer_with_flipped_bytes_is_refused_or_still_a_pointer(data: st.DataObject) -> None:
    mutated = bytearray(POINTER.encoded())
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = Pointer.decoded(bytes(mutated), "pointer.json")
    except StorageError as error:
        assert "pointer.json" in str(error)
        return
    assert (read.candidate is None) == (read.fraction == 0)
    assert read.generation >= 1


def test_after_a_damaged_pointer_was_removed_generations_go_on(live: DirectionStore) -> None:
    live.promote("tiny", "2", **SAID)
    Path(live.url, "tiny", "pointer.json").unlink()
    assert live.promote("tiny", "1", **SAID).generation == 3
    assert [event.generation for event in live.history("tiny")[2:]] == [1, 2, 3]


@pytest.mark.parametrize("folder", ["numbers", "audit"])
def test_a_damaged_document_is_named(live: DirectionStore, folder: str) -> None:
    file = next(Path(live.url, "tiny", folder).glob("*.json"))
    file.write_bytes(b"{}")
    with pytest.raises(StorageError, match=file.name):
        live.history("tiny")


class TestFailingStorage:
    @pytest.mark.parametrize("what", ["publish", "promote"])
    def test_a_full_disk_changes_nothing(
        self, live: DirectionStore, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        before = contents(live)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"cannot be written \(No space left on device\)"):
            live.publish(made(2), **SAID) if what == "publish" else live.promote("tiny", "2", **SAID)
        assert contents(live) == before

    def test_a_change_whose_event_could_not_be_written_has_happened_and_its_event_follows(
        self, live: DirectionStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put = LocalFiles.put

        def full(self: LocalFiles, path: str, data: bytes) -> None:
            if "/audit/" in path:
                raise StorageError("full")
            put(self, path, data)

        with monkeypatch.context() as patch:
            patch.setattr(LocalFiles, "put", full)
            assert live.promote("tiny", "2", **SAID).live == made(1).sha256
        assert len(live._audit.events("tiny")) == 3
        live.rollback("tiny", **SAID)
        assert len(live._audit.events("tiny")) == 5

    def test_an_unreachable_server_is_an_error_that_says_so(self) -> None:
        pytest.importorskip("s3fs", reason="the extra `s3` is not installed")
        options = {"endpoint_url": "http://127.0.0.1:9", "key": "test", "secret": "secret-word"}
        fast = {"connect_timeout": 1, "retries": {"max_attempts": 0}}
        store = DirectionStore("s3://bucket/x", config_kwargs=fast, **options)
        with pytest.raises(StorageError, match="cannot be read") as error:
            store.read("tiny")
        assert "secret-word" not in str(error.value)

    @pytest.mark.parametrize("url", ["nothing://x", "simplecache::memory://x"])
    def test_a_url_that_cannot_be_a_store_is_refused(self, url: str) -> None:
        with pytest.raises(ReinsError, match="The store"):
            open_files(url)

    def test_reading_makes_no_folders(self, tmp_path: Path) -> None:
        store = DirectionStore(str(tmp_path / "none"))
        assert (store.models(), store.versions("tiny"), store.history("tiny"), store.find("tiny")) == ([], [], [], None)
        with pytest.raises(DirectionError):
            store.rollback("tiny", **SAID)
        assert not (tmp_path / "none").exists()
