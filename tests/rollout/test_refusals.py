"""What must never steer is refused twice, with the reason: where it is published, and again by every replica that is handed it."""

import hashlib
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from reins_serve.errors import DirectionError, SteeringUnavailable
from reins_serve.plugin import SteeringMiddleware, attach
from reins_serve.rollout.snapshot import Snapshot, Staged
from reins_serve.rollout.source import Source
from reins_serve.rollout.storage import DirectionStore
from reins_serve.rollout.watcher import Watcher
from reins_serve.steering.direction import METADATA_KEY
from tests import tiny
from tests.rollout.alone import without_following, without_registry
from tests.rollout.conftest import made

SAID = {"who": "ann", "why": "a test"}
VECTORS = made(1).vectors.numpy()


def file(vectors: np.ndarray = VECTORS, **changes: object) -> bytes:
    """A file made by hand, with other vectors `[1, D]` or other values of its metadata (`strength__serving=...`)."""
    meta = json.loads(made(1).meta.model_dump_json())
    for name, value in changes.items():
        part, _, key = name.rpartition("__")
        (meta[part] if part else meta)[key] = value
    tensor = {"dtype": "F32", "shape": vectors.shape, "data_offsets": [0, vectors.nbytes]}
    header = json.dumps({"__metadata__": {METADATA_KEY: json.dumps(meta)}, "vectors": tensor}).encode()
    return len(header).to_bytes(8, "little") + header + vectors.tobytes()


def with_first(value: float) -> np.ndarray:
    vectors = VECTORS.copy()
    vectors[0, 0] = value
    return vectors


REFUSED = {
    "corrupt header": (made(1).data.replace(b"__metadata__", b"__metadate__"), r"no readable `reins` header"),
    "cut off": (made(1).data[:-7], r"not a complete safetensors file"),
    "pickle": (pickle.dumps({"vectors": VECTORS}), r"Pickles and other formats are never loaded"),
    "another model": (file(model="another"), r"direction of another, not of tiny"),
    "another width": (file(np.eye(1, 8, dtype="f4"), base__width=8), r"width is 8, .* is 16"),
    "width that its vectors have not": (file(base__width=8), r"must be float32 of shape \(1, 8\)"),
    "other weights": (file(base__fingerprint="another one"), r"fingerprint"),
    "NaN": (file(with_first(float("nan"))), r"values that are not finite"),
    "infinite": (file(with_first(float("inf"))), r"values that are not finite"),
    "zero": (file(0 * VECTORS), r"must have unit length .* lengths are \[0\.0\]"),
    "not of unit length": (file(2 * VECTORS), r"must have unit length .* lengths are \[[12]\.\d+\]"),
    "negative strength": (file(strength__serving=-0.5), r"strength\.serving: Input should be greater than 0"),
    "strength of zero": (file(strength__serving=0), r"strength\.serving: Input should be greater than 0"),
    "pushes towards harm": (file(statistics=[{"safe_mean": -1.0, "unsafe_mean": 1.0, "ref_norm": 1.0}]), r"push towards harm"),
    "unknown field": (file(alpha=1), r"alpha: Extra inputs are not permitted"),
    "larger than any direction": (bytes(2**26 + 1), r"larger than 64 MiB|no readable `reins` header"),
}  # fmt: skip

each = pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    without_registry(monkeypatch)
    without_following(monkeypatch)


@pytest.fixture(scope="module")
def replica() -> SteeringMiddleware:
    return attach(tiny.pipeline(), model="tiny", directions={"live": made(0)})


def staged(data: bytes) -> Staged:
    return Staged(hashlib.sha256(data).hexdigest(), 2, data)


def test_the_files_made_by_hand_are_else_valid(local: DirectionStore) -> None:
    assert local.publish(file(), model="tiny", **SAID).number == 1


@each
def test_at_publish(local: DirectionStore, data: bytes, reason: str) -> None:
    local.publish(made(0), **SAID)
    with pytest.raises(DirectionError, match=reason):
        local.publish(data, model="tiny", **SAID)
    assert [version.number for version in local.versions("tiny")] == [1]
    assert local._versions.stored("tiny") == {made(0).sha256}


@each
@pytest.mark.parametrize("place", ["live", "candidate"])
def test_at_a_replica_that_serves(
    replica: SteeringMiddleware, place: str, data: bytes, reason: str, tmp_path: Path
) -> None:
    watcher = Watcher(f"reins://{tmp_path}", "tiny", replica="")
    good, bad = staged(made(0).data), staged(data)
    watcher.take(Snapshot("tiny", 9, bad) if place == "live" else Snapshot("tiny", 9, good, bad, 0.5), replica)
    after = {name: direction.sha256 for name, direction in replica.directions.items()}
    assert watcher.error is not None and re.search(reason, watcher.error)
    assert watcher.refused == 1
    assert (after, replica.fraction) == ({"live": made(0).sha256}, 0.0)


@each
def test_at_a_replica_that_starts(data: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Source, "first", lambda self: Snapshot("tiny", 9, staged(data)))
    with pytest.raises((SteeringUnavailable, DirectionError), match=reason):
        attach(tiny.pipeline(), model="tiny", directions=f"reins://{tmp_path}")


@pytest.mark.parametrize("started", [False, True], ids=["starts", "serves"])
def test_a_candidate_that_does_not_suit_the_replica_keeps_no_live_direction_out(
    replica: SteeringMiddleware, started: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = staged(REFUSED["another width"][0])
    snapshot = Snapshot("tiny", 9, Staged(made(2).sha256, 3, made(2).data), wide, 0.5)
    monkeypatch.setattr(Source, "first", lambda self: snapshot)
    if started:
        watcher, steering = Watcher(f"reins://{tmp_path}", "tiny", replica=""), replica
        watcher.take(snapshot, steering)
    else:
        steering = attach(tiny.pipeline(), model="tiny", directions=f"reins://{tmp_path}")
        watcher = steering.watcher
    assert "width is 8" in watcher.error
    assert {name: direction.sha256 for name, direction in steering.directions.items()} == {"live": made(2).sha256}
    assert steering.fraction == 0
