"""The application on Ray Serve, over HTTP, with the embedded model."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
import ray
import torch
from ray.util import list_named_actors

from reins_serve.errors import ReinsError
from reins_serve.models import catalog, loading
from reins_serve.models.generation import generate, request
from reins_serve.models.video import write_mp4
from reins_serve.serving.app import build
from reins_serve.serving.config import ModelConfig
from tests.serving.conftest import ADMIN_KEY
from tests.serving.local import create, error, finished, metric, until

ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
PROMPT = "a red square moving left"


def frames(mp4: bytes | Path) -> np.ndarray:
    """The frames of a clip, uint8 `[T, H, W, 3]`."""
    source: Any = io.BytesIO(mp4) if isinstance(mp4, bytes) else str(mp4)
    with av.open(source) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def content(http: httpx.Client, video: dict[str, Any]) -> bytes:
    answer = http.get(f"/v1/videos/{video['id']}/content")
    assert answer.status_code == 200
    return answer.content


def test_the_server_is_ready_once_its_steering_is_proved(http: httpx.Client) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    until(lambda: http.get("/readyz").json() == {"status": "ready"})  # replicas are counted once a second
    model = http.get("/v1/models/embedded").json()
    assert model["direction"]["operation"] == "setpoint"


def test_a_request_becomes_a_steered_playable_clip(http: httpx.Client) -> None:
    video = finished(http, create(http, prompt=PROMPT, seed=1))
    assert video["status"] == "completed"
    assert video["steering"]["steered"] and video["steering"]["proved"]
    assert video["steering"]["sha256"] == http.get("/v1/models/embedded").json()["direction"]["sha256"]
    assert frames(content(http, video)).shape[0] == video["num_frames"] == 8
    version = video["steering"]["version"]
    assert metric(http, f'reins_steered_generations_total{{model="embedded",version="{version}"}}') >= 1


def test_a_clip_that_is_off_is_that_of_a_pipeline_never_touched(http: httpx.Client, tmp_path: Path) -> None:
    off = finished(http, create(http, ADMIN, prompt=PROMPT, seed=3, steering={"policy": "off"}))
    on = finished(http, create(http, prompt=PROMPT, seed=3))
    assert off["steering"]["reason"] == "admin"
    entry = catalog.get("embedded")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        (clip,) = generate(loading.load(entry), entry, [request(entry, PROMPT, 3)])
    finally:
        torch.set_num_threads(threads)
    write_mp4(clip, tmp_path / "bare.mp4", entry.fps)
    bare = frames(tmp_path / "bare.mp4")
    assert np.array_equal(frames(content(http, off)), bare)
    assert not np.array_equal(frames(content(http, on)), bare)


def test_off_is_refused_without_the_admin_key(http: httpx.Client) -> None:
    answer = http.post("/v1/videos", json={"prompt": PROMPT, "steering": {"policy": "off"}})
    assert error(answer) == (403, "steering_required", "steering")
    assert error(http.post("/v1/videos", json={"prompt": PROMPT, "sped": 1})) == (400, "unknown_parameter", "sped")


def test_jobs_that_wait_share_a_call_and_are_counted_once(http: httpx.Client) -> None:
    completed, together = 'reins_generations_total{model="embedded",outcome="completed"}', "reins_batch_size"
    before = metric(http, completed), _shared(http, together)
    jobs = [create(http, num_inference_steps=40)] + [create(http, seed=seed) for seed in range(6)]
    videos = [finished(http, job) for job in jobs]
    assert all(video["status"] == "completed" and video["steering"]["proved"] for video in videos)
    assert metric(http, completed) == before[0] + 7
    assert _shared(http, together) > before[1]


def _shared(http: httpx.Client, name: str) -> float:
    """How many clips shared their pipeline call with others."""
    labels = 'model="embedded"'
    return metric(http, f"{name}_count{{{labels}}}") - metric(http, f'{name}_bucket{{le="1.0",{labels}}}')


def test_a_deleted_job_frees_its_replica(http: httpx.Client) -> None:
    cancelled = 'reins_generations_total{model="embedded",outcome="cancelled"}'
    before = metric(http, cancelled)
    job = create(http, num_inference_steps=100)
    until(lambda: http.get(f"/v1/videos/{job['id']}").json()["status"] == "in_progress")
    assert http.delete(f"/v1/videos/{job['id']}").status_code == 200
    assert http.get(f"/v1/videos/{job['id']}").status_code == 404
    assert finished(http, create(http))["status"] == "completed"
    assert metric(http, cancelled) == before + 1


def test_the_openai_client_creates_polls_and_downloads(server: str) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none needed here")
    video = client.videos.create_and_poll(
        model="embedded",
        prompt=PROMPT,
        seconds="1",
        size="32x32",
        poll_interval_ms=50,
        extra_body={"seed": 5, "steering": {"policy": "add"}},
    )
    assert video.status == "completed"
    assert video.model_extra["steering"]["operation"] == "add"
    assert frames(client.videos.download_content(video.id).read()).shape[0] == 8
    second = client.videos.create_and_poll(model="embedded", prompt=PROMPT, poll_interval_ms=50)
    pages = [item.id for item in client.videos.list(limit=1)]  # the client asks for page after page
    assert pages[:2] == [second.id, video.id]
    assert client.videos.retrieve(video.id).id == video.id
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)
    with pytest.raises(openai.BadRequestError, match="32x32"):
        client.videos.create(prompt=PROMPT, size="720x1280")


def test_a_job_whose_replica_dies_is_done_by_the_next_one(http: httpx.Client) -> None:
    job = create(http, num_inference_steps=100)
    until(lambda: http.get(f"/v1/videos/{job['id']}").json()["status"] == "in_progress")
    (name,) = [actor["name"] for actor in list_named_actors(all_namespaces=True) if "#model-embedded#" in actor["name"]]
    ray.kill(ray.get_actor(name, namespace="serve"))
    video = finished(http, job)
    assert (video["status"], video["progress"]) == ("completed", 100)
    until(lambda: http.get("/readyz").status_code == 200)


def test_a_wrong_configuration_is_refused_before_anything_starts(embedded_model: ModelConfig) -> None:
    with pytest.raises(ReinsError, match="no model"):
        build({"models": [embedded_model.model_copy(update={"name": "none"})]})


def test_building_needs_no_cluster() -> None:
    """`build` only reads files, so a configuration can be checked where no Ray runs."""
    code = (
        "import ray, yaml; from reins_serve.serving.app import build;"
        "build(yaml.safe_load(open('deployments/embedded.yaml'))['applications'][0]['args']);"
        "assert not ray.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, timeout=200)
