"""The command against a server: clips made there, its jobs, its state, and what a file says of itself."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
from typer.testing import CliRunner, Result

from reins_serve import cli, content_credentials
from reins_serve.errors import ReinsError
from reins_serve.serving import client as client_module
from reins_serve.serving import events
from reins_serve.serving.client import Client
from reins_serve.serving.config import ModelConfig
from reins_serve.serving.replica import VideoReplica
from tests.serving.conftest import hold, tiny_model  # noqa: F401
from tests.serving.local import application, create, finished, keys, listening, local_app, until
from tests.serving.ports import free_port

PROMPT = "a red square moving left"


@pytest.fixture
def server(tiny_model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:  # noqa: F811
    """The address of a server that needs a key, which the environment has."""
    model = tiny_model.model_copy(update={"file_metadata": ("seed",)})
    config = application(model, tmp_path / "clips", api_keys=keys("mine", "yours"))
    monkeypatch.setenv("REINS_API_KEY", "mine")
    with listening(local_app(VideoReplica(model), config)) as address:
        monkeypatch.setenv("REINS_SERVER", address)
        yield address


@pytest.fixture
def http(server: str) -> Iterator[httpx.Client]:
    """The same caller, by hand."""
    with httpx.Client(base_url=server, headers={"Authorization": "Bearer mine"}, timeout=60) as made:
        yield made


def run(*arguments: str) -> Result:
    """The command in this process; errors made on purpose are in `exception`."""
    return CliRunner().invoke(cli.app, arguments)


def told(*arguments: str) -> Any:
    """The JSON that a command prints, which must succeed."""
    done = run(*arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


def refused(*arguments: str) -> ReinsError:
    """The error that a command must end with."""
    error = run(*arguments).exception
    assert isinstance(error, ReinsError), error
    return error


def test_a_server_makes_the_clip_and_its_proof_is_printed(server: str, tmp_path: Path) -> None:
    out = tmp_path / "clip.mp4"
    record = told("generate", PROMPT, "--server", server, "--seed", "3", "--policy", "other", "--out", str(out))
    assert (record["model"], record["seed"]) == ("tiny", 3)
    assert record["steering"]["proved"] and record["steering"]["policy"] == "other"
    with av.open(str(out)) as container:
        assert sum(1 for _ in container.decode(video=0)) > 1
    assert [path.name for path in tmp_path.glob(".*part")] == []


def test_what_the_server_refuses_is_one_sentence(server: str, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "clip.mp4"))
    assert refused("generate", PROMPT, "--server", server, "--policy", "none", *out).param == "steering.policy"
    assert refused("generate", PROMPT, "--server", server, "--model", "none", *out).code == "model_not_found"
    assert "directions of its own" in str(refused("generate", PROMPT, "--server", server, "--direction", "x", *out))
    assert "--server" in str(refused("generate", PROMPT, "--policy", "other", *out))
    assert not (tmp_path / "clip.mp4").exists()


def test_a_stream_of_events_that_ends_is_opened_again(
    server: str, hold: threading.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.setattr(events, "FOLLOW_S", 0.1)
    monkeypatch.setattr(client_module, "PAUSE_S", 0.01)
    threading.Timer(1.0, hold.set).start()
    record = told("generate", PROMPT, "--server", server, "--out", str(tmp_path / "clip.mp4"))
    assert record["steering"]["proved"]


def test_jobs_are_listed_shown_and_cancelled(
    server: str, http: httpx.Client, hold: threading.Event  # noqa: F811
) -> None:  # fmt: skip
    made = [create(http, seed=seed) for seed in range(3)]
    listed = told("jobs", "list", "--json")
    assert [job["id"] for job in listed] == [job["id"] for job in reversed(made)]
    assert [job["id"] for job in told("jobs", "list", "--limit", "2", "--json")] == [made[2]["id"], made[1]["id"]]
    assert told("jobs", "cancel", made[0]["id"])["deleted"]
    assert refused("jobs", "show", made[0]["id"]).code == "video_not_found"
    hold.set()
    finished(http, made[2])
    assert told("jobs", "show", made[2]["id"])["status"] == "completed"
    table = run("jobs", "list").stdout
    assert made[2]["id"] in table and "completed" in table and made[0]["id"] not in table


def test_the_status_says_what_is_ready_and_what_waits(
    server: str, http: httpx.Client, hold: threading.Event, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    job = create(http)
    until(lambda: http.get(f"/v1/videos/{job['id']}").json()["status"] == "in_progress" or create(http))
    status = told("status", "--json")
    (model,) = status["models"]
    assert status["ready"] and model["model"] == "tiny"
    assert model["queued"] + model["in_progress"] >= 1
    assert model["direction"]["sha256"] == http.get("/v1/models/tiny").json()["direction"]["sha256"]
    assert model["direction"]["sha256"][:12] in run("status").stdout
    monkeypatch.setattr(VideoReplica, "proved", lambda self: False)
    not_ready = run("status")
    assert not_ready.exit_code == 1 and "cannot make a steered clip" in not_ready.stdout


def test_a_wrong_key_and_a_silent_address_are_said(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REINS_API_KEY", "wrong")
    assert refused("jobs", "list").code == "invalid_api_key"
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert "reins-serve up" in str(refused("status", "--server", nowhere))
    assert refused("jobs", "list", "--server", "http://[").code == "server_unreachable"


def test_what_is_not_this_api_is_not_taken_for_it() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200 if request.url.path == "/v1/models" else 418, text="<html>")

    client = Client("http://elsewhere")
    client._http = httpx.Client(base_url="http://elsewhere", transport=httpx.MockTransport(answer))
    with pytest.raises(ReinsError, match="not as this API does"):
        client.retrieve("video_1")
    with pytest.raises(ReinsError, match="not as this API does"):
        client.models()


def test_creation_is_asked_again_with_one_key_and_makes_one_job(
    server: str, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PAUSE_S", 0.0)
    client = Client(server, "mine")
    real, sent = client._http.request, []

    def request(method: str, path: str, **said: Any) -> httpx.Response:
        sent.append(said.get("headers"))
        answer = real(method, path, **said)
        if len(sent) == 1:
            raise httpx.ReadError("the answer is lost")
        return answer

    monkeypatch.setattr(client._http, "request", request)
    job = client.create({"prompt": PROMPT})
    assert len(sent) == 2 and sent[0] == sent[1]
    assert [item["id"] for item in http.get("/v1/videos").json()["data"]] == [job.id]


def test_a_file_says_what_steered_it(server: str, tmp_path: Path) -> None:
    out = tmp_path / "clip.mp4"
    record = told("generate", PROMPT, "--server", server, "--seed", "4", "--out", str(out))
    says = told("inspect", str(out))
    assert says["says"]["direction_sha256"] == record["steering"]["sha256"]
    assert says["says"]["proved"] and says["says"]["seed"] == 4 and "prompt" not in says["says"]
    assert says["content_credentials"] is None


def test_a_file_without_our_tags_and_one_that_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_text("no video")
    assert "cannot be read as a video" in str(refused("inspect", str(tmp_path / "x.mp4")))


def test_inspecting_works_without_the_c2pa_package_unless_trust_is_asked_for(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise content_credentials.PackageMissing(content_credentials.MISSING)

    out = tmp_path / "clip.mp4"
    told("generate", PROMPT, "--server", server, "--out", str(out))
    monkeypatch.setattr(content_credentials, "_library", missing)
    assert told("inspect", str(out))["content_credentials"]["state"] == "not checked"
    assert "pip install" in str(refused("inspect", str(out), "--trust", str(tmp_path / "roots.pem")))
