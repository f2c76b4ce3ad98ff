"""The operations guide: every command says whether it was run, and those that say so are run here, in the guide's order."""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import uvicorn

from reins_serve.rollout.storage import DirectionStore
from reins_serve.serving.config import ModelConfig, hash_key
from reins_serve.serving.gateway import Gateway
from reins_serve.serving.replica import VideoReplica
from reins_serve.serving.routes import create_app
from tests.monitoring.promtool import needs_promtool, promtool
from tests.serving.local import LocalReplicas, application, by_storage_alone, stop_following, until
from tests.serving.ports import free_port

GUIDE = Path("docs/operations.md").read_text()
BLOCKS = [
    (language, "\n".join(line.removeprefix(indent) for line in text.splitlines()))
    for indent, language, text in re.findall(r"^( *)```(\w+)\n(.*?)^ *```$", GUIDE, re.MULTILINE | re.DOTALL)
]
COMMANDS = [text for language, text in BLOCKS if language == "bash"]
RUN, NOT_RUN = "# run by a test", "# not run here: "
ADMIN_KEY = "an admin key for tests"


def test_every_command_says_whether_it_was_run() -> None:
    assert len(COMMANDS) == GUIDE.count("```bash") > 0
    assert [text for text in COMMANDS if not text.startswith((RUN + "\n", NOT_RUN))] == []
    assert {language for language, _ in BLOCKS} == {"bash", "yaml", "sql"}


@needs_promtool
def test_the_scrape_configuration_is_valid(tmp_path: Path) -> None:
    (text,) = (text for language, text in BLOCKS if language == "yaml")
    shutil.copy("k8s/monitoring/rules.yaml", tmp_path)
    (tmp_path / "prometheus.yml").write_text(text)
    fine, said = promtool("check", "config", tmp_path / "prometheus.yml")
    assert fine, said


@contextmanager
def gateway(store: str, folder: Path, port: int) -> Iterator[None]:
    """The application of the embedded model on a real port, in this process and without Ray, following a store."""
    model = ModelConfig.model_validate({"name": "embedded", "store": store, "torch_threads": 1})
    config = application(model, folder, admin_key_sha256=hash_key(ADMIN_KEY))
    replica = VideoReplica(model)
    app = create_app(Gateway(config, {"embedded": LocalReplicas(replica)}))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield
    finally:
        server.should_exit = True
        thread.join()
        stop_following(replica)


@needs_promtool
@pytest.mark.slow
@pytest.mark.timeout(900)  # a model is loaded and proved twice, and each command starts Python anew
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_that_say_so_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_storage_alone(monkeypatch)
    port = free_port()
    variables = {
        "STORE": str(tmp_path / "store"),
        "URL": f"http://127.0.0.1:{port}",
        "ADMIN_KEY": ADMIN_KEY,
        "DATABASE": str(tmp_path / "clips/jobs.sqlite3"),
        "BACKUP": str(tmp_path / "backup"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    said = []
    with ExitStack() as stack:
        started = False
        for text in COMMANDS:
            if not text.startswith(RUN):
                continue
            if "$URL" in text and not started:
                stack.enter_context(gateway(variables["STORE"], tmp_path / "clips", port))
                started = True
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text], env=os.environ | variables, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
            said.append(done.stdout)
    output = "\n".join(said)
    for part in (
        "embedded generation 1: live v1",
        '"status":"queued"',
        "candidate",
        "embedded generation",
        "ok",
        "SUCCESS",
    ):
        assert part in output, f"{part} is not in\n{output}"
    pointer = DirectionStore(variables["BACKUP"]).find("embedded")
    assert pointer is not None
    assert pointer == DirectionStore(variables["STORE"]).find("embedded")
