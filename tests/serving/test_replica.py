"""A replica serves nothing that it cannot prove: each test removes a part of the safety and sees the failure."""

import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks import HookRegistry
from starlette.testclient import TestClient

from reins_serve.calibration.activations import open_activations
from reins_serve.calibration.live import SamplingConfig
from reins_serve.errors import DirectionError, ReinsError, SteeringNotApplied
from reins_serve.models.options import LoadingOptions
from reins_serve.serving import replica as replica_module
from reins_serve.serving import runs
from reins_serve.serving.config import ModelConfig
from reins_serve.serving.memory import free_memory, out_of_memory
from reins_serve.serving.replica import STARVED_LIMIT, UNPROVED_LIMIT, VideoReplica
from reins_serve.steering.blocks import remove_hooks
from reins_serve.steering.hook import HOOK_NAME
from reins_serve.steering.middleware import _Serving
from tests import tiny
from tests.serving.local import application, create, error, finished, metric, served, until


def _fails(client: TestClient, folder: Path, code: str, **body: object) -> None:
    """A job ends as failed with this code, and there is no clip anywhere."""
    video = finished(client, create(client, **body))
    assert video["status"] == "failed"
    assert video["error"]["code"] == code
    assert video["progress"] < 100
    assert error(client.get(f"/v1/videos/{video['id']}/content"))[:2] == (409, "video_failed")
    assert list(folder.glob(f"{video['id']}*")) == []


def test_a_replica_is_proved_when_it_is_made(replica: VideoReplica) -> None:
    assert replica.proved()
    replica.check_health()


def test_a_replica_serves_in_the_configuration_that_it_confirmed(tiny_model: ModelConfig) -> None:
    cache = {"kind": "first_block", "options": {"threshold": 0.2}}
    loading = LoadingOptions.model_validate({"dtype": "float32", "cache": cache})
    replica = VideoReplica(tiny_model.model_copy(update={"loading": loading}))
    assert replica.proved()
    assert replica._steering.pipeline.transformer.is_cache_enabled


def test_a_replica_whose_acceleration_cuts_steering_off_is_never_ready(
    tiny_model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(pipeline: Any, options: LoadingOptions) -> None:
        for block in pipeline.transformer.blocks:
            HookRegistry.check_if_exists_or_initialize(block).remove_hook(HOOK_NAME)

    monkeypatch.setattr(replica_module, "accelerate", cut)
    with pytest.raises(SteeringNotApplied, match="0 times"):
        VideoReplica(tiny_model)


def test_a_deleted_clip_stops_within_one_step(
    client: TestClient, replica: VideoReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[float] = []

    def slow_step(seconds: float) -> None:
        steps.append(seconds)
        time.sleep(0.2)

    monkeypatch.setattr(replica._metrics, "denoise_step", slow_step)
    job = create(client, num_inference_steps=50)
    until(lambda: len(steps) >= 2)
    assert client.delete(f"/v1/videos/{job['id']}").status_code == 200
    done = len(steps)
    finished(client, create(client, num_inference_steps=2))  # the next one has the replica to itself
    assert len(steps) - 2 <= done + 1


def test_a_detached_hook_fails_the_job(client: TestClient, replica: VideoReplica, tmp_path: Path) -> None:
    remove_hooks(replica._steering.pipeline, HOOK_NAME)
    _fails(client, tmp_path, "steering_not_applied")
    assert metric(client, 'reins_steering_failures_total{model="tiny",reason="steering_not_applied"}') == 1
    assert metric(client, 'reins_generations_total{model="tiny",outcome="failed"}') == 1
    assert metric(client, 'reins_generations_total{model="tiny",outcome="completed"}') == 0


def test_a_counter_that_is_short_fails_the_job(
    client: TestClient, replica: VideoReplica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close_early(seconds: float) -> None:
        for hook in replica._steering.hooks:
            hook.rows = {}

    monkeypatch.setattr(replica._metrics, "denoise_step", close_early)
    _fails(client, tmp_path, "steering_not_applied")


def test_a_record_without_proof_fails_the_job(
    client: TestClient, replica: VideoReplica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = replica._steering.generation

    def unsteered(*, rows: Any, **others: Any) -> Any:
        return real(rows=[replica_module.SteeringRow(None, 0.0, "off", "removed") for _ in rows], **others)

    monkeypatch.setattr(replica._steering, "generation", unsteered)
    _fails(client, tmp_path, "steering_not_applied")


def test_a_missing_direction_fails_the_job(client: TestClient, replica: VideoReplica, tmp_path: Path) -> None:
    replica._steering._serving = _Serving({})
    _fails(client, tmp_path, "steering_unavailable")


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (ValueError("a path: /secret"), "internal_error"),
    ],
    ids=["memory", "other"],
)
def test_other_failures_have_their_code_and_tell_no_details(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, code: str
) -> None:
    def generate(*arguments: object) -> None:
        raise raised

    with monkeypatch.context() as patch:
        patch.setattr(replica_module, "generate", generate)
        _fails(client, tmp_path, code)
        assert str(raised) not in client.get("/v1/videos").text
    assert finished(client, create(client))["status"] == "completed"


class Memory:
    """Holds so many clips of one call, as a GPU does; what was asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, clips: int) -> None:
        self.clips = clips
        self.calls: list[int] = []
        real = replica_module.generate

        def generate(pipeline: Any, entry: Any, requests: Any, arguments: Any) -> Any:
            self.calls.append(len(requests))
            if len(requests) > self.clips:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(pipeline, entry, requests, arguments)

        monkeypatch.setattr(replica_module, "generate", generate)


def test_a_batch_that_does_not_fit_into_memory_is_made_clip_by_clip(
    client: TestClient, replica: VideoReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(monkeypatch, clips=1)
    replica._batcher._max_wait_s = 1000.0
    jobs = [create(client, seed=seed) for seed in range(4)]
    videos = [finished(client, job) for job in jobs]
    assert [video["status"] for video in videos] == ["completed"] * 4
    assert all(video["steering"]["proved"] for video in videos)
    assert memory.calls == [4, 1, 1, 1, 1]
    assert metric(client, 'reins_batch_size_bucket{le="1.0",model="tiny"}') == 4
    replica.check_health()


def test_a_replica_that_ran_out_of_memory_is_healthy_until_it_happens_again_and_again(
    client: TestClient, replica: VideoReplica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(monkeypatch, clips=0)
    for _ in range(STARVED_LIMIT - 1):
        _fails(client, tmp_path, "out_of_memory")
        replica.check_health()
    memory.clips = 1
    assert finished(client, create(client))["status"] == "completed"
    memory.clips = 0
    for _ in range(STARVED_LIMIT):
        replica.check_health()
        _fails(client, tmp_path, "out_of_memory")
    with pytest.raises(ReinsError, match="did not fit into memory"):
        replica.check_health()


def test_a_broken_generation_holds_no_memory_afterwards() -> None:
    class Tensor:
        pass

    held: list[weakref.ref[Tensor]] = []

    def starve() -> None:
        large = Tensor()
        held.append(weakref.ref(large))
        raise torch.OutOfMemoryError(f"no room beside {large}")

    try:
        starve()
    except torch.OutOfMemoryError as error:
        kept = error
    assert held[0]() is not None
    free_memory(kept)
    assert held[0]() is None


def test_a_tensor_that_the_host_has_no_room_for_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert out_of_memory(raised.value)
    assert not out_of_memory(RuntimeError("another one"))


def test_a_replica_that_cannot_prove_its_batches_asks_to_be_replaced(client: TestClient, replica: VideoReplica) -> None:
    remove_hooks(replica._steering.pipeline, HOOK_NAME)
    for _ in range(UNPROVED_LIMIT):
        replica.check_health()
        finished(client, create(client))
    with pytest.raises(SteeringNotApplied):
        replica.check_health()


def test_no_replica_without_its_own_direction(tiny_model: ModelConfig, tmp_path: Path) -> None:
    stranger = tiny.pipeline(seed=5)
    tiny.direction(stranger).save(tmp_path / "stranger.safetensors")
    with pytest.raises(DirectionError):
        VideoReplica(tiny_model.model_copy(update={"directions": {"live": str(tmp_path / "stranger.safetensors")}}))


def test_a_full_disk_fails_the_job_and_leaves_nothing(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if target.suffix == ".mp4":
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(runs, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(runs, "LONGEST_PAUSE_S", 0.01)
    _fails(client, tmp_path, "storage_error")


def test_a_replica_samples_between_jobs(tiny_model: ModelConfig, tmp_path: Path) -> None:
    sampling = SamplingConfig(fraction=1, url=str(tmp_path / "store"), flush=1)
    replica = VideoReplica(tiny_model.model_copy(update={"sampling": sampling}))
    with served(replica, application(tiny_model, tmp_path / "clips")) as client:
        assert finished(client, create(client))["status"] == "completed"
        until(lambda: list((tmp_path / "store").rglob("*.parquet")))
    stored = open_activations(str(tmp_path / "store"), "tiny")
    assert stored.dataset.count_rows() == 1
