"""Server-sent events: the course of a job, as a client that listens sees it."""

import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from reins_serve.errors import ReinsError
from reins_serve.serving import events
from reins_serve.serving import replica as replica_module
from reins_serve.serving.config import ModelConfig
from reins_serve.serving.gateway import Gateway
from reins_serve.serving.replica import VideoReplica
from tests.serving.local import application, create, error, finished, keys, listening, local_app


@pytest.fixture
def http(replica: VideoReplica, tiny_model: ModelConfig, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a gateway that listens on a port: streams arrive while they are written."""
    with (
        listening(local_app(replica, application(tiny_model, tmp_path))) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        yield client


def lines(http: httpx.Client, job: dict[str, Any]) -> Iterator[str]:
    """The lines of a job's stream as they come."""
    with http.stream("GET", f"/v1/videos/{job['id']}/events") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield from answer.iter_lines()


def told(http: httpx.Client, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of a job's stream as they come."""
    for line in lines(http, job):
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def test_the_course_of_a_job_is_told_until_it_is_over(
    http: httpx.Client, hold: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "PROGRESS_INTERVAL_S", 0.0)
    monkeypatch.setattr(events, "POLL_S", 0.01)
    course = told(http, create(http, num_frames=5, num_inference_steps=100))
    seen = [next(course)]
    assert (seen[0]["status"] in ("queued", "in_progress"), seen[0]["progress"]) == (True, 0)
    hold.set()
    seen += course
    assert (seen[-1]["status"], seen[-1]["progress"], seen[-1]["queue_position"]) == ("completed", 100, None)
    assert any(event["status"] == "in_progress" and 0 < event["progress"] < 100 for event in seen)
    values = [event["progress"] for event in seen]
    assert values == sorted(values)
    assert all(first != second for first, second in itertools.pairwise(seen))


def test_a_job_that_is_over_is_one_event(http: httpx.Client) -> None:
    video = finished(http, create(http))
    keys = ("id", "status", "progress", "queue_position", "error")
    assert list(told(http, video)) == [{key: video[key] for key in keys}]


def test_a_failed_job_says_why(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(replica_module, "generate", fails)
    last = list(told(http, create(http)))[-1]
    assert (last["status"], last["error"]["code"]) == ("failed", "out_of_memory")


def test_a_deleted_job_ends_its_stream(http: httpx.Client, hold: threading.Event) -> None:
    job = create(http)
    course = told(http, job)
    assert next(course)["status"] in ("queued", "in_progress")
    assert http.delete(f"/v1/videos/{job['id']}").status_code == 200
    assert [event["status"] for event in course][-1] == "deleted"


def test_comments_keep_a_quiet_stream_open(
    http: httpx.Client, hold: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.05)
    assert any(line.startswith(":") for line in lines(http, create(http)))


def test_a_store_that_does_not_answer_for_a_while_ends_no_stream(
    http: httpx.Client, hold: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = told(http, create(http))
    assert next(course)["status"] in ("queued", "in_progress")
    real, asked = Gateway.retrieve, []

    async def retrieve(gateway: Gateway, *arguments: Any) -> Any:
        asked.append(arguments)
        if len(asked) == 1:
            raise ReinsError("the store does not answer", code="not_ready")
        hold.set()
        return await real(gateway, *arguments)

    monkeypatch.setattr(Gateway, "retrieve", retrieve)
    assert list(course)[-1]["status"] == "completed"
    assert len(asked) > 1


def test_a_stream_ends_after_its_time_and_the_next_goes_on(
    http: httpx.Client, hold: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "FOLLOW_S", 0.1)
    job = create(http)
    assert [event["status"] for event in told(http, job)][-1] in ("queued", "in_progress")
    hold.set()
    finished(http, job)
    assert [event["status"] for event in told(http, job)] == ["completed"]


def test_only_its_owner_may_follow_a_job(replica: VideoReplica, tiny_model: ModelConfig, tmp_path: Path) -> None:
    config = application(tiny_model, tmp_path, api_keys=keys("mine", "yours"))
    with listening(local_app(replica, config)) as address, httpx.Client(base_url=address) as http:
        mine, yours = ({"Authorization": f"Bearer {key}"} for key in ("mine", "yours"))
        path = f"/v1/videos/{create(http, mine)['id']}/events"
        assert error(http.get(path))[:2] == (401, "invalid_api_key")
        assert error(http.get(path, headers=yours))[:2] == (404, "video_not_found")
        assert http.get(path, headers=mine).text.count('"completed"') == 1
