"""The directions of a served model, changed through the API while it serves; without Ray, from storage."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from reins_serve.calibration import judges
from reins_serve.errors import SignatureError, SteeringNotApplied, SteeringUnavailable
from reins_serve.rollout import watcher as watcher_module
from reins_serve.rollout.signatures import short
from reins_serve.rollout.storage import DirectionStore
from reins_serve.serving import replica as replica_module
from reins_serve.serving.app import build
from reins_serve.serving.config import ApplicationConfig, ModelConfig, hash_key, resolved
from reins_serve.serving.replica import VideoReplica
from reins_serve.serving.served import serve_model
from reins_serve.steering.direction import Direction
from reins_serve.steering.policy import takes_candidate
from tests.calibration.test_outputs import CONFIG, Brightness
from tests.rollout.conftest import Key, made
from tests.serving.conftest import ADMIN_KEY
from tests.serving.local import application, by_storage_alone, create, error, finished, metric, served, until

ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
SAID = {"who": "ann", "why": "a test"}
ONE, TWO = made(0).sha256, made(1).sha256


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    by_storage_alone(monkeypatch)
    monkeypatch.setattr(watcher_module, "LONGEST_RETRY_S", 0.05)


@pytest.fixture
def stored_model(tiny_model: ModelConfig, tmp_path: Path) -> ModelConfig:
    """The tiny model with a store, in which version 1 is live."""
    store = DirectionStore(str(tmp_path / "store"))
    store.publish(made(0), **SAID)
    store.promote("tiny", "1", **SAID)
    others = {name: path for name, path in tiny_model.directions.items() if name != "live"}
    return tiny_model.model_copy(update={"directions": others, "store": store.url})


@pytest.fixture
def followed(stored_model: ModelConfig, tmp_path: Path) -> Iterator[tuple[TestClient, VideoReplica]]:
    """A client of a gateway before a replica, both of which follow the store."""
    replica = VideoReplica(stored_model)
    config = application(stored_model, tmp_path / "clips", admin_key_sha256=hash_key(ADMIN_KEY))
    with served(replica, config) as client:
        yield client, replica
    replica._steering.watcher.close()


def publish(client: TestClient, data: bytes) -> dict:
    answer = client.post("/v1/directions", files={"file": data}, data={"why": "a test"}, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    return answer.json()


def move(client: TestClient, action: str, **body: object) -> dict:
    answer = client.post(f"/v1/directions/tiny/{action}", json={"why": "a test"} | body, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    return answer.json()


def live_everywhere(client: TestClient, replica: VideoReplica, sha256: str) -> None:
    until(lambda: replica._steering.directions["live"].sha256 == sha256)
    until(lambda: client.get("/v1/models/tiny").json()["direction"]["sha256"] == sha256)


def test_a_version_is_published_promoted_and_rolled_back(followed: tuple[TestClient, VideoReplica]) -> None:
    client, replica = followed
    assert publish(client, made(1).data)["number"] == 2
    assert move(client, "promote", version="2")["live"] == TWO
    live_everywhere(client, replica, TWO)
    assert finished(client, create(client))["steering"]["sha256"] == TWO
    assert metric(client, 'reins_direction_info{channel="live",model="tiny",version="v2"}') == 1
    assert metric(client, 'reins_direction_info{channel="live",model="tiny",version="v1"}') == 0
    assert metric(client, 'reins_direction_age_seconds{model="tiny"}') > 0
    assert metric(client, 'reins_registry_up{model="tiny"}') == 0
    move(client, "rollback")
    live_everywhere(client, replica, ONE)
    assert finished(client, create(client))["steering"]["sha256"] == ONE
    (listed,) = client.get("/v1/directions", headers=ADMIN).json()["data"]
    assert [(row["number"], row["state"]) for row in listed["versions"]] == [(1, "live"), (2, "")]


def test_a_canary_takes_jobs_by_their_id_and_is_counted_by_version(
    followed: tuple[TestClient, VideoReplica], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, replica = followed
    publish(client, made(1).data)
    move(client, "canary", version="2", fraction=0.5)
    until(lambda: replica._steering.fraction == 0.5)
    count = 'reins_version_generations_total{model="tiny",outcome="steered",version="v%d"}'
    jobs = [finished(client, create(client)) for _ in range(12)]
    for job in jobs:
        assert job["steering"]["sha256"] == (TWO if takes_candidate(job["id"], 0.5) else ONE)
    taken = sum(job["steering"]["sha256"] == TWO for job in jobs)
    until(lambda: metric(client, count % 2) == taken)
    assert metric(client, count % 1) == 12 - taken
    assert metric(client, 'reins_version_score_count{model="tiny",version="v1"}') == 12 - taken

    def unproved(*arguments: object) -> None:
        raise SteeringNotApplied("a test")

    monkeypatch.setattr(replica_module, "generate", unproved)
    job = finished(client, create(client))
    version = "v2" if takes_candidate(job["id"], 0.5) else "v1"
    assert job["status"] == "failed"
    assert metric(client, f'reins_version_generations_total{{model="tiny",outcome="failed",version="{version}"}}') == 1
    move(client, "withdraw")
    until(lambda: replica._steering.fraction == 0)


@pytest.mark.parametrize(
    ("action", "body", "expected"),
    [
        ("promote", {"version": "2"}, (409, "gates_failed")),
        ("promote", {"version": "1", "generation": 7}, (409, "conflict")),
        ("promote", {"version": "9"}, (404, "direction_not_found")),
        ("promote", {}, (400, "missing_required_parameter")),
        ("canary", {"version": "2", "fraction": 1.5}, (400, "invalid_value")),
        ("rollback", {"verson": "1"}, (400, "unknown_parameter")),
        ("rollback", {}, (404, "direction_not_found")),
    ],
)
def test_what_cannot_be_done_says_so(
    followed: tuple[TestClient, VideoReplica], action: str, body: dict, expected: tuple[int, str]
) -> None:
    client, replica = followed
    publish(client, made(3, "failed").data)
    answer = client.post(f"/v1/directions/tiny/{action}", json={"why": "a test"} | body, headers=ADMIN)
    assert error(answer)[:2] == expected
    assert replica._steering.directions["live"].sha256 == ONE


def test_files_that_are_no_directions_are_refused(followed: tuple[TestClient, VideoReplica]) -> None:
    client, _ = followed
    for data in (b"\x80\x04\x95pickle", made(1).data[:-1], made(1, fingerprint="another one").data):
        answer = client.post("/v1/directions", files={"file": data}, data={"why": "a test"}, headers=ADMIN)
        assert error(answer)[:2] == (400, "direction_invalid")
    answer = client.post("/v1/directions", data={"why": "a test"}, headers=ADMIN)
    assert error(answer) == (400, "missing_required_parameter", "file")


def test_the_admin_key_is_needed(followed: tuple[TestClient, VideoReplica]) -> None:
    client, _ = followed
    said = {"why": "a test", "version": "1"}
    for answer in (
        client.get("/v1/directions"),
        client.post("/v1/directions", files={"file": made(1).data}, data={"why": "a test"}),
        client.post("/v1/directions/tiny/promote", json=said),
    ):
        assert error(answer)[:2] == (403, "admin_only")
    assert error(client.post("/v1/directions/none/promote", json=said, headers=ADMIN))[:2] == (404, "model_not_found")


def test_damaged_storage_is_said_without_its_path(followed: tuple[TestClient, VideoReplica], tmp_path: Path) -> None:
    client, _ = followed
    (tmp_path / "store" / "tiny" / "pointer.json").write_bytes(b"{")
    answer = client.post("/v1/directions/tiny/rollback", json={"why": "a test"}, headers=ADMIN)
    assert error(answer)[:2] == (503, "storage_failed")
    assert str(tmp_path) not in answer.text
    assert finished(client, create(client))["steering"]["sha256"] == ONE


def test_a_model_of_files_has_nothing_to_change(client: TestClient) -> None:
    assert client.get("/v1/directions", headers=ADMIN).json()["data"] == []
    answer = client.post("/v1/directions/tiny/rollback", json={"why": "a test"}, headers=ADMIN)
    assert error(answer)[:2] == (404, "direction_not_found")


def test_a_replica_without_a_valid_live_direction_is_never_ready(stored_model: ModelConfig) -> None:
    for file in Path(str(stored_model.store), "tiny", "versions").iterdir():
        file.write_bytes(b"damaged")
    with pytest.raises(SteeringUnavailable):
        VideoReplica(stored_model)


def test_the_live_direction_comes_from_one_place(stored_model: ModelConfig, tiny_model: ModelConfig) -> None:
    both = stored_model.model_dump() | {"directions": tiny_model.directions}
    with pytest.raises(ValidationError, match="come from the store"):
        ModelConfig.model_validate(both)
    second = stored_model.model_dump() | {"name": "embedded", "store": "elsewhere"}
    with pytest.raises(ValidationError, match="one registry keeps one store"):
        ApplicationConfig.model_validate({"models": [stored_model.model_dump(), second]})


def test_a_canary_with_limits_is_declared_over_http(followed: tuple[TestClient, VideoReplica]) -> None:
    client, replica = followed
    publish(client, made(1).data)
    limits = {"min_generations": 50, "max_failed_rate": 0.05, "min_score": -1.0, "deadline_s": 600}
    pointer = move(client, "canary", version="2", fraction=0.25, auto=limits)
    assert {name: pointer["auto"]["limits"][name] for name in limits} == limits
    until(lambda: replica._steering.fraction == 0.25)
    assert replica._steering.watcher.snapshot.auto.limits.min_generations == 50
    (listed,) = client.get("/v1/directions", headers=ADMIN).json()["data"]
    assert listed["versions"][1]["auto"]["limits"]["max_failed_rate"] == 0.05
    move(client, "withdraw")


@pytest.mark.parametrize(
    ("auto", "expected"),
    [
        ({"min_generations": 50}, (400, "invalid_value")),
        ({"min_generations": 0, "max_failed_rate": 0.1}, (400, "invalid_value")),
        ({"min_generations": 50, "max_failed": 0.1}, (400, "unknown_parameter")),
    ],
)
def test_limits_that_say_too_little_are_refused_over_http(
    followed: tuple[TestClient, VideoReplica], auto: dict, expected: tuple[int, str]
) -> None:
    client, _ = followed
    publish(client, made(1).data)
    body = {"why": "a test", "version": "2", "fraction": 0.1, "auto": auto}
    assert error(client.post("/v1/directions/tiny/canary", json=body, headers=ADMIN))[:2] == expected


def test_a_judge_of_delivered_clips_tells_the_versions_apart(
    stored_model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "load", lambda config: Brightness())
    replica = VideoReplica(stored_model.model_copy(update={"judging": CONFIG}))
    with served(replica, application(stored_model, tmp_path / "clips")) as client:
        assert finished(client, create(client))["status"] == "completed"
        assert finished(client, create(client, steering={"strength": 1.0}))["status"] == "completed"
        until(lambda: replica._outputs.judged + replica._outputs.dropped == 2)
    replica._steering.watcher.close()
    counts = replica._steering.outcomes.counts()
    assert set(counts) == {ONE}
    assert (counts[ONE].steered, counts[ONE].judged) == (1, 1)  # who asked for a strength is not compared


class TestSigned:
    """A model whose configuration trusts a key."""

    @pytest.fixture
    def key(self, tmp_path: Path) -> Key:
        return Key(tmp_path, "key")

    @pytest.fixture
    def signed_model(self, stored_model: ModelConfig, tiny_model: ModelConfig, key: Key, tmp_path: Path) -> ModelConfig:
        """The stored model, its live version and its fixed file signed."""
        DirectionStore(str(stored_model.store)).publish(made(0), signature=key.sign(made(0)), **SAID)
        other = Direction.load(stored_model.directions["other"])
        other.save(tmp_path / "other.safetensors")
        (tmp_path / "other.safetensors.sig").write_bytes(key.sign(other))
        changes = {"directions": {"other": str(tmp_path / "other.safetensors")}, "trusted_keys": (f"{key.file}.pub",)}
        return stored_model.model_copy(update=changes)

    @pytest.fixture
    def signed(self, signed_model: ModelConfig, tmp_path: Path) -> Iterator[tuple[TestClient, VideoReplica]]:
        """A client of a gateway before a replica, both of which trust the key."""
        replica = VideoReplica(signed_model)
        config = application(signed_model, tmp_path / "clips", admin_key_sha256=hash_key(ADMIN_KEY))
        with served(replica, config) as client:
            yield client, replica
        replica._steering.watcher.close()

    def test_a_file_is_published_with_its_signature_and_the_key_is_listed(
        self, signed: tuple[TestClient, VideoReplica], key: Key
    ) -> None:
        client, replica = signed
        for number, part in (
            (2, {"files": {"signature": key.sign(made(1))}}),
            (3, {"data": {"signature": key.sign(made(2))}}),
        ):
            files = {"file": made(number - 1).data} | part.get("files", {})
            data = {"why": "a test"} | part.get("data", {})
            answer = client.post("/v1/directions", files=files, data=data, headers=ADMIN)
            assert answer.status_code == 200, answer.text
            move(client, "promote", version=str(number))
            live_everywhere(client, replica, made(number - 1).sha256)
        (listed,) = client.get("/v1/directions", headers=ADMIN).json()["data"]
        assert [(row["signed_by"], row["trusted"]) for row in listed["versions"]] == [([short(key.public)], True)] * 3

    @pytest.mark.parametrize("how", ["none", "other file", "text"])
    def test_one_without_a_right_signature_is_refused(
        self, signed: tuple[TestClient, VideoReplica], key: Key, how: str
    ) -> None:
        client, _ = signed
        parts = {"none": {}, "other file": {"signature": key.sign(made(2))}, "text": {"signature": b"yes"}}[how]
        answer = client.post("/v1/directions", files={"file": made(1).data} | parts, data={"why": "x"}, headers=ADMIN)
        assert error(answer)[:2] == (400, "direction_invalid")
        said = {"none": "is not signed", "other file": "is of another file", "text": "is no signature"}[how]
        assert said in answer.json()["error"]["message"]

    def test_what_somebody_else_put_into_the_store_is_neither_promoted_nor_served(
        self, signed: tuple[TestClient, VideoReplica], signed_model: ModelConfig
    ) -> None:
        client, _ = signed
        behind = DirectionStore(str(signed_model.store))
        behind.publish(made(1, "failed"), **SAID)
        answer = client.post(
            "/v1/directions/tiny/promote", json={"why": "x", "version": "2", "override": "please"}, headers=ADMIN
        )
        assert error(answer)[:2] == (400, "direction_invalid")
        assert "Version" in answer.json()["error"]["message"]
        behind.promote("tiny", "2", override="please", **SAID)
        assert finished(client, create(client))["steering"]["sha256"] == ONE
        with pytest.raises(SteeringUnavailable, match="is not signed"):
            VideoReplica(signed_model)

    def test_a_fixed_file_without_one_stops_the_application_before_it_starts(
        self, signed_model: ModelConfig, tmp_path: Path
    ) -> None:
        (tmp_path / "other.safetensors.sig").unlink()
        for starts in (serve_model, VideoReplica, lambda model: build(application(model, tmp_path))):
            with pytest.raises(SignatureError, match=r"other\.safetensors is not signed"):
                starts(signed_model)

    def test_the_replicas_get_the_keys_themselves_and_not_their_paths(
        self, signed_model: ModelConfig, key: Key, tmp_path: Path
    ) -> None:
        assert resolved(application(signed_model, tmp_path)).models[0].trusted_keys == (key.public,)
