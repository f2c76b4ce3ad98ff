"""A watcher keeps one middleware up to date, and never takes up what is not valid; here without Ray, from storage."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reins_serve import plugin
from reins_serve.errors import ReinsError, SteeringUnavailable
from reins_serve.models.generation import generate, request
from reins_serve.plugin import SteeringMiddleware, attach
from reins_serve.rollout import watcher as watcher_module
from reins_serve.rollout.address import StoreAddress
from reins_serve.rollout.files.local import LocalFiles
from reins_serve.rollout.snapshot import Snapshot, Staged
from reins_serve.rollout.source import Source
from reins_serve.rollout.storage import DirectionStore
from reins_serve.steering.direction import Direction
from reins_serve.steering.policy import SteeringPolicy
from tests import tiny
from tests.rollout.alone import without_following, without_registry
from tests.rollout.conftest import PIPELINE, made
from tests.serving.local import until

SAID = {"who": "ann", "why": "a test"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage alone, which is looked at often."""
    without_registry(monkeypatch)
    monkeypatch.setattr(watcher_module, "LONGEST_RETRY_S", 0.05)


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    without_following(monkeypatch)


@pytest.fixture
def published(local: DirectionStore) -> DirectionStore:
    """A store with two versions, of which the first is live."""
    for seed in range(2):
        local.publish(made(seed), **SAID)
    local.promote("tiny", "1", **SAID)
    return local


@pytest.fixture
def follow(published: DirectionStore) -> Iterator[Callable[..., SteeringMiddleware]]:
    """Attach steering that follows the store to a fresh pipeline."""
    opened: list[SteeringMiddleware] = []

    def attached(**others: object) -> SteeringMiddleware:
        steering = attach(tiny.pipeline(), model="tiny", directions=f"reins://{published.url}", **others)
        opened.append(steering)
        return steering

    yield attached
    for steering in opened:
        steering.watcher.close()


def shown(store: DirectionStore, sha256: str, data: bytes, generation: int = 9) -> Snapshot:
    return Snapshot("tiny", generation, Staged(sha256, 9, data))


def record(steering: SteeringMiddleware, **how: object) -> plugin.GenerationRecord:
    with steering.generation(**how) as g:
        generate(steering.pipeline, tiny.ENTRY, [request(tiny.ENTRY, "a red square", 1)], g.arguments)
    return g.record


def test_what_is_promoted_rolled_back_or_given_a_share_is_taken_up(
    published: DirectionStore, follow: Callable[..., SteeringMiddleware]
) -> None:
    steering = follow()
    assert record(steering).sha256 == made(0).sha256
    published.promote("tiny", "2", **SAID)
    until(lambda: steering.directions["live"].sha256 == made(1).sha256)
    assert record(steering).sha256 == made(1).sha256
    published.rollback("tiny", **SAID)
    until(lambda: steering.directions["live"].sha256 == made(0).sha256)
    published.canary("tiny", "2", 0.5, **SAID)
    until(lambda: steering.fraction == 0.5)
    assert {record(steering, key=f"k{n}").sha256 for n in range(8)} == {made(0).sha256, made(1).sha256}
    assert (steering.watcher.swapped, steering.watcher.refused) == (3, 0)


def test_bytes_of_another_digest_are_refused(
    follow: Callable[..., SteeringMiddleware], published: DirectionStore
) -> None:
    steering = follow()
    steering.watcher.take(shown(published, made(0).sha256, made(1).data), steering)
    assert "another digest" in steering.watcher.error


@pytest.mark.usefixtures("still")
def test_a_candidate_that_is_not_valid_leaves_the_live_direction_alone(
    follow: Callable[..., SteeringMiddleware],
) -> None:
    steering = follow()
    live, bad = Staged(made(1).sha256, 2, made(1).data), Staged(made(0).sha256, 1, b"nonsense")
    steering.watcher.take(Snapshot("tiny", 9, live, bad, 0.5), steering)
    assert (set(steering.directions), steering.fraction) == ({"live"}, 0.0)
    assert steering.directions["live"].sha256 == made(1).sha256
    assert steering.watcher.refused == 1


def weak(seed: int) -> Direction:
    """A valid direction whose push is lost in rounding."""
    whole = made(seed).meta
    strength = whole.strength.model_copy(update={"serving": 1e-12, "max": 1e-12})
    return Direction.create(whole.model_copy(update={"strength": strength}), made(seed).vectors)


def test_what_fails_its_dry_run_is_refused_and_the_last_one_serves(
    published: DirectionStore, follow: Callable[..., SteeringMiddleware]
) -> None:
    steering = follow()
    published.promote("tiny", published.publish(weak(1), **SAID).sha256, **SAID)
    until(lambda: steering.watcher.error)
    assert "lost in the rounding" in steering.watcher.error
    assert record(steering).sha256 == made(0).sha256
    published.rollback("tiny", **SAID)
    until(lambda: steering.watcher.error is None)


def test_a_candidate_that_fails_its_dry_run_leaves_the_live_direction_alone(
    published: DirectionStore, follow: Callable[..., SteeringMiddleware]
) -> None:
    steering = follow()
    published.canary("tiny", published.publish(weak(1), **SAID).sha256, 0.5, **SAID)
    until(lambda: steering.watcher.error)
    assert "lost in the rounding" in steering.watcher.error
    assert (set(steering.directions), steering.fraction) == ({"live"}, 0.0)
    assert steering.outcomes.epoch == published.read("tiny").epoch


def test_storage_that_is_damaged_later_leaves_what_serves(
    published: DirectionStore, follow: Callable[..., SteeringMiddleware]
) -> None:
    steering = follow()
    pointer = Path(published.url, "tiny", "pointer.json")
    pointer.write_bytes(b"{")
    Path(published.url, "tiny", "versions", f"{made(0).sha256}.safetensors").unlink()
    assert record(steering).sha256 == made(0).sha256
    with pytest.raises(SteeringUnavailable, match="no valid live direction"):
        follow()


def test_of_storage_that_has_not_moved_only_the_pointer_is_read(
    published: DirectionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, read, names = Source(StoreAddress(published.url), "tiny"), [], LocalFiles._read
    monkeypatch.setattr(LocalFiles, "_read", lambda self, path: read.append(path) or names(self, path))
    first = source.stored()
    assert len(read) > 1
    read.clear()
    assert source.stored() is first
    assert read == ["tiny/pointer.json"]
    published.promote("tiny", "2", **SAID)
    assert source.stored().live.number == 2


def test_without_a_live_direction_nothing_starts_unless_the_policy_says_so(tmp_path: Path) -> None:
    store = DirectionStore(str(tmp_path / "empty"))
    store.publish(made(0), **SAID)
    with pytest.raises(SteeringUnavailable, match="Publish one and promote it"):
        attach(tiny.pipeline(), model="tiny", directions=f"reins://{store.url}")
    steering = attach(
        tiny.pipeline(), model="tiny", directions=f"reins://{store.url}", policy=SteeringPolicy(required=False)
    )
    assert not record(steering).steered
    store.promote("tiny", "1", **SAID)
    until(lambda: "live" in steering.directions)
    assert record(steering).proved
    steering.watcher.close()


def test_other_directions_stand_beside_the_stores(published: DirectionStore, tmp_path: Path) -> None:
    other = tiny.direction(PIPELINE, 5, name="other", blocks=(2,))
    directions = {"live": f"reins://{published.url}", "other": other}
    steering = attach(tiny.pipeline(), model="tiny", directions=directions)
    published.promote("tiny", "2", **SAID)
    until(lambda: steering.directions["live"].sha256 == made(1).sha256)
    assert steering.directions["other"].sha256 == other.sha256
    steering.watcher.close()


def test_an_address_names_a_store_and_a_namespace() -> None:
    assert StoreAddress.parse("reins:///srv/d?namespace=b") == StoreAddress("/srv/d", "b")
    assert StoreAddress.parse("reins://s3://bucket/p").store == "s3://bucket/p"
    assert StoreAddress.parse("reins://") == StoreAddress("", "reins")
    for wrong in ("s3://bucket", "reins://x?name=b", "reins://x?namespace="):
        with pytest.raises(ReinsError, match="no address of a store"):
            StoreAddress.parse(wrong)
