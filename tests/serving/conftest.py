"""A tiny checkpoint on disk and a replica of it, for tests in one process."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from reins_serve.models import catalog
from reins_serve.serving.config import ModelConfig, hash_key
from reins_serve.serving.replica import VideoReplica
from tests import tiny
from tests.serving.local import application, served

ADMIN_KEY = "an admin key for tests"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelConfig]:
    """The configuration of a tiny model with random weights, whose checkpoint and directions lie on disk."""
    folder = tmp_path_factory.mktemp("tiny")
    pipeline = tiny.pipeline()
    pipeline.save_pretrained(folder / "model")
    tiny.direction(pipeline.transformer).save(folder / "live.safetensors")
    tiny.direction(pipeline.transformer, seed=1, name="other").save(folder / "other.safetensors")
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


@pytest.fixture
def replica(tiny_model: ModelConfig) -> VideoReplica:
    """A fresh replica of the tiny model."""
    return VideoReplica(tiny_model)


@pytest.fixture
def client(replica: VideoReplica, tiny_model: ModelConfig, tmp_path: Path) -> Iterator[TestClient]:
    """A client of a gateway before that replica; its clips lie in `tmp_path`."""
    with served(replica, application(tiny_model, tmp_path, admin_key_sha256=hash_key(ADMIN_KEY))) as made:
        yield made
