"""The head node is killed and started again, with durable storage of Ray's state: what serves goes on, and the registry is back."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from reins_serve.rollout.storage import DirectionStore
from tests.rollout.conftest import made
from tests.serving.local import until
from tests.serving.ports import free_port

SAID = {"who": "ann", "why": "a test"}
HEAD = "127.0.0.1"
STARTS_S = 120
MARK = "REINS_TEST_NODE"


class Nodes:
    """A head and a worker node of one cluster, each a tree of processes of its own."""

    def __init__(self, folder: Path) -> None:
        self.address = f"{HEAD}:{free_port()}"
        self._folder = folder
        self._temporary = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: sockets lie in it
        self._environment = os.environ | {
            "RAY_AUTH_MODE": "disabled",
            "RAY_gcs_storage": "rocksdb",
            "RAY_gcs_storage_path": str(folder / "gcs"),
            "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
            "PYTHONPATH": os.getcwd(),
            "OMP_NUM_THREADS": "1",
        }
        (folder / "gcs").mkdir()
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, node: str) -> None:
        port = self.address.rpartition(":")[2]
        role = {
            "head": ["--head", f"--port={port}", "--include-dashboard=false", "--num-cpus=1"],
            "worker": [f"--address={self.address}", "--num-cpus=1", '--resources={"worker": 1}'],
        }[node]
        command = [str(Path(sys.executable).with_name("ray")), "start", *role, "--block", f"--node-ip-address={HEAD}",
                   "--object-store-memory=100000000", "--disable-usage-stats"]  # fmt: skip
        if node == "head":
            # A new machine would not find this file; here, `ray start` takes the worker's processes for a head.
            command += ["--temp-dir", str(self._temporary)]
            (self._temporary / "ray_current_cluster").unlink(missing_ok=True)
        log = (self._folder / f"{node}.log").open("ab")
        self._nodes[node] = subprocess.Popen(
            command, env=self._environment | {MARK: self._mark(node)}, stdout=log, stderr=log
        )

    def kill(self, node: str) -> None:
        """Every process of a node at once, without a word of warning. They are told by their environment: some leave the tree."""
        started = self._nodes.pop(node)
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark(node):
                    process.kill()
        started.wait(30)

    def _mark(self, node: str) -> str:
        return f"{node}@{self.address}"

    def close(self) -> None:
        for node in list(self._nodes):
            self.kill(node)
        shutil.rmtree(self._temporary, ignore_errors=True)

    def run(self, *arguments: str) -> str:
        """A driver of its own process: one that is on a head dies with it."""
        done = subprocess.run(
            [sys.executable, "-m", "tests.rollout.steady", *arguments],
            env=self._environment, capture_output=True, text=True, timeout=STARTS_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def is_up(self) -> bool:
        status = [str(Path(sys.executable).with_name("ray")), "status", "--address", self.address]
        return subprocess.run(status, env=self._environment, capture_output=True, timeout=STARTS_S).returncode == 0


def lines(log: Path) -> list[dict[str, Any]]:
    """What the replica has written down, complete lines only."""
    return [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_head_is_killed_and_comes_back(tmp_path: Path) -> None:
    store, log = DirectionStore(str(tmp_path / "store")), tmp_path / "generations.jsonl"
    for seed in range(2):
        store.publish(made(seed), **SAID)
    store.promote("tiny", "1", **SAID)
    one, two = made(0).sha256, made(1).sha256

    def more(count: int) -> list[dict[str, Any]]:
        """Wait for some more generations; those."""
        before = len(lines(log))
        return until(lambda: found if len(found := lines(log)[before:]) >= count else None, STARTS_S, 0.1)

    with closing(Nodes(tmp_path)) as cluster:
        cluster.start("head")
        until(cluster.is_up, STARTS_S, 1)
        cluster.start("worker")
        cluster.run("begin", cluster.address, store.url, str(log))
        assert {line["sha256"] for line in more(3)} == {one}
        cluster.kill("head")
        assert {line["sha256"] for line in more(10)} == {one}  # without a head, with what it had
        cluster.start("head")
        until(cluster.is_up, STARTS_S, 1)
        pointer = json.loads(cluster.run("promote", cluster.address, store.url, "2"))
        assert (pointer["live"], pointer["generation"]) == (two, 2)
        until(lambda: more(1)[-1]["sha256"] == two, STARTS_S)
        found = lines(log)
    assert all(line["whole"] and line["error"] is None for line in found)
    order = [line["sha256"] for line in found]
    assert order == sorted(order, key=[one, two].index)  # never back again
    events = store.history("tiny")
    assert [event.action for event in events] == ["publish", "publish", "promote", "promote"]
    assert [event.generation for event in events if event.generation] == [1, 2]
