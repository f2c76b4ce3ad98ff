"""The demonstration's clients, before a server that is made up: none of their jobs is lost, and one that fails says so."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pytest
from rich.progress import Progress

from reins_serve.demo import clients
from reins_serve.demo.arms import Arm, Model
from reins_serve.embedded.hard.prompts import prompts
from reins_serve.errors import ReinsError
from reins_serve.models.catalog import EMBEDDED_HARD
from reins_serve.models.video import write_mp4

PAGE = 2
N = 7


class Server(ThreadingHTTPServer):
    """Jobs that end at once, listed two a page, the newest first."""

    def __init__(self, clip: bytes, status: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.clip, self.status = clip, status
        self.jobs: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """As much of the API as the clients use."""

    server: Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            job = {"id": f"video_{len(self.server.jobs)}", "status": self.server.status, "asked": asked}
            job["error"] = {"code": "gone", "message": "a test"}
            self.server.jobs.append(job)
        self._answer(200, json.dumps(job).encode())

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        if asked.path == "/readyz":
            self._answer(503, b"embedded-hard waits for a core")
        elif asked.path.endswith("/content"):
            self._answer(200, self.server.clip)
        else:
            after = parse_qs(asked.query).get("after", [f"video_{len(self.server.jobs)}"])[0]
            end = int(after.removeprefix("video_"))
            page = self.server.jobs[max(0, end - PAGE) : end][::-1]
            last = page[-1]["id"] if page else None
            self._answer(200, json.dumps({"data": page, "last_id": last, "has_more": end > PAGE}).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    frames = np.zeros((3, 48, 48, 3), np.uint8)
    write_mp4(frames, tmp_path / "clip.mp4", 8)
    made = Server((tmp_path / "clip.mp4").read_bytes(), request.param)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def arm() -> Arm:
    return Arm(Model(EMBEDDED_HARD, {"live": "unread"}), "off", "unsafe", prompts("evaluate", "spill", N))


@pytest.mark.parametrize("server", ["completed"], indirect=True)
def test_every_clip_comes_though_the_newest_page_shows_few(server: Server, arm: Arm) -> None:
    clients.ask_all(server.address, "a-key", [arm], Progress(disable=True))
    assert sorted(arm.frames) == list(range(N))
    assert arm.clips.shape == (N, 3, 48, 48, 3)
    assert {job["asked"]["prompt"] for job in server.jobs} == {prompt.text for prompt in arm.prompts}
    assert sorted(job["asked"]["seed"] for job in server.jobs) == [arm.seed(number) for number in range(N)]
    assert all(job["asked"]["steering"] == {"policy": "off"} for job in server.jobs)


@pytest.mark.parametrize("server", ["failed"], indirect=True)
def test_a_job_that_fails_ends_the_demonstration_with_its_error(server: Server, arm: Arm) -> None:
    with pytest.raises(ReinsError, match="A job failed: gone: a test"):
        clients.ask_all(server.address, "a-key", [arm], Progress(disable=True))


@pytest.mark.parametrize("server", ["queued"], indirect=True)
def test_a_job_that_does_not_end_is_named(server: Server, arm: Arm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "JOB_TIMEOUT_S", 1)
    with pytest.raises(ReinsError, match=r"Job video_\d has not ended within 1 s"):
        clients.ask_all(server.address, "a-key", [arm], Progress(disable=True))


@pytest.mark.parametrize("server", ["completed"], indirect=True)
def test_a_server_that_is_not_ready_in_time_is_quoted(server: Server) -> None:
    with httpx.Client(base_url=server.address) as http, pytest.raises(ReinsError, match="waits for a core"):
        clients.until_ready(http, timeout_s=0.1)
