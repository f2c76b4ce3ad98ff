"""Limits by configuration, ids that lead nowhere else, and logs and files that keep what a user wrote to themselves."""

import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from reins_serve.content_credentials import CredentialsConfig
from reins_serve.models.generation import request
from reins_serve.provenance import read
from reins_serve.serving import replica as replica_module
from reins_serve.serving.config import ModelConfig
from reins_serve.serving.gateway import Gateway
from reins_serve.serving.privacy import LIBRARIES, hashed, without_messages, without_texts
from reins_serve.serving.replica import VideoReplica
from tests import tiny
from tests.certificates import issue
from tests.serving.local import application, create, error, finished, listening, local_app, served

SECRET = 'a "secret" word; zwölf\nlines'


@pytest.mark.parametrize(
    ("limits", "body", "expected"),
    [
        ({"max_prompt_chars": 5}, {"prompt": "a clip"}, (400, "invalid_value", "prompt")),
        (
            {"max_prompt_chars": 5},
            {"prompt": "a", "negative_prompt": "a clip"},
            (400, "invalid_value", "negative_prompt"),
        ),
        ({"max_pixels": 256}, {"size": "32x16"}, (400, "unsupported_size", "size")),
        ({"max_frames": 5}, {"num_frames": 6}, (400, "too_many_frames", "num_frames")),
        ({"max_frames": 5}, {"seconds": "0.75"}, (400, "too_many_frames", "num_frames")),
        ({"max_body_bytes": 100}, {"metadata": {"a": "x" * 100}}, (413, "payload_too_large", None)),
    ],
    ids=str,
)
def test_limits_are_the_operators(
    replica: VideoReplica, tiny_model: ModelConfig, tmp_path: Path, client: TestClient,
    limits: dict[str, int], body: dict[str, Any], expected: tuple[int, str, str | None],
) -> None:  # fmt: skip
    body = {"prompt": "a"} | body
    assert client.post("/v1/videos", json=body).status_code == 200
    with served(replica, application(tiny_model, tmp_path / "limited", limits=limits)) as limited:
        assert error(limited.post("/v1/videos", json=body)) == expected
        assert limited.get("/v1/videos").json()["data"] == []


@pytest.mark.parametrize(
    "name",
    ["..%2f..%2fetc%2fpasswd", "..", "%2e%2e%2fpyproject.toml", "video_", "video_" + "g" * 32, "video_" + "0" * 31,
     "video_" + "0" * 32 + "%00", "video_" + "0" * 32 + "%0a", "x" * 5000, "%ff", "video_" + "٠" * 32],
    ids=lambda name: name[:24],
)  # fmt: skip
def test_an_id_leads_to_a_video_or_nowhere(client: TestClient, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gateway, "_job", lambda *a: pytest.fail("looked up"))
    for path in (f"/v1/videos/{name}", f"/v1/videos/{name}/content", f"/v1/videos/{name}/events"):
        assert client.get(path).status_code == 404
    assert client.delete(f"/v1/videos/{name}").status_code in (404, 405)
    assert client.get("/v1/videos", params={"after": name}).status_code == 400
    assert client.get(f"/v1/models/{name}").status_code == 404


def test_no_text_has_the_character_that_databases_do_not_store(client: TestClient) -> None:
    for body in ({"prompt": "a\0"}, {"negative_prompt": "\0"}, {"metadata": {"a": "\0"}}, {"metadata": {"\0": "a"}}):
        assert error(client.post("/v1/videos", json={"prompt": "a"} | body))[:2] == (400, "invalid_value")


def raising(*arguments: Any) -> None:
    raise ValueError(f"cannot make {SECRET} or {SECRET!r}")


@pytest.mark.parametrize("allowed", [False, True])
def test_logs_show_of_a_prompt_its_hash_unless_they_may_show_it(
    tiny_model: ModelConfig, tmp_path: Path, allowed: bool, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(replica_module, "generate", raising)
    config = tiny_model.model_copy(update={"log_prompts": allowed})
    with served(VideoReplica(config), application(config, tmp_path)) as client:
        job = create(client, prompt=SECRET)
        assert finished(client, job)["error"]["code"] == "internal_error"
    assert ("secret" in caplog.text) == allowed
    assert job["id"] in caplog.text
    assert "cannot make" in caplog.text
    assert "ValueError" in caplog.text
    assert allowed or hashed(SECRET) in caplog.text


@pytest.mark.parametrize("allowed", [False, True])
def test_libraries_do_not_quote_prompts_either(tiny_model: ModelConfig, allowed: bool) -> None:
    names = ("diffusers.pipelines.wan.pipeline_wan", "transformers.tokenization_utils_base")
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)
    VideoReplica(tiny_model.model_copy(update={"log_prompts": allowed}))
    assert [logging.getLogger(name).isEnabledFor(logging.WARNING) for name in names] == [allowed, allowed]


def test_an_unexpected_error_is_logged_by_its_place_and_answered_without_it(
    replica: VideoReplica, tiny_model: ModelConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    async def retrieve(gateway: Gateway, *arguments: Any) -> None:
        raising()

    monkeypatch.setattr(Gateway, "retrieve", retrieve)
    app = local_app(replica, application(tiny_model, tmp_path))
    with listening(app) as address:
        answer = httpx.get(f"{address}/v1/videos/video_{'0' * 32}")
    assert error(answer) == (500, "internal_error", None)
    logged = caplog.text + "".join(capfd.readouterr())
    assert "ValueError" in logged
    assert "raising" in logged  # the function
    for part in (logged, answer.text):
        assert "secret" not in part


def test_a_traceback_keeps_its_places_and_loses_its_texts() -> None:
    try:
        try:
            raising()
        except ValueError as error:
            raise KeyError(SECRET) from error
    except KeyError as error:
        clip = request(tiny.ENTRY, SECRET, 1)
        assert "secret" in without_texts(error, [])
        replaced, bare = without_texts(error, [clip]), without_messages(error)
        assert "cannot make sha256:" in replaced
    for told in (replaced, bare):
        assert "secret" not in told
        assert told.index("ValueError") < told.index("KeyError")
        assert told.count("test_security.py") >= 2


def test_a_clip_says_of_its_request_what_the_operator_wants(tiny_model: ModelConfig, tmp_path: Path) -> None:
    for private, expected in (((), (None, None)), (("prompt", "seed"), ("a red clip", 3))):
        config = tiny_model.model_copy(update={"file_metadata": private})
        with served(VideoReplica(config), application(config, tmp_path)) as client:
            video = finished(client, create(client, prompt="a red clip", seed=3))
            path = tmp_path / "clip.mp4"
            path.write_bytes(client.get(f"/v1/videos/{video['id']}/content").content)
        made = read(path)
        assert made is not None
        assert (made.prompt, made.seed) == expected
        assert (made.model, made.proved, made.direction_sha256) == ("tiny", True, video["steering"]["sha256"])


def test_clips_are_signed_where_a_certificate_is_configured(tiny_model: ModelConfig, tmp_path: Path) -> None:
    from reins_serve.content_credentials import check

    root = issue("Root of tests")
    leaf = issue("Signer of tests", root)
    chain = tmp_path / "chain.pem"
    chain.write_bytes(leaf.pem + root.pem)
    credentials = CredentialsConfig(certificate=str(chain), key=str(leaf.write_key(tmp_path / "key.pem")))
    config = tiny_model.model_copy(update={"c2pa": credentials})
    with served(VideoReplica(config), application(config, tmp_path / "clips")) as client:
        video = finished(client, create(client))
        path = tmp_path / "clip.mp4"
        path.write_bytes(client.get(f"/v1/videos/{video['id']}/content").content)
    told = check(path)
    assert told is not None
    assert (told["state"], told["made"]["direction_sha256"]) == ("valid", video["steering"]["sha256"])
