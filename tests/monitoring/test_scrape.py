"""A real Prometheus scrapes a real application while jobs run, a direction is swapped, a replica dies, and the head dies.

The tests go on from each other in the order of this file: each says what has happened since the last.
"""

import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.monitored import Prometheus, Server, monitored, wait
from reins_serve.rollout.storage import DirectionStore
from reins_serve.serving.config import hash_key
from reins_serve.steering.direction import Direction, Guard
from tests.monitoring.names import queries
from tests.serving.local import create
from tests.serving.ports import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # two starts of a cluster, on whatever the machine has left
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="prometheus is not installed: apt-get install prometheus"
    ),
]

ADMIN_KEY = "an admin key for tests"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
SAID: dict[str, Any] = {"why": "a test", "override": "it is one"}
COMPLETED = 'reins:generations:total{outcome="completed"}'


def guarded(direction: Direction) -> Direction:
    """The same, guarding at its own block, so that there are figures of guards."""
    return Direction.create(
        direction.meta.model_copy(update={"guard": Guard(blocks=direction.blocks, shortfall=0.25)}), direction.vectors
    )


SETPOINT, ADD = (Direction.load(f"directions/embedded/{name}.safetensors") for name in ("setpoint", "add"))
VERSIONS = {"v1": guarded(SETPOINT), "v2": ADD}


@dataclass
class World:
    """The server, its Prometheus, and what has truly become of the jobs so far."""

    server: Server
    prometheus: Prometheus
    began: float = field(default_factory=time.time)
    steered: dict[str, int] = field(default_factory=lambda: {"v1": 0, "v2": 0})
    unsteered: int = 0

    @property
    def completed(self) -> int:
        return sum(self.steered.values()) + self.unsteered

    def generate(self, n: int, version: str | None) -> None:
        """Have clips made, and see that a version steered them, or none."""
        with self.client() as http:
            self.see(http, [self.create(http, version is not None) for _ in range(n)], version)

    def create(self, http: httpx.Client, steered: bool = True, steps: int = 4) -> dict[str, Any]:
        """Create a job."""
        off = {} if steered else {"steering": {"policy": "off"}}
        return create(http, ADMIN, num_inference_steps=steps, **off)

    def under_way(self, http: httpx.Client, n: int) -> list[dict[str, Any]]:
        """Some jobs, of which the first has begun."""
        jobs = [self.create(http, steps=40) for _ in range(n)]
        wait(lambda: http.get(f"/v1/videos/{jobs[0]['id']}").json()["status"] == "in_progress")
        return jobs

    def see(self, http: httpx.Client, jobs: list[dict[str, Any]], version: str | None) -> None:
        """Wait until jobs are over, and count them by the record of each."""
        for job in jobs:
            video = wait(lambda job=job: over(http, job))
            assert video["status"] == "completed", video
            assert video["steering"]["proved"] == (version is not None)
            if version is None:
                self.unsteered += 1
            else:
                assert video["steering"]["sha256"] == VERSIONS[version].sha256
                assert (video["steering"]["guarded"] is not None) == (VERSIONS[version].meta.guard is not None)
                self.steered[version] += 1

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.server.url, timeout=60, headers=ADMIN)

    def by_version(self) -> dict[str, float]:
        """Steered clips by version, as Prometheus has them."""
        return {
            labels["version"]: value for labels, value in self.prometheus.samples("reins:steered_generations:total")
        }

    def check(self) -> None:
        """The totals become the truth, and have never fallen on their way."""
        found = self.prometheus
        wait(lambda: found.value(COMPLETED) == self.completed, f"{COMPLETED} is not {self.completed}")
        steered = {version: n for version, n in self.steered.items() if n}
        wait(lambda: self.by_version() == steered, f"{self.by_version()} is not {steered}")
        share = f"sum(reins:steered_generations:total) / sum({COMPLETED})"
        assert found.value(share) == sum(self.steered.values()) / self.completed
        ((_, course),) = found.course(COMPLETED, self.began, time.time(), 1)
        values = [value for _, value in course]
        assert values == sorted(values)


def over(http: httpx.Client, job: dict[str, Any]) -> dict[str, Any] | None:
    """The video object once its job has ended; None also while the server does not answer."""
    try:
        video = http.get(f"/v1/videos/{job['id']}").json()
    except httpx.HTTPError:
        return None
    return video if video.get("status") in ("completed", "failed") else None


def numbers(samples: list[tuple[dict[str, str], float]]) -> list[float]:
    """Values that a panel draws: a rate of nothing over nothing is none."""
    return [value for _, value in samples if math.isfinite(value)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server that follows a store whose first version is live, and a Prometheus, both just started."""
    folder = tmp_path_factory.mktemp("monitored")
    store = DirectionStore(str(folder / "store"))
    for direction in VERSIONS.values():
        store.publish(direction, who="ann", why="a test")
    store.promote("embedded", "1", who="ann", **SAID)
    model = {"name": "embedded", "store": store.url, "torch_threads": 1, "max_batch_size": 4, "num_cpus": 0}
    config = {
        "models": [model],
        "output_dir": str(folder / "clips"),
        "num_gateways": 2,
        "admin_key_sha256": hash_key(ADMIN_KEY),
    }
    server = Server(config, folder, free_port(), free_port())
    twice = [
        f"{host}:{server.port}" for host in ("127.0.0.1", "localhost")
    ]  # each answered by one gateway or the other
    jobs = {"gateway": (1, twice), "ray": (5, [f"127.0.0.1:{server.exporter}"])}
    prometheus = Prometheus(folder, free_port(), jobs)
    with monitored(server, prometheus):
        wait(lambda: prometheus.value(COMPLETED) == 0, "the gateway was not scraped")
        yield World(server, prometheus)


def test_the_steering_rate_is_exactly_the_jobs_truth(world: World) -> None:
    found = world.prometheus
    assert found.value("reins:steering_rate:ratio5m") is None
    world.generate(5, "v1")
    world.generate(2, None)
    wait(lambda: found.value("reins:steering_rate:ratio5m") == 5 / 7, "the rate is not 5/7")
    assert found.value("reins:completed_generations:increase5m") == 7
    assert found.value('reins:unsteered_generations:total{reason="admin"}') == 2
    wait(lambda: found.value('ALERTS{alertname="ReinsSteeringRateBelowOne", alertstate="firing"}'))
    world.check()


def test_a_swap_is_visible(world: World) -> None:
    found = world.prometheus
    with world.client() as http:
        answer = http.post("/v1/directions/embedded/promote", json=SAID | {"version": "2"})
        assert answer.status_code == 200, answer.text

        def everywhere() -> bool:
            (listed,) = http.get("/v1/directions").json()["data"]
            return [r["live"] for r in listed["serving"]["replicas"]] == [VERSIONS["v2"].sha256]

        wait(everywhere)
    world.generate(3, "v2")
    live = 'reins_direction_info{channel="live"}'
    wait(lambda: {labels["version"] for labels, _ in found.samples(live)} == {"v2"})

    def times() -> dict[str, list[float]]:
        """When each version was the live one, second by second."""
        course = found.course(f"max by (version) ({live})", world.began, time.time(), 1)
        return {labels["version"]: [at for at, _ in values] for labels, values in course}

    # The last whole second may lie before the scrape that saw version 2 alone.
    wait(lambda: max(times()["v1"]) < max(times().get("v2", [0.0])))
    assert min(times()["v1"]) < min(times()["v2"])
    wait(
        lambda: found.value('sum(ray_reins_direction_swaps_total{deployment="model-embedded", result="swapped"})') == 1
    )
    world.check()


def test_every_query_of_the_dashboard_is_answered(world: World) -> None:
    # What a replica counts before Ray first exports it is no addition for Prometheus: one more clip after that is.
    for series in ("ray_reins_denoise_step_seconds_count", 'ray_reins_stage_seconds_count{stage="encode"}'):
        wait(lambda series=series: world.prometheus.samples(series), f"Ray does not export {series}")
    world.generate(1, "v2")
    dashboard = json.loads(Path("k8s/monitoring/dashboard.json").read_text())
    empty = {"GPU use", "GPU memory in use", "Drift: last day against the two days before"}  # no GPU, and no three days
    for panel in dashboard["panels"]:
        for query in queries(panel) if panel["type"] != "row" else ():
            if panel["title"] in empty:
                assert world.prometheus.samples(query) == []
            elif "steering_failures" not in query:
                wait(lambda query=query: numbers(world.prometheus.samples(query)), f"no number for {query}")


def test_a_replica_that_is_killed_leaves_the_totals_right(world: World) -> None:
    with world.client() as http:
        jobs = world.under_way(http, 5)
        (replica,) = world.server.processes("ServeReplica:reins:model-embedded")
        replica.kill()
        world.see(http, jobs, "v2")
    wait(lambda: {p.pid for p in world.server.processes("ServeReplica:reins:model-embedded")} - {replica.pid})
    world.generate(1, "v2")
    world.check()


def test_a_head_that_is_killed_leaves_the_totals_right(world: World) -> None:
    found = world.prometheus
    with world.client() as http:
        jobs = world.under_way(http, 2)
    world.server.kill()
    wait(lambda: found.value('max(up{job="gateway"})') == 0)
    world.server.start()
    with world.client() as http:
        world.see(http, jobs, "v2")
    world.generate(1, "v2")
    world.check()
