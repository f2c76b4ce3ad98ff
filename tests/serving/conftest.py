"""A tiny checkpoint and a replica of it for tests in one process, and the application on Ray for the tests that need it."""

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve
from starlette.testclient import TestClient

from reins_serve.models import catalog
from reins_serve.serving import replica as replica_module
from reins_serve.serving.app import build
from reins_serve.serving.config import ModelConfig, hash_key
from reins_serve.serving.replica import VideoReplica
from tests import tiny
from tests.serving.databases import (  # noqa: F401
    anyio_backend,
    jobs,
    jobs_url,
    postgres,
    postgres_url,
)
from tests.serving.local import application, served
from tests.serving.ports import free_port
from tests.zoo import ltx

ADMIN_KEY = "an admin key for tests"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelConfig]:
    """The configuration of a tiny model with random weights, whose checkpoint and directions lie on disk."""
    folder = tmp_path_factory.mktemp("tiny")
    pipeline = tiny.pipeline()
    pipeline.save_pretrained(folder / "model")
    tiny.direction(pipeline).save(folder / "live.safetensors")
    tiny.direction(pipeline, seed=1, name="other").save(folder / "other.safetensors")
    before = catalog.get("tiny")
    catalog.register(dataclasses.replace(before, source=folder / "model"))
    yield ModelConfig.model_validate(
        {
            "name": "tiny",
            "directions": {name: str(folder / f"{name}.safetensors") for name in ("live", "other")},
            "policy": {
                "policies": {"other": {"direction": "other"}, "secret": {"direction": "other", "admin_only": True}}
            },
            "torch_threads": 1,
            "max_batch_size": 4,
            "max_queued": 8,
        }
    )
    catalog.register(before)


@pytest.fixture(scope="session")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelConfig]:
    """The configuration of a tiny model whose clips begin with an image. Its checkpoint makes clips from text alone too."""
    folder = tmp_path_factory.mktemp("image")
    pipeline = ltx.i2v(0)
    pipeline.save_pretrained(folder / "model")
    tiny.direction(pipeline, model="tiny-image").save(folder / "live.safetensors")
    catalog.register(
        dataclasses.replace(
            tiny.ENTRY,
            name="tiny-image",
            source=folder / "model",
            pipelines={"text-to-video": "LTXPipeline", "image-to-video": "LTXImageToVideoPipeline"},
            width=32,
            height=32,
            size_multiple=32,
            min_side=32,
            max_side=64,
            num_frames=5,
            max_frames=9,
            frame_multiple=4,
            pipeline_frames_offset=0,
            arguments={"max_sequence_length": ltx.LENGTH},
        )
    )
    yield ModelConfig.model_validate(
        {
            "name": "tiny-image",
            "task": "image-to-video",
            "directions": {"live": str(folder / "live.safetensors")},
            "torch_threads": 1,
            "max_batch_size": 4,
        }
    )
    del catalog._registered["tiny-image"]


@pytest.fixture
def replica(tiny_model: ModelConfig) -> VideoReplica:
    """A fresh replica of the tiny model."""
    return VideoReplica(tiny_model)


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Batches wait, before their pipeline call, until this event is set."""
    event, real = threading.Event(), replica_module.generate

    def generate(*arguments: Any) -> Any:
        event.wait()
        return real(*arguments)

    monkeypatch.setattr(replica_module, "generate", generate)
    yield event
    event.set()


@pytest.fixture
def client(replica: VideoReplica, tiny_model: ModelConfig, tmp_path: Path) -> Iterator[TestClient]:
    """A client of a gateway before that replica; its clips lie in `tmp_path`."""
    with served(replica, application(tiny_model, tmp_path, admin_key_sha256=hash_key(ADMIN_KEY))) as made:
        yield made


@pytest.fixture(scope="session")
def embedded_model() -> ModelConfig:
    """The configuration of the embedded model with its published directions."""
    return ModelConfig.model_validate(
        {
            "name": "embedded",
            "directions": {
                "live": "directions/embedded/setpoint.safetensors",
                "add": "directions/embedded/add.safetensors",
            },
            "policy": {"policies": {"add": {"direction": "add"}}},
            "torch_threads": 1,
            "max_batch_size": 4,
            "max_batch_wait_ms": 20,
        }
    )


@pytest.fixture(scope="session")
def server(cluster: None, embedded_model: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the application on the tests' cluster, which serves the embedded model."""
    port = free_port()
    config = application(embedded_model, tmp_path_factory.mktemp("clips"), admin_key_sha256=hash_key(ADMIN_KEY))
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        serve.run(build(config), name="reins", route_prefix="/")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()


@pytest.fixture
def http(server: str) -> Iterator[httpx.Client]:
    """A client of the server."""
    with httpx.Client(base_url=server, timeout=60) as made:
        yield made
