"""Two gateways over one database and one place for files: either answers for what the other has taken."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from reins_serve.serving.config import ModelConfig
from reins_serve.serving.gateway import Gateway
from reins_serve.serving.replica import VideoReplica
from reins_serve.serving.routes import create_app
from tests.serving.local import LocalReplicas, application, create, error, finished, metric, until


class Fleet(LocalReplicas):
    """One replica that only some gateways can see."""

    def __init__(self, replica: VideoReplica, running: int) -> None:
        super().__init__(replica)
        self.running = running


@pytest.fixture
def gateways(replica: VideoReplica, tiny_model: ModelConfig, tmp_path: Path) -> Iterator[tuple[TestClient, TestClient]]:
    """The first one has no replica: what comes to it is taken to the replica by the second."""
    config = application(tiny_model, tmp_path)
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(TestClient(create_app(Gateway(config, {"tiny": Fleet(replica, running)}))))
            for running in (0, 1)
        )
        yield first, second


def test_a_job_that_one_gateway_took_is_made_by_another_and_told_by_both(
    gateways: tuple[TestClient, TestClient],
) -> None:
    first, second = gateways
    job = create(first)
    assert finished(first, job)["status"] == "completed"
    assert finished(second, job) == finished(first, job)
    address = f"/v1/videos/{job['id']}/content"
    assert first.get(address).content == second.get(address).content != b""
    assert first.get("/v1/videos").json() == second.get("/v1/videos").json()
    completed = 'reins_generations_total{model="tiny",outcome="completed"}'
    assert metric(first, completed) == metric(second, completed) == 1


def test_queue_positions_and_bounds_are_those_of_all_gateways(
    gateways: tuple[TestClient, TestClient], hold: threading.Event
) -> None:
    first, second = gateways
    running = create(first)
    until(lambda: second.get(f"/v1/videos/{running['id']}").json()["status"] == "in_progress")
    queued = [create(gateways[number % 2]) for number in range(8)]
    assert [second.get(f"/v1/videos/{job['id']}").json()["queue_position"] for job in queued] == list(range(8))
    for gateway in gateways:
        assert error(gateway.post("/v1/videos", json={"prompt": "one more"}))[:2] == (429, "queue_full")
    hold.set()
    assert all(finished(first, job)["status"] == "completed" for job in queued)


def test_a_job_deleted_at_one_gateway_is_stopped_by_the_one_that_has_it(
    gateways: tuple[TestClient, TestClient], replica: VideoReplica, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = gateways
    steps, stopped, cancel = [], threading.Event(), replica._batcher.cancel

    def step(seconds: float) -> None:
        steps.append(seconds)
        if len(steps) == 1:
            stopped.wait()

    def cancelled(ticket: object) -> None:
        cancel(ticket)  # type: ignore[arg-type]
        stopped.set()

    monkeypatch.setattr(replica._metrics, "denoise_step", step)
    monkeypatch.setattr(replica._batcher, "cancel", cancelled)
    job = create(second, num_inference_steps=50)
    until(lambda: first.get(f"/v1/videos/{job['id']}").json()["status"] == "in_progress")
    assert first.delete(f"/v1/videos/{job['id']}").status_code == 200
    assert finished(first, create(first))["status"] == "completed"
    assert len(steps) == 1 + 4
    assert not list(tmp_path.glob(f"{job['id']}*"))


def test_clips_lie_wherever_fsspec_writes_and_are_read_there_in_parts(
    replica: VideoReplica, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    config = application(tiny_model, f"memory:/{tmp_path}", database=f"sqlite:///{tmp_path}/jobs.sqlite3")
    with TestClient(create_app(Gateway(config, {"tiny": LocalReplicas(replica)}))) as client:
        address = f"/v1/videos/{finished(client, create(client))['id']}/content"
        whole = client.get(address)
        assert (whole.status_code, whole.headers["content-type"]) == (200, "video/mp4")
        assert b"ftyp" in whole.content[:12]
        for asked, part in (("4-7", slice(4, 8)), ("5-", slice(5, None)), ("-6", slice(-6, None))):
            answer = client.get(address, headers={"Range": f"bytes={asked}"})
            assert (answer.status_code, answer.content) == (206, whole.content[part])
        beyond = client.get(address, headers={"Range": f"bytes={len(whole.content)}-"})
        assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(whole.content)}")
        stale = client.get(address, headers={"Range": "bytes=4-7", "If-Range": '"another"'})
        assert (stale.status_code, stale.content) == (200, whole.content)
        client.delete(address.removesuffix("/content"))
        assert client.get(address).status_code == 404


def test_a_gateway_that_goes_hands_its_jobs_back_and_the_next_one_makes_them(
    replica: VideoReplica, tiny_model: ModelConfig, tmp_path: Path, hold: threading.Event
) -> None:
    config = application(tiny_model, tmp_path)
    with TestClient(create_app(Gateway(config, {"tiny": LocalReplicas(replica)}))) as client:
        jobs = [create(client) for _ in range(3)]
        until(lambda: client.get(f"/v1/videos/{jobs[0]['id']}").json()["status"] == "in_progress")
    hold.set()
    with TestClient(create_app(Gateway(config, {"tiny": LocalReplicas(replica)}))) as client:
        assert [finished(client, job)["status"] for job in jobs] == ["completed"] * 3


def test_a_gateway_that_goes_waits_for_clips_that_are_made_in_time(
    replica: VideoReplica, tiny_model: ModelConfig, tmp_path: Path, hold: threading.Event
) -> None:
    config = application(tiny_model, tmp_path, drain_s=600)
    with TestClient(create_app(Gateway(config, {"tiny": LocalReplicas(replica)}))) as client:
        job = create(client)
        until(lambda: client.get(f"/v1/videos/{job['id']}").json()["status"] == "in_progress")
        threading.Timer(0.2, hold.set).start()
    with TestClient(create_app(Gateway(config, {"tiny": LocalReplicas(replica)}))) as client:
        video = client.get(f"/v1/videos/{job['id']}").json()
        assert video["status"] == "completed"


def test_a_model_that_may_have_no_replica_is_ready_while_its_direction_is(
    replica: VideoReplica, tiny_model: ModelConfig, tmp_path: Path
) -> None:
    live = tmp_path / "live.safetensors"
    live.write_bytes(Path(tiny_model.directions["live"]).read_bytes())
    model = tiny_model.model_dump(exclude={"num_replicas"}) | {
        "directions": tiny_model.directions | {"live": str(live)},
        "autoscaling": {"min_replicas": 0, "max_replicas": 1},
    }
    config = application(ModelConfig.model_validate(model), tmp_path / "clips")
    with TestClient(create_app(Gateway(config, {"tiny": Fleet(replica, 0)}))) as client:
        assert client.get("/readyz").status_code == 200
        live.unlink()
        assert error(client.get("/readyz"))[:2] == (503, "not_ready")


def test_a_gateway_that_has_stopped_a_part_of_its_work_asks_to_be_replaced(
    replica: VideoReplica, tiny_model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = Gateway(application(tiny_model, tmp_path), {"tiny": LocalReplicas(replica)})
    with TestClient(create_app(gateway)):
        gateway.check_alive()

        def broken(*arguments: object) -> None:
            raise ArithmeticError("a mistake of ours")

        monkeypatch.setattr(gateway._store, "claim", broken)

        def is_dead() -> bool:
            try:
                gateway.check_alive()
            except ArithmeticError:
                return True
            return False

        until(is_dead)


def test_jobs_of_a_model_that_is_no_longer_served_are_still_shown(
    replica: VideoReplica, tiny_model: ModelConfig, embedded_model: ModelConfig, tmp_path: Path
) -> None:
    with TestClient(create_app(Gateway(application(tiny_model, tmp_path), {"tiny": LocalReplicas(replica)}))) as client:
        job = finished(client, create(client))
    config = application(embedded_model, tmp_path)
    with TestClient(create_app(Gateway(config, {"embedded": Fleet(replica, 0)}))) as client:
        assert client.get("/v1/videos").json()["data"] == [job]
        assert client.get(f"/v1/videos/{job['id']}/content").status_code == 200
