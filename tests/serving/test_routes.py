"""The HTTP API over a real gateway and a real replica of a tiny model, in one process."""

import re
import threading
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
from starlette.testclient import TestClient

from reins_serve.serving import replica as replica_module
from reins_serve.serving.config import ModelConfig, hash_key
from reins_serve.serving.http_errors import STATUS
from reins_serve.serving.replica import VideoReplica
from tests.serving.conftest import ADMIN_KEY
from tests.serving.local import application, create, error, finished, keys, metric, served, until

ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


def test_a_job_becomes_a_playable_clip_that_says_how_it_was_steered(client: TestClient) -> None:
    job = create(client, seed=7, metadata={"scene": "first"})
    assert (job["status"], job["progress"], job["object"]) == ("queued", 0, "video")
    video = finished(client, job)
    assert (video["status"], video["progress"], video["error"]) == ("completed", 100, None)
    assert (video["seed"], video["size"], video["seconds"], video["metadata"]) == (
        7,
        "16x16",
        "0.5",
        {"scene": "first"},
    )
    assert video["created_at"] <= video["started_at"] <= video["completed_at"]
    steering = video["steering"]
    assert steering["steered"] and steering["proved"]
    assert steering["applied"] == steering["planned"] == 4
    assert (steering["version"], steering["strength"], steering["steps_steered"]) == ("1", 0.5, 2)
    answer = client.get(f"/v1/videos/{job['id']}/content")
    assert answer.headers["content-type"] == "video/mp4"
    path = _save(answer)
    with av.open(path) as container:
        assert len(list(container.decode(video=0))) == video["num_frames"] == 4
        assert container.metadata["reins_steered"] == "true"
        assert container.metadata["reins_direction_sha256"] == steering["sha256"]


def test_content_has_variants_and_ranges(client: TestClient) -> None:
    address = f"/v1/videos/{finished(client, create(client))['id']}/content"
    whole = client.get(address).content
    part = client.get(address, headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, whole[4:8])
    assert client.get(address, headers={"Range": "bytes=-5"}).content == whole[-5:]
    beyond = client.get(address, headers={"Range": f"bytes={len(whole)}-"})
    assert error(beyond) == (416, "range_not_satisfiable", "Range")
    assert beyond.headers["content-range"] == f"bytes */{len(whole)}"
    for ignored in ("", "bytes=5-2", "bytes=0-1,3-4", "octets=0-1", "bytes=-", f"bytes=0-{'9' * 5000}", "bytes=٣-"):
        answer = client.get(address, headers={"Range": ignored.encode()})
        assert (answer.status_code, answer.content) == (200, whole), ignored
    tag = part.headers["etag"]
    assert client.get(address, headers={"Range": "bytes=4-7", "If-Range": tag}).status_code == 206
    assert client.get(address, headers={"Range": "bytes=4-7", "If-Range": '"old"'}).status_code == 200
    for variant in ("thumbnail", "spritesheet"):
        answer = client.get(address, params={"variant": variant})
        assert answer.headers["content-type"] == "image/png"
        assert answer.content.startswith(b"\x89PNG")
    assert error(client.get(address, params={"variant": "sound"})) == (400, "invalid_value", "variant")
    assert error(client.get(address, params={"variants": "video"})) == (400, "unknown_parameter", "variants")


def test_a_form_says_the_same_as_json(client: TestClient) -> None:
    fields = {"prompt": "a clip", "steering[strength]": "0.75", "seed": "3", "size": "16x16", "metadata[scene]": "x"}
    for form in ({"files": [(key, (None, value)) for key, value in fields.items()]}, {"data": fields}):
        answer = client.post("/v1/videos", **form)  # type: ignore[arg-type]
        assert answer.status_code == 200, answer.text
        made = answer.json()
        assert (made["steering"]["strength"], made["seed"], made["metadata"]) == (0.75, 3, {"scene": "x"})


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, (400, "missing_required_parameter", "prompt")),
        ({"prompt": ""}, (400, "invalid_value", "prompt")),
        ({"prompt": "a" * 2001}, (400, "invalid_value", "prompt")),
        ({"prompt": "a", "colour": "red"}, (400, "unknown_parameter", "colour")),
        ({"prompt": "a", "steering": {"mode": "x"}}, (400, "unknown_parameter", "steering.mode")),
        ({"prompt": "a", "<b>": 1}, (400, "unknown_parameter", None)),
        ({"prompt": "a", "model": "none"}, (404, "model_not_found", "model")),
        ({"prompt": "a", "size": "17x16"}, (400, "unsupported_size", "size")),
        ({"prompt": "a", "size": "big"}, (400, "invalid_value", "size")),
        ({"prompt": "a", "num_frames": 9}, (400, "too_many_frames", "num_frames")),
        ({"prompt": "a", "seconds": "2"}, (400, "too_many_frames", "num_frames")),
        ({"prompt": "a", "seconds": "long"}, (400, "invalid_value", "seconds")),
        ({"prompt": "a", "seconds": 0.5, "num_frames": 4}, (400, "invalid_value", "num_frames")),
        ({"prompt": "a", "seed": True}, (400, "invalid_value", "seed")),
        ({"prompt": "a", "seed": -1}, (400, "invalid_value", "seed")),
        ({"prompt": "a", "fps": 24}, (400, "invalid_value", "fps")),
        ({"prompt": "a", "num_inference_steps": 1000}, (400, "invalid_value", "num_inference_steps")),
        ({"prompt": "a", "input_reference": {"image_url": "data:,"}}, (400, "invalid_value", "input_reference")),
        ({"prompt": "a", "steering": {"strength": 0.1}}, (400, "invalid_value", "steering.strength")),
        ({"prompt": "a", "steering": {"strength": -1}}, (400, "invalid_value", "steering.strength")),
        ({"prompt": "a", "steering": {"strength": 99}}, (400, "invalid_value", "steering.strength")),
        ({"prompt": "a", "steering": {"policy": "none"}}, (400, "invalid_value", "steering.policy")),
        ({"prompt": "a", "steering": {"policy": "secret"}}, (400, "invalid_value", "steering.policy")),
        ({"prompt": "a", "steering": {"policy": "off"}}, (403, "steering_required", "steering")),
        ({"prompt": "a", "steering": {"strength": 0}}, (403, "steering_required", "steering")),
    ],
    ids=str,
)
def test_a_wrong_request_is_refused_and_stores_nothing(
    client: TestClient, body: dict[str, Any], expected: tuple[int, str, str | None]
) -> None:
    assert error(client.post("/v1/videos", json=body)) == expected
    assert client.get("/v1/videos").json()["data"] == []


def test_an_error_does_not_repeat_what_was_sent(client: TestClient) -> None:
    secret = "5ecret-w0rd"
    for body in ({"prompt": 1, secret + "<>": 2}, {"prompt": "a", "size": secret}, {"prompt": "a", "model": secret}):
        assert secret not in client.post("/v1/videos", json=body).text
    assert secret not in client.get(f"/v1/videos/{secret}").text


def test_bodies_that_cannot_be_read_are_refused(client: TestClient) -> None:
    json = {"content-type": "application/json"}
    assert error(client.post("/v1/videos", content=b"{", headers=json)) == (400, "invalid_value", None)
    assert error(client.post("/v1/videos", content=b"[]", headers=json))[:2] == (400, "invalid_value")
    assert error(client.post("/v1/videos", content=b"prompt", headers={"content-type": "text/plain"}))[0] == 400
    assert error(client.post("/v1/videos", content=b"x" * (1 << 20 | 1), headers=json))[:2] == (
        413,
        "payload_too_large",
    )
    bad = {"content-type": "multipart/form-data"}
    assert error(client.post("/v1/videos", content=b"x", headers=bad))[:2] == (400, "invalid_value")
    twice = [("prompt", (None, "a")), ("prompt", (None, "b"))]
    assert error(client.post("/v1/videos", files=twice))[:2] == (400, "invalid_value")


def test_unknown_addresses_and_methods_have_the_same_shape_of_error(client: TestClient) -> None:
    assert error(client.get("/v1/nothing")) == (404, "not_found", None)
    answer = client.put("/v1/videos")
    assert error(answer) == (405, "method_not_allowed", None)
    assert answer.headers["allow"] == "GET, POST"
    assert error(client.get("/v1/videos/video_0")) == (404, "video_not_found", "id")
    assert error(client.get("/v1/models/none")) == (404, "model_not_found", "model")


def test_off_needs_the_admin_key_and_is_marked_and_counted(client: TestClient) -> None:
    video = finished(client, create(client, ADMIN, steering={"policy": "off"}))
    steering = video["steering"]
    assert (steering["steered"], steering["proved"], steering["reason"]) == (False, False, "admin")
    assert (steering["applied"], steering["version"]) == (0, None)
    assert metric(client, 'reins_unsteered_generations_total{model="tiny",reason="admin"}') == 1
    assert metric(client, 'reins_steered_generations_total{model="tiny",version="1"}') == 0
    wrong = {"Authorization": f"Bearer {ADMIN_KEY}x"}
    answer = client.post("/v1/videos", json={"prompt": "a", "steering": {"policy": "off"}}, headers=wrong)
    assert error(answer)[:2] == (403, "steering_required")


def test_policies_choose_a_direction_and_secret_ones_need_the_admin_key(client: TestClient) -> None:
    assert finished(client, create(client, steering={"policy": "other"}))["steering"]["direction"] == "other"
    assert finished(client, create(client, ADMIN, steering={"policy": "secret"}))["steering"]["direction"] == "other"


def test_waiting_jobs_join_one_call_each_with_its_own_seed_and_steering(
    client: TestClient, hold: threading.Event
) -> None:
    first = create(client)
    until(lambda: client.get(f"/v1/videos/{first['id']}").json()["status"] == "in_progress")
    jobs = [
        create(client, seed=1),
        create(client, seed=1, steering={"strength": 1.0}),
        create(client, ADMIN, seed=1, steering={"policy": "off"}),
        create(client, seed=2),
    ]
    hold.set()
    videos = [finished(client, job) for job in jobs]
    assert metric(client, 'reins_batch_size_bucket{le="1.0",model="tiny"}') == 1
    assert metric(client, 'reins_batch_size_bucket{le="2.0",model="tiny"}') == 1
    assert metric(client, 'reins_batch_size_bucket{le="4.0",model="tiny"}') == 5
    assert [video["steering"]["strength"] for video in videos] == [0.5, 1.0, 0.0, 0.5]
    assert [video["steering"]["steered"] for video in videos] == [True, True, False, True]
    contents = {client.get(f"/v1/videos/{job['id']}/content").content for job in jobs}
    assert len(contents) == 4


def test_other_shapes_do_not_join(client: TestClient, hold: threading.Event) -> None:
    jobs = [create(client, num_frames=frames) for frames in (4, 5, 4, 5)]
    hold.set()
    assert [finished(client, job)["num_frames"] for job in jobs] == [4, 5, 4, 5]
    assert metric(client, 'reins_batch_size_bucket{le="2.0",model="tiny"}') == 4
    assert metric(client, 'reins_frames_total{model="tiny"}') == 18


def test_a_running_job_stops_at_the_next_step_when_it_is_deleted(
    client: TestClient, replica: VideoReplica, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps, reached, go, stopped = [], threading.Event(), threading.Event(), threading.Event()
    cancel = replica._batcher.cancel

    def step(seconds: float) -> None:
        steps.append(seconds)
        reached.set()
        go.wait()

    def cancelled(ticket: Any) -> None:
        cancel(ticket)
        stopped.set()

    monkeypatch.setattr(replica._metrics, "denoise_step", step)
    monkeypatch.setattr(replica._batcher, "cancel", cancelled)
    job = create(client, num_inference_steps=50)
    reached.wait()
    assert client.get(f"/v1/videos/{job['id']}").json()["status"] == "in_progress"
    assert client.delete(f"/v1/videos/{job['id']}").json() == {
        "id": job["id"],
        "object": "video.deleted",
        "deleted": True,
    }
    stopped.wait()
    go.set()
    assert finished(client, create(client))["status"] == "completed"
    assert len(steps) == 1 + 4
    assert error(client.get(f"/v1/videos/{job['id']}"))[:2] == (404, "video_not_found")
    assert metric(client, 'reins_generations_total{model="tiny",outcome="cancelled"}') == 1
    assert not list(tmp_path.glob(f"{job['id']}*"))


def test_a_deleted_row_of_a_batch_vanishes_and_the_others_are_finished(
    client: TestClient, hold: threading.Event, tmp_path: Path
) -> None:
    blocker = create(client)
    until(lambda: client.get(f"/v1/videos/{blocker['id']}").json()["status"] == "in_progress")
    gone, kept = create(client, seed=1), create(client, seed=2)
    assert client.delete(f"/v1/videos/{gone['id']}").status_code == 200
    hold.set()
    assert finished(client, kept)["status"] == "completed"
    assert error(client.get(f"/v1/videos/{gone['id']}/content"))[:2] == (404, "video_not_found")
    assert not list(tmp_path.glob(f"{gone['id']}*"))


def test_deleting_a_finished_job_removes_its_files(client: TestClient, tmp_path: Path) -> None:
    job = finished(client, create(client))
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {f"{job['id']}-1"}
    client.delete(f"/v1/videos/{job['id']}")
    assert list(tmp_path.iterdir()) == []
    assert error(client.delete(f"/v1/videos/{job['id']}"))[:2] == (404, "video_not_found")


def test_content_is_refused_until_it_is_there(client: TestClient, hold: threading.Event) -> None:
    job = create(client)
    assert error(client.get(f"/v1/videos/{job['id']}/content"))[:2] == (409, "video_not_ready")
    hold.set()
    finished(client, job)
    assert client.get(f"/v1/videos/{job['id']}/content").status_code == 200


def test_progress_is_told_on_the_way(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_module, "PROGRESS_INTERVAL_S", 0.0)
    job = create(client, num_inference_steps=100)
    seen = []

    def over() -> bool:
        video = client.get(f"/v1/videos/{job['id']}").json()
        seen.append((video["status"], video["progress"]))
        return video["status"] == "completed"

    until(over)
    values = [progress for _, progress in seen]
    assert values == sorted(values)
    assert any(0 < progress < 100 for progress in values)
    assert all((progress == 100) == (status == "completed") for status, progress in seen)


def test_a_full_queue_is_refused_with_the_time_to_wait(client: TestClient, hold: threading.Event) -> None:
    running = create(client)
    until(lambda: client.get(f"/v1/videos/{running['id']}").json()["status"] == "in_progress")
    queued = [create(client) for _ in range(8)]
    assert [client.get(f"/v1/videos/{job['id']}").json()["queue_position"] for job in queued] == list(range(8))
    assert metric(client, 'reins_requests_waiting{model="tiny"}') == 8
    assert metric(client, 'reins_requests_running{model="tiny"}') == 1
    answer = client.post("/v1/videos", json={"prompt": "one more"})
    assert error(answer)[:2] == (429, "queue_full")
    assert int(answer.headers["retry-after"]) > 0
    hold.set()
    assert all(finished(client, job)["status"] == "completed" for job in queued)


def test_jobs_are_listed_by_pages(client: TestClient) -> None:
    jobs = [create(client)["id"] for _ in range(3)]
    page = client.get("/v1/videos", params={"limit": 2}).json()
    assert ([item["id"] for item in page["data"]], page["has_more"]) == ([jobs[2], jobs[1]], True)
    assert (page["first_id"], page["last_id"]) == (jobs[2], jobs[1])
    page = client.get("/v1/videos", params={"limit": 2, "after": page["last_id"]}).json()
    assert ([item["id"] for item in page["data"]], page["has_more"]) == ([jobs[0]], False)
    page = client.get("/v1/videos", params={"order": "asc"}).json()
    assert [item["id"] for item in page["data"]] == jobs
    assert error(client.get("/v1/videos", params={"limit": 0})) == (400, "invalid_value", "limit")
    assert error(client.get("/v1/videos", params={"after": "video_0"})) == (400, "invalid_value", "after")
    assert error(client.get("/v1/videos", params={"before": "x"})) == (400, "unknown_parameter", "before")


def test_models_say_what_they_make_and_what_steers_them(client: TestClient) -> None:
    model = client.get("/v1/models").json()["data"][0]
    assert model == client.get("/v1/models/tiny").json()
    assert (model["id"], model["object"], model["size"], model["fps"]) == ("tiny", "model", "16x16", 8)
    assert (model["direction"]["version"], model["direction"]["serving_strength"]) == ("1", 0.5)
    assert model["policies"] == ["default", "other"]  # the secret one is not told


def test_a_job_belongs_to_its_key(replica: VideoReplica, tiny_model: ModelConfig, tmp_path: Path) -> None:
    config = application(tiny_model, tmp_path, api_keys=keys("mine", "yours"))
    mine, yours = ({"Authorization": f"Bearer {key}"} for key in ("mine", "yours"))
    with served(replica, config) as client:
        for wrong in ({}, {"Authorization": "Bearer nobody's"}, {"Authorization": "mine"}):
            assert error(client.get("/v1/videos", headers=wrong))[:2] == (401, "invalid_api_key")
        assert client.get("/healthz").status_code == 200
        job = create(client, mine)
        assert client.get(f"/v1/videos/{job['id']}", headers=mine).status_code == 200
        assert client.get("/v1/videos", headers=yours).json()["data"] == []
        for call in (client.get, client.delete):
            assert error(call(f"/v1/videos/{job['id']}", headers=yours))[:2] == (404, "video_not_found")
        off = client.post("/v1/videos", json={"prompt": "a", "steering": {"policy": "off"}}, headers=mine)
        assert error(off)[:2] == (403, "steering_required")


@pytest.mark.parametrize("told", ["owner", "admin"])
def test_how_near_a_prompt_came_is_told_to_its_owner_or_to_the_admin_alone(
    replica: VideoReplica, tiny_model: ModelConfig, tmp_path: Path, told: str
) -> None:
    config = application(tiny_model, tmp_path, admin_key_sha256=hash_key(ADMIN_KEY), steering_figures=told)
    figures = ("displacement", "score", "moved")
    with served(replica, config) as client:
        job = finished(client, create(client))
        answers = [job, client.get("/v1/videos").json()["data"][0]]
        for steering in (answer["steering"] for answer in answers):
            assert steering["proved"] and steering["applied"] == 4
            assert [steering[name] is None for name in figures] == [told == "admin"] * 3
        seen = client.get(f"/v1/videos/{job['id']}", headers=ADMIN).json()["steering"]
        assert None not in [seen[name] for name in figures]


def test_the_openapi_document_describes_the_body(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    body = document["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    fields = {kind: schemas[content["schema"]["$ref"].rpartition("/")[2]] for kind, content in body.items()}
    assert all(field["additionalProperties"] is False for field in fields.values())
    assert "input_reference" in fields["application/json"]["properties"]
    form = fields["multipart/form-data"]["properties"]
    assert form["input_reference"]["contentMediaType"] == "application/octet-stream"
    assert {"steering[strength]", "input_reference[image_url]"} <= set(form)


def _save(answer: httpx.Response) -> Any:
    import io

    return io.BytesIO(answer.content)


def test_the_documentation_lists_every_error_code() -> None:
    text = Path("docs/api.md").read_text()
    rows = re.findall(r"^\| (\d{3}) \| (.*) \|$", text, re.MULTILINE)
    listed = {code: int(status) for status, cell in rows for code in re.findall(r"`([a-z_]+)`", cell)}
    assert listed == STATUS
