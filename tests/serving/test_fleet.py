"""The application on Ray Serve with two gateways and two models that Serve's autoscaler scales by their backlog."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve
from ray.serve.schema import ReplicaState

from reins_serve.serving.app import build
from reins_serve.serving.config import ApplicationConfig, ModelConfig
from tests import tiny
from tests.serving.databases import opened
from tests.serving.local import create, finished, until

STARTS_S = 400  # replicas load their libraries, one beside the other
DELAYS = {"upscale_delay_s": 0, "downscale_delay_s": 1}


def tiny_entry(source: str) -> dict[str, Any]:
    """The tiny model's catalogue entry, as a configuration says it to processes that know no test."""
    entry = tiny.ENTRY
    return {name: getattr(entry, name) for name in entry.__dataclass_fields__} | {"source": source}


@pytest.fixture(scope="module")
def config(
    embedded_model: ModelConfig, tiny_model: ModelConfig, tmp_path_factory: pytest.TempPathFactory
) -> ApplicationConfig:
    folder = tmp_path_factory.mktemp("fleet")
    source = str(Path(tiny_model.directions["live"]).parent / "model")
    embedded = embedded_model.model_dump(exclude={"num_replicas"}) | {
        "num_cpus": 0,
        "max_batch_size": 2,
        "autoscaling": {"min_replicas": 1, "max_replicas": 2, "target_per_replica": 2, **DELAYS},
    }
    small = tiny_model.model_dump(exclude={"num_replicas"}) | {
        "entry": tiny_entry(source),
        "num_cpus": 0,
        "autoscaling": {"min_replicas": 0, "max_replicas": 1, **DELAYS},
    }
    return ApplicationConfig.model_validate(
        {"models": [embedded, small], "output_dir": str(folder / "clips"), "num_gateways": 2}
    )


@pytest.fixture(scope="module")
def fleet(server: str, config: ApplicationConfig) -> Iterator[httpx.Client]:
    """A client of the application, whose requests Serve spreads over the gateways."""
    serve.run(build(config), name="fleet", route_prefix="/fleet")
    try:
        with httpx.Client(base_url=f"{server}/fleet", timeout=60) as http:
            yield http
    finally:
        serve.delete("fleet")


def running(deployment: str) -> int:
    return serve.status().applications["fleet"].deployments[deployment].replica_states.get(ReplicaState.RUNNING, 0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_any_gateway_answers_for_any_job_of_any_model(fleet: httpx.Client) -> None:
    assert running("gateway") == 2
    until(lambda: fleet.get("/readyz").status_code == 200)
    assert running("model-tiny") == 0  # and ready all the same
    jobs = [create(fleet, model=model) for model in ("embedded", "tiny") for _ in range(3)]
    for job in jobs:
        video = finished(fleet, job, patience_s=STARTS_S)
        assert (video["status"], video["model"]) == ("completed", job["model"])
        for _ in range(4):
            assert fleet.get(f"/v1/videos/{job['id']}").json() == video
            assert fleet.get(f"/v1/videos/{job['id']}/content").status_code == 200
        listed = fleet.get("/v1/videos", params={"limit": 100}).json()["data"]
        assert job["id"] in [item["id"] for item in listed]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.anyio
async def test_models_are_scaled_up_and_down_again_under_load_and_nothing_is_lost(
    fleet: httpx.Client, config: ApplicationConfig
) -> None:
    until(lambda: (running("model-embedded"), running("model-tiny")) == (1, 0))
    jobs = [create(fleet, model="tiny")]

    def are_open() -> int:
        listed = fleet.get("/v1/videos", params={"limit": 100}).json()["data"]
        return sum(video["status"] in ("queued", "in_progress") for video in listed)

    def have_scaled() -> bool:
        jobs.extend(create(fleet, model="embedded", num_inference_steps=100) for _ in range(are_open(), 8))
        return running("model-embedded") == 2

    until(have_scaled, STARTS_S, 0.2)
    assert finished(fleet, jobs[0], patience_s=STARTS_S)["status"] == "completed"
    # Two jobs are enough for one replica: those that go finish what they have.
    until(lambda: are_open() <= 2, STARTS_S, 0.2)
    until(lambda: (running("model-embedded"), running("model-tiny")) == (1, 0), pause_s=0.2)
    again = create(fleet, model="tiny")
    until(lambda: running("model-tiny") == 1, STARTS_S, 0.2)
    assert [finished(fleet, job, patience_s=STARTS_S)["status"] for job in [*jobs, again]] == ["completed"] * (
        len(jobs) + 1
    )
    async with opened(config.database_url) as store:
        for job in jobs:
            stored = await store.get(job["id"])
            assert stored is not None
            assert stored.attempts - stored.returned == 1
