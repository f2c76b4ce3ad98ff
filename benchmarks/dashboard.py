"""The dashboard's queries, answered by a real Prometheus and drawn: `python -m benchmarks.dashboard --out dashboard.png`.

A server of the embedded model, with two gateways, steers a stream of jobs while its direction has a canary, is promoted and is
rolled back, while somebody turns steering off for a few clips, and while a replica is killed. It is no Grafana, and nothing of
it is a measurement of speed: server, clients and Prometheus share the machine.
"""

import argparse
import itertools
import json
import os
import random
import secrets
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import httpx

from benchmarks.draw_dashboard import draw
from benchmarks.machine import describe
from benchmarks.monitored import Prometheus, Server, monitored, wait
from reins_serve.embedded.prompts import prompts
from reins_serve.rollout.storage import DirectionStore
from reins_serve.serving.config import hash_key
from reins_serve.steering.direction import Direction

FILES = ("setpoint", "add")
SAID: dict[str, Any] = {"why": "a demonstration", "override": "it is one"}
DASHBOARD = Path("k8s/monitoring/dashboard.json")
PORTS = (28_401, 28_402, 28_403)


class Traffic:
    """Clients that ask for clips without a pause, until it is left."""

    def __init__(self, url: str, key: str, clients: int) -> None:
        self._url, self._admin = url, {"Authorization": f"Bearer {key}"}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(clients)]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def ask(self, http: httpx.Client, **body: Any) -> str:
        """Create a job; its id."""
        answer = http.post("/v1/videos", json={"num_inference_steps": 8} | body, headers=self._admin)
        answer.raise_for_status()
        return answer.json()["id"]

    def _run(self, number: int) -> None:
        asked = [*prompts("evaluate", False, 36, seed=number), *prompts("evaluate", True, 12, seed=number)]
        random.Random(number).shuffle(asked)
        with httpx.Client(base_url=self._url, timeout=60) as http:
            for prompt in itertools.cycle(asked):
                if self._stop.is_set():
                    return
                job = self.ask(http, prompt=prompt.text)
                while not self._stop.is_set() and http.get(f"/v1/videos/{job}").json().get("status") in (
                    "queued",
                    "in_progress",
                ):
                    time.sleep(0.3)


def scenario(server: Server, key: str, minutes: float) -> None:
    """What happens, at shares of the time."""
    admin = httpx.Client(base_url=server.url, timeout=60, headers={"Authorization": f"Bearer {key}"})
    begin = time.monotonic()

    def at(share: float) -> None:
        time.sleep(max(0.0, begin + share * 60 * minutes - time.monotonic()))

    def move(action: str, **body: Any) -> None:
        admin.post(f"/v1/directions/embedded/{action}", json=body).raise_for_status()

    with admin, Traffic(server.url, key, clients=6) as traffic:
        at(0.2)
        move("canary", version="2", fraction=0.3, **SAID)
        at(0.4)
        move("promote", version="2", **SAID)
        at(0.55)
        for _ in range(12):
            traffic.ask(admin, prompt="a red square moving left", steering={"policy": "off"})
        at(0.65)
        move("rollback", why=SAID["why"])
        at(0.72)
        server.processes("ServeReplica:reins:model-embedded")[0].kill()
        at(1)


def main() -> None:
    """Run it and draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("dashboard.png"), help="the picture")
    parser.add_argument("--minutes", type=float, default=10, help="of traffic")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the clean-up
    dashboard = json.loads(DASHBOARD.read_text())
    print(json.dumps(describe()))
    with tempfile.TemporaryDirectory() as name:
        folder, key = Path(name), secrets.token_urlsafe(16)
        store = DirectionStore(str(folder / "store"))
        for file in FILES:
            store.publish(
                Direction.load(Path(f"directions/embedded/{file}.safetensors")), who="benchmark", why=SAID["why"]
            )
        store.promote("embedded", "1", who="benchmark", **SAID)
        model = {"name": "embedded", "store": store.url, "torch_threads": 1, "max_batch_size": 8, "num_cpus": 0}
        config = {
            "models": [model],
            "output_dir": str(folder / "clips"),
            "num_gateways": 2,
            "admin_key_sha256": hash_key(key),
        }
        server = Server(config, folder, *PORTS[:2])
        jobs = {"reins-gateway": (2, [f"127.0.0.1:{server.port}"]), "reins-ray": (10, [f"127.0.0.1:{server.exporter}"])}
        prometheus = Prometheus(folder, PORTS[2], jobs)
        with monitored(server, prometheus):
            wait(lambda: prometheus.samples("reins:generations:total"))
            start = time.time()
            scenario(server, key, asked.minutes)
            end = time.time()
            queries = {target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())}
            answers = {
                q: prometheus.course(q.replace("$model", ".*"), start, end, (end - start) / 240) for q in queries
            }
    draw(dashboard, answers, start, end, asked.out)
    answered = f"{sum(map(bool, answers.values()))} of {len(answers)} queries had an answer"
    print(f"{asked.out}: {asked.out.stat().st_size >> 10} KiB; {answered}")


if __name__ == "__main__":
    main()
