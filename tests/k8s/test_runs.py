"""The overlay embedded-cpu on this machine: what its pods run, its very serveConfigV2, clips through it, and the end of its pods.

What a pod has and this machine lacks is replaced, and nothing else:
- /data and the image's /opt/reins-serve are folders here, port 8000 is a free one, and Serve listens on the loopback;
- head and worker are one node, which is told of the worker's CPUs; the ports of a node's other servers are free ones;
- KubeRay's part is played by the test: it starts Ray with the manifests' parameters and environment, gives it the token, and sends
  serveConfigV2 to the dashboard;
- the drain is as long as the replicas' graceful shutdown and 3 s, instead of a minute, so that it begins within the test's time.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.k8s import consistency
from tests.k8s.manifests import Manifests, Pod, render
from tests.serving.local import create, finished
from tests.serving.ports import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "a token of the tests, 0123456789abcdef0123456789abcdef"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(560)]


@dataclass
class Node:
    """The node, once the application serves."""

    process: subprocess.Popen[bytes]
    http: httpx.Client
    dashboard: httpx.Client
    environment: dict[str, str]
    folder: Path

    def jobs(self) -> list[tuple[str, str, int]]:
        """Name, status and attempts of every job, read beside the gateways."""
        with sqlite3.connect(f"file:{self.folder / 'data' / 'clips' / 'jobs.sqlite3'}?mode=ro", uri=True) as database:
            return database.execute("select id, status, attempts from jobs").fetchall()


@pytest.fixture(scope="module")
def manifests() -> Manifests:
    return render("embedded-cpu")


@pytest.fixture(scope="module")
def node(manifests: Manifests) -> Iterator[Node]:
    folder = Path(tempfile.mkdtemp(prefix="k8s-", dir="/tmp"))  # short: Ray's sockets lie below it
    ports = {name: free_port() for name in ("http", "gcs", "dashboard", "agent", "metrics", "client")}
    head, worker = manifests.serving
    environment = _environment(manifests, worker, folder)
    try:
        _seed(head, environment, folder)
        process = _start(head, worker, environment, folder, ports)
        try:
            dashboard = httpx.Client(base_url=f"http://127.0.0.1:{ports['dashboard']}", timeout=60)
            http = httpx.Client(base_url=f"http://127.0.0.1:{ports['http']}", timeout=60)
            agent = f"http://127.0.0.1:{ports['agent']}{head.ray['readinessProbe']['httpGet']['path']}"
            _until(lambda: _alive(process) and _status(httpx.Client(), agent) == 200)
            assert dashboard.put("/api/serve/applications/", json={}).status_code == 401  # not without the token
            dashboard.headers["Authorization"] = f"Bearer {TOKEN}"
            dashboard.put("/api/serve/applications/", json=_config(manifests, folder, ports["http"])).raise_for_status()
            _until(lambda: _alive(process) and _status(http, "/readyz") == 200)
            yield Node(process, http, dashboard, environment, folder)
        finally:
            _end(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _here(text: str, folder: Path) -> str:
    """A text of the manifests with the paths of this machine."""
    return text.replace("/data", str(folder / "data")).replace(consistency.IMAGE_FILES, str(REPOSITORY))


def _environment(manifests: Manifests, pod: Pod, folder: Path) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    given = consistency.env(pod)
    longest = max(model.generation_timeout_s for model in consistency.config(manifests).models)
    assert float(given[consistency.DRAIN]) > longest
    graceful = max(consistency.graceful_shutdowns(manifests).values())
    return mine | given | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "HOME": str(folder),
        "RAY_AUTH_MODE": manifests.cluster["authOptions"]["mode"],
        "RAY_AUTH_TOKEN": TOKEN,
        consistency.DRAIN: str(graceful + 3),
    }  # fmt: skip


def _seed(head: Pod, environment: dict[str, str], folder: Path) -> None:
    """Run the head's init container."""
    (container,) = head.spec["initContainers"]
    command = [_here(word, folder) for word in (*container["command"], *container["args"])]
    for _ in range(2):  # a pod that starts again changes nothing
        subprocess.run(command, env=environment, check=True, timeout=120)


def _start(
    head: Pod, worker: Pod, environment: dict[str, str], folder: Path, ports: dict[str, int]
) -> subprocess.Popen[bytes]:
    parameters = head.start | worker.start | {
        "num-cpus": worker.ray["resources"]["limits"]["cpu"],
        "dashboard-host": "127.0.0.1",
        "node-ip-address": "127.0.0.1",
        "temp-dir": str(folder),
        "object-store-memory": str(100 << 20),
        "port": str(ports["gcs"]),
        "dashboard-port": str(ports["dashboard"]),
        "dashboard-agent-listen-port": str(ports["agent"]),
        "metrics-export-port": str(ports["metrics"]),
        "ray-client-server-port": str(ports["client"]),
    }  # fmt: skip
    command = ["ray", "start", "--head", "--block", *(f"--{name}={value}" for name, value in parameters.items())]
    with (folder / "ray.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def _config(manifests: Manifests, folder: Path, port: int) -> dict[str, Any]:
    document = yaml.safe_load(_here(manifests.service["serveConfigV2"], folder))
    document["http_options"] |= {"host": "127.0.0.1", "port": port}
    return document


def _status(client: httpx.Client, url: str) -> int:
    try:
        return client.get(url).status_code
    except httpx.TransportError:
        return 0


def _alive(process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "Ray has ended"
    return True


def _below(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Every process that the node has started."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _end(process: subprocess.Popen[bytes]) -> None:
    for one in [*_below(process), process]:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def _replicas(process: subprocess.Popen[bytes]) -> list[str]:
    """What Serve's replicas on the node call themselves."""
    names = []
    for one in _below(process):
        with suppress(psutil.NoSuchProcess):
            names.append(" ".join(one.cmdline()))
    return [name for name in names if name.startswith("ray::ServeReplica")]


def _until(condition: Callable[[], Any]) -> None:
    """Wait until a condition is true; the test's own timeout ends a wait in vain."""
    while not condition():
        time.sleep(0.2)


def test_a_clip_is_steered_by_the_direction_that_the_init_container_stored(node: Node) -> None:
    video = finished(node.http, create(node.http, prompt="a red square moving left", seed=1))
    assert video["status"] == "completed"
    assert video["steering"]["steered"] and video["steering"]["proved"]
    assert video["steering"]["version"] == "1"
    content = node.http.get(f"/v1/videos/{video['id']}/content")
    assert content.status_code == 200 and content.content[4:8] == b"ftyp"


def test_serve_follows_every_option_of_the_manifests(node: Node, manifests: Manifests) -> None:
    details = node.dashboard.get("/api/serve/applications/").json()
    application = details["applications"]["reins"]
    assert application["status"] == "RUNNING"
    for deployment in manifests.serve["applications"][0]["deployments"]:
        running = application["deployments"][deployment["name"]]["deployment_config"]
        assert running["ray_actor_options"].items() >= deployment["ray_actor_options"].items()


def test_the_scheduled_recalibration_reaches_the_cluster_that_serves(node: Node, manifests: Manifests) -> None:
    """The job's own command, from a folder as Kubernetes mounts it; fewer clips, and the end after the first stage."""
    mounted = node.folder / "mounted"
    (mounted / "..first").mkdir(parents=True)
    small = yaml.safe_load(manifests.one("ConfigMap", "reins-recalibration")["data"]["recalibrate.yaml"]) | {
        "fit": 4,
        "seeds": 1,
    }
    (mounted / "..first" / "recalibrate.yaml").write_text(_here(yaml.safe_dump(small), node.folder))
    (mounted / "..data").symlink_to("..first")
    (mounted / "recalibrate.yaml").symlink_to("..data/recalibrate.yaml")
    command = _here(manifests.job["entrypoint"], node.folder).replace("/etc/reins/recalibration", str(mounted))
    command = command.replace("http://reins-head-svc:8265", str(node.dashboard.base_url))
    other = {"RAY_ADDRESS": "127.0.0.1:1"}  # in its pod this is the job's own small cluster
    subprocess.run(["bash", "-c", f"{command} --until collect"], env=node.environment | other, check=True)
    assert list((node.folder / "data" / "recalibration").glob("*/activations/**/*.parquet"))


def test_generations_of_a_pod_that_goes_are_finished(node: Node) -> None:
    jobs = [create(node.http, num_inference_steps=100, seed=seed) for seed in range(24)]
    _until(lambda: "in_progress" in [status for _, status, _ in node.jobs()])
    assert _replicas(node.process)
    node.process.terminate()  # what Kubernetes does first
    on_their_way = {name for name, status, _ in node.jobs() if status == "in_progress"}
    assert on_their_way
    _until(lambda: not _replicas(node.process))
    rows = {name: (status, attempts) for name, status, attempts in node.jobs()}
    assert {rows[name] for name in on_their_way} == {("completed", 1)}
    assert {rows[job["id"]][0] for job in jobs} <= {
        "completed",
        "queued",
    }  # what had not begun waits for the next cluster
