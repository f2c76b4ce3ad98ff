"""The serving application in one process, without Ray: a real gateway and a real replica of a tiny model, joined by hand."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from reins_serve.rollout.storage import DirectionStore
from reins_serve.serving.config import ApplicationConfig, ModelConfig, hash_key
from reins_serve.serving.directions import DirectionsAdmin
from reins_serve.serving.gateway import Gateway
from reins_serve.serving.jobs import Job
from reins_serve.serving.messages import Message
from reins_serve.serving.replica import VideoReplica
from reins_serve.serving.routes import create_app
from tests.rollout.alone import without_registry

PATIENCE_S = 120  # far above what anything here takes: a test that waits this long has failed


class LocalStream:
    """A replica's messages, which may be given up as those of a Serve handle."""

    def __init__(self, messages: AsyncIterator[Message]) -> None:
        self._messages = messages
        self._pending: asyncio.Future[Message] | None = None
        self._given_up = False

    def __aiter__(self) -> "LocalStream":
        return self

    async def __anext__(self) -> Message:
        self._pending = asyncio.ensure_future(anext(self._messages))
        try:
            return await self._pending
        except asyncio.CancelledError:
            if self._given_up:
                raise RuntimeError("given up") from None
            raise

    def cancel(self) -> None:
        self._given_up = True
        if self._pending is not None:
            self._pending.cancel()


class LocalReplicas:
    """One replica in this process."""

    running = 1

    def __init__(self, replica: VideoReplica) -> None:
        self._replica = replica

    def generate(self, job: Job) -> LocalStream:
        return LocalStream(self._replica.generate(job.clip, job.row))

    async def proved(self) -> bool:
        return self._replica.proved()


def application(model: ModelConfig, output_dir: Path | str, **changes: object) -> ApplicationConfig:
    """A configuration that serves one model; its database lies beside the clips, and nothing is waited for at the end."""
    database = f"sqlite:///{output_dir}.sqlite3"
    base = {"models": (model,), "output_dir": str(output_dir), "database": database, "drain_s": 0}
    return ApplicationConfig.model_validate(base | changes)


def keys(*names: str) -> list[dict[str, str]]:
    """Entries of API keys, each of which reads as its name does."""
    return [{"name": name, "sha256": hash_key(name)} for name in names]


@contextmanager
def served(replica: VideoReplica, config: ApplicationConfig) -> Iterator[TestClient]:
    """A client of a gateway that runs, in front of one replica."""
    with TestClient(local_app(replica, config), raise_server_exceptions=False) as client:
        yield client


def local_app(replica: VideoReplica, config: ApplicationConfig) -> FastAPI:
    """The application of a gateway in front of one replica; it runs while the application does."""
    return create_app(Gateway(config, {config.models[0].name: LocalReplicas(replica)}))


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The address of an application that listens on the loopback interface, in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def by_storage_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let replicas and gateways of this process go to storage for their directions, and not to a registry."""
    without_registry(monkeypatch)
    monkeypatch.setattr(DirectionsAdmin, "_open", lambda self, keys: DirectionStore(str(self._url), keys))


def stop_following(replica: VideoReplica) -> None:
    """End a replica's following of its store; it would go on after the test, and find the Ray cluster of others."""
    watcher = replica._steering.watcher
    assert watcher is not None
    watcher.close()


def until(condition: Callable[[], Any], patience_s: float = PATIENCE_S, pause_s: float = 0.01) -> Any:
    """Wait until a condition is true, and return its value. Asking a server all the time takes the CPU that it works with."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(pause_s)
    return value


def create(client: httpx.Client, headers: dict[str, str] | None = None, **body: object) -> dict[str, Any]:
    """Create a job that must be accepted; its video object."""
    answer = client.post("/v1/videos", json={"prompt": "a red square moving left"} | body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def finished(
    client: httpx.Client, job: dict[str, Any], headers: dict[str, str] | None = None, patience_s: float = PATIENCE_S
) -> dict[str, Any]:
    """The video object once the job is over."""

    def over() -> dict[str, Any] | None:
        video = client.get(f"/v1/videos/{job['id']}", headers=headers).json()
        return video if video["status"] in ("completed", "failed") else None

    return until(over, patience_s, 0.05)


def error(answer: httpx.Response) -> tuple[int, str, str | None]:
    """Status, code and field of an answer that must be an error in the API's shape."""
    body = answer.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    return answer.status_code, body["code"], body["param"]


def metric(client: httpx.Client, name: str) -> float:
    """A sample of `/metrics` by its full name with labels; 0 if there is none yet."""
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(name + " "):
            return float(line.rsplit(" ", 1)[1])
    return 0.0
