"""Who asks, and what is asked twice: keys, priorities, idempotency, other origins, and jobs whose time is over."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from reins_serve.serving.admission import Submission, admit
from reins_serve.serving.auth import identify
from reins_serve.serving.config import ApplicationConfig, ModelConfig, hash_key
from reins_serve.serving.gateway import Gateway
from reins_serve.serving.jobs import Job
from reins_serve.serving.replica import VideoReplica
from reins_serve.serving.routes import create_app
from reins_serve.serving.schema import CreateVideo
from reins_serve.serving.served import serve_model
from tests.serving.conftest import ADMIN_KEY
from tests.serving.local import LocalReplicas, application, create, error, finished, keys, served

MINE, YOURS, ADMIN = ({"Authorization": f"Bearer {key}"} for key in ("mine", "yours", ADMIN_KEY))


@pytest.fixture
def keyed(replica: VideoReplica, tiny_model: ModelConfig, tmp_path: Path) -> Iterator[TestClient]:
    """A client of a gateway that wants a key and knows two origins."""
    config = application(
        tiny_model,
        tmp_path,
        api_keys=keys("mine", "yours"),
        admin_key_sha256=hash_key(ADMIN_KEY),
        cors_origins=["https://studio.example", "http://localhost:3000"],
    )
    with served(replica, config) as made:
        yield made


def post(client: TestClient, key: str, owner: dict[str, str] = MINE, **body: object) -> Any:
    return client.post("/v1/videos", json={"prompt": "a clip"} | body, headers=owner | {"Idempotency-Key": key})


def test_the_same_request_under_the_same_key_is_one_job(keyed: TestClient) -> None:
    first = post(keyed, "k1").json()
    again = post(keyed, "k1").json()
    assert (again["id"], again["seed"]) == (first["id"], first["seed"])
    assert len(keyed.get("/v1/videos", headers=MINE).json()["data"]) == 1
    assert post(keyed, "k2").json()["id"] != first["id"]
    assert create(keyed, MINE, prompt="a clip")["id"] != first["id"]


def test_how_a_request_is_written_makes_no_difference_to_its_key(keyed: TestClient) -> None:
    first = post(keyed, "k", seconds=0.5, steering={"strength": 0.75}, seed=3)
    form = {"seed": "3", "steering[strength]": "0.75", "seconds": "0.5", "prompt": "a clip"}
    again = keyed.post("/v1/videos", data=form, headers=MINE | {"Idempotency-Key": "k"})
    assert again.json()["id"] == first.json()["id"]


def test_another_request_under_a_used_key_is_a_conflict(keyed: TestClient) -> None:
    post(keyed, "k")
    for change in ({"prompt": "another clip"}, {"seed": 4}, {"steering": {"strength": 0.75}}):
        assert error(post(keyed, "k", **change))[:2] == (409, "idempotency_conflict")
    assert len(keyed.get("/v1/videos", headers=MINE).json()["data"]) == 1


def test_idempotency_keys_belong_to_their_owner(keyed: TestClient) -> None:
    mine = post(keyed, "k").json()
    yours = post(keyed, "k", YOURS, prompt="another clip")
    assert yours.status_code == 200
    assert yours.json()["id"] != mine["id"]


@pytest.mark.parametrize("key", ["", "two words", "x" * 256, "ä".encode().decode("latin-1")])
def test_an_idempotency_key_that_is_none_is_refused(keyed: TestClient, key: str) -> None:
    headers = MINE | {"Idempotency-Key": key.encode("latin-1")}  # type: ignore[dict-item]
    answer = keyed.post("/v1/videos", json={"prompt": "a clip"}, headers=headers)
    assert error(answer) == (400, "invalid_value", "idempotency-key")


def test_jobs_are_seen_and_touched_by_their_owner_alone(keyed: TestClient) -> None:
    video = finished(keyed, create(keyed, MINE), MINE)
    path = f"/v1/videos/{video['id']}"
    for other in (YOURS, ADMIN):
        assert keyed.get("/v1/videos", headers=other).json()["data"] == []
        for place in (path, f"{path}/content", f"{path}/events"):
            assert error(keyed.get(place, headers=other))[:2] == (404, "video_not_found")
        assert error(keyed.delete(path, headers=other))[:2] == (404, "video_not_found")
        assert error(keyed.get("/v1/videos", params={"after": video["id"]}, headers=other))[0] == 400
    for place in ("/v1/videos", path, f"{path}/content", f"{path}/events", "/v1/models"):
        assert error(keyed.get(place))[:2] == (401, "invalid_api_key")
    assert keyed.get(f"{path}/content", headers=MINE).status_code == 200


def test_a_job_gets_the_priority_of_its_key(tiny_model: ModelConfig, tmp_path: Path) -> None:
    config = application(
        tiny_model,
        tmp_path,
        api_keys=[{"name": "batch", "sha256": hash_key("one"), "priority": -1}, *keys("studio")],
    )
    model = serve_model(tiny_model)

    def job(key: str) -> Job:
        asked = Submission(CreateVideo(prompt="a clip"))
        return asyncio.run(admit(asked, model, config, identify(f"Bearer {key}", config)))

    assert (job("one").owner, job("one").priority) == ("batch", -1)
    assert (job("studio").owner, job("studio").priority) == ("studio", 0)


@pytest.mark.parametrize(
    "entries",
    [
        [*keys("a"), {"name": "a", "sha256": hash_key("b")}],
        [*keys("a"), {"name": "b", "sha256": hash_key("a")}],
        keys("admin"),
        keys("everybody"),
        [{"name": "a/b", "sha256": hash_key("a")}],
        [{"name": "a", "sha256": "the key itself"}],
    ],
    ids=["same name", "same key", "admin", "everybody", "no name", "no digest"],
)
def test_keys_that_cannot_be_told_apart_are_refused(entries: list[dict[str, str]], tiny_model: ModelConfig) -> None:
    with pytest.raises(ValidationError):
        ApplicationConfig.model_validate({"models": [tiny_model], "api_keys": entries})


def test_pages_of_listed_origins_may_ask_and_others_may_not(keyed: TestClient) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,idempotency-key"}
    for origin in ("https://studio.example", "http://localhost:3000"):
        answer = keyed.options("/v1/videos", headers=asks | {"Origin": origin})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
        answer = keyed.get("/v1/models", headers={"Origin": origin})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, origin)
    answer = keyed.options("/v1/videos", headers=asks | {"Origin": "https://elsewhere.example"})
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in keyed.get("/v1/models", headers={"Origin": "https://x.example"}).headers


def test_without_listed_origins_no_page_may_ask(client: TestClient) -> None:
    answer = client.get("/v1/models", headers={"Origin": "https://studio.example"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", ["studio.example", "https://studio.example/path", "https://*.example", ""])
def test_what_is_no_origin_is_refused(origin: str, tiny_model: ModelConfig) -> None:
    with pytest.raises(ValidationError):
        ApplicationConfig.model_validate({"models": [tiny_model], "cors_origins": [origin]})


def test_of_a_job_whose_time_is_over_only_that_is_told(
    replica: VideoReplica, tiny_model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = Gateway(application(tiny_model, tmp_path), {"tiny": LocalReplicas(replica)})
    get = gateway._store.get

    async def later(job_id: str) -> Job | None:
        job = await get(job_id)
        return job and replace(job, status="expired")

    with TestClient(create_app(gateway)) as client:
        job = finished(client, post(client, "k", {}).json())
        monkeypatch.setattr(gateway._store, "get", later)
        path = f"/v1/videos/{job['id']}"
        for place in (path, f"{path}/content", f"{path}/events"):
            assert error(client.get(place))[:2] == (410, "video_expired")
        assert error(client.delete(path))[:2] == (410, "video_expired")


def test_a_job_says_when_it_will_expire(
    replica: VideoReplica, tiny_model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = Gateway(application(tiny_model, tmp_path), {"tiny": LocalReplicas(replica)})
    get = gateway._store.get

    async def dated(job_id: str) -> Job | None:
        job = await get(job_id)
        return job and replace(job, expires_at=1_900_000_000.5)

    with TestClient(create_app(gateway)) as client:
        job = create(client)
        assert job["expires_at"] is None
        monkeypatch.setattr(gateway._store, "get", dated)
        assert client.get(f"/v1/videos/{job['id']}").json()["expires_at"] == 1_900_000_000
