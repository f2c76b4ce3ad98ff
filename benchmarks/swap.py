"""How fast a direction reaches every replica under load, and what that costs: `python -m benchmarks.swap --json swap.json`.

Each replica holds the embedded pipeline, compiled by region with the `eager` backend so that a recompilation would be counted,
and denoises small batches at a steady rate. Versions are published and promoted, and rolled back, in turn; the time runs
from before the call to the last replica's swap. Stretches with swaps and without take turns, so that the ratio of a generation's
time is of neighbours. At every step of every generation the vectors in the hook are compared with
those of the version that the record names: another known version there is a mixture, anything else a torn vector.

In a cluster every replica checks a new direction on a machine of its own, at the same time; here all share one. The load leaves
the processors about half of their time, or else the figures would be those of a queue for processors, and swaps follow each other
far faster than anybody's: `latency_ratio` is that of so many.
"""

import argparse
import os
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np
import ray
import torch
from ray import serve

from benchmarks import cluster
from benchmarks.machine import compiled_graphs, describe
from benchmarks.output import show
from benchmarks.paired import ratio
from reins_serve.rollout.client import Registry, connect
from reins_serve.steering.direction import Direction

SAID: dict[str, Any] = {"who": "benchmark", "why": "a measurement"}
FILE = "directions/embedded/setpoint.safetensors"
BATCH, STEPS, PATIENCE_S = 2, 6, 60.0


@serve.deployment(max_ongoing_requests=1, ray_actor_options={"num_cpus": 0})
class Replica:
    """A replica of somebody's own that follows the store."""

    def __init__(self, url: str) -> None:
        import reins_serve
        from reins_serve.models import catalog, loading
        from reins_serve.models.acceleration import accelerate
        from reins_serve.models.options import LoadingOptions
        from reins_serve.steering.confirm import confirm

        torch.set_num_threads(1)
        options = LoadingOptions.model_validate({"compile": {"mode": "regional", "backend": "eager"}})
        self.entry = catalog.get("embedded")
        self.pipeline = loading.load(self.entry, options)
        self.steering = reins_serve.attach(self.pipeline, model="embedded", directions=f"reins://{url}")
        accelerate(self.pipeline, options)
        confirm(self.steering, self.entry)
        self.generate(0)
        self.graphs = compiled_graphs()
        self.known: dict[bytes, str] = {}

    def generate(self, seed: int) -> tuple[float, set[str], str]:
        """One batch: its wall time, the versions that were in the hook, and the one of the record."""
        from reins_serve.models.generation import generate, request

        seen: set[str] = set()

        def on_step(done: int, total: int) -> None:
            for hook in self.steering.hooks:
                for rows in hook.rows.values():
                    seen.update(self._named(vector) for vector in rows.push.vector)

        clips = [
            request(self.entry, "a red square moving left", seed + n, num_inference_steps=STEPS) for n in range(BATCH)
        ]
        began = time.perf_counter()
        with self.steering.generation(prompts=BATCH, on_step=on_step) as g:
            for direction in g.directions:
                assert direction is not None
                self.known = getattr(self, "known", {}) | {
                    vector.numpy().tobytes(): direction.sha256 for vector in direction.vectors
                }
            generate(self.pipeline, self.entry, clips, g.arguments)
        (sha256,) = {record.sha256 for record in g.records}
        assert sha256 is not None and all(record.proved for record in g.records)
        return time.perf_counter() - began, seen, sha256

    def _named(self, vector: torch.Tensor) -> str:
        return self.known.get(vector.numpy().tobytes(), "torn")

    def __call__(self, seed: int) -> dict[str, Any]:
        seconds, seen, sha256 = self.generate(seed)
        return {
            "seconds": seconds,
            "mixed": len(seen - {"torn"}) > 1 or bool(seen - {"torn", sha256}),
            "torn": "torn" in seen,
            "checked": bool(seen),
            "pid": os.getpid(),
            "recompiles": compiled_graphs() - self.graphs,
        }


class Load:
    """Requests from as many clients as there are replicas, each of which pauses between two of them."""

    def __init__(self, handle: Any, clients: int, pause_s: float) -> None:
        self._handle = handle
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        self.answers: list[tuple[float, dict[str, Any]]] = []
        self.lost: list[str] = []

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.time()
            try:
                self.answers.append((began, self._handle.remote(random.randrange(2**31)).result()))
            except Exception as error:
                self.lost.append(repr(error))
            self._stop.wait(self._pause_s * random.uniform(0.5, 1.5))

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)


def version(shipped: Direction, number: int) -> Direction:
    """A direction near the shipped one, which no other number gives."""
    noise = torch.randn(shipped.vectors.shape, generator=torch.Generator().manual_seed(number))
    vectors = torch.nn.functional.normalize(shipped.vectors + 0.02 * noise, dim=1)
    return Direction.create(shipped.meta.model_copy(update={"version": str(number)}), vectors)


def reached(registry: Registry, sha256: str, replicas: int) -> float:
    """Wait until all replicas have a version; Unix time of the last one's swap."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        since = [r["since"] for r in registry.status("embedded")["replicas"] if r["live"] == sha256]
        if len(since) == replicas:
            return max(since)
        time.sleep(0.05)  # the replicas say when it was: asking more often would only take the time of what is measured
    raise TimeoutError(f"not every replica took up {sha256[:12]} within {PATIENCE_S:g} s")


def measure(replicas: int, swaps: int, stretches: int, pause_s: float, gap_s: float, folder: str) -> dict[str, Any]:
    """Serve, load, swap; every figure of the run."""
    registry = connect(f"{folder}/store")
    shipped = Direction.load(FILE)
    registry.publish(shipped, **SAID)
    registry.promote("embedded", "1", **SAID)
    handle = serve.run(Replica.options(num_replicas=replicas).bind(f"{folder}/store"), name="swap", route_prefix=None)
    times: dict[str, list[float]] = {"publish": [], "rollback": []}
    spans: list[tuple[float, float, float]] = []  # a stretch with swaps begins, ends; the one without after it ends
    with Load(handle, replicas, pause_s) as load:
        time.sleep(5 * pause_s)
        for numbers in np.array_split(np.arange(swaps), stretches):
            began = time.time()
            for number in numbers.tolist():
                swap(registry, shipped, number, replicas, times)
                time.sleep(gap_s)
            ended = time.time()
            time.sleep(ended - began)
            spans.append((began, ended, time.time()))
    answers = load.answers
    took = [
        [[a["seconds"] for at, a in answers if first <= at < last] for first, last in ((x, y), (y, z))]
        for x, y, z in spans
    ]
    medians = [(float(np.median(during)), float(np.median(quiet))) for during, quiet in took if during and quiet]
    latency = None  # where there were too few swaps for a request to meet one
    if medians:
        latency = ratio([during for during, _ in medians], [quiet for _, quiet in medians])
    return {
        "replicas": replicas,
        "swaps": swaps,
        "requests": len(answers) + len(load.lost),
        **_figures(times["publish"] + times["rollback"]),
        "publish": _figures(times["publish"]),
        "rollback": _figures(times["rollback"]),
        "lost": len(load.lost),
        "checked": sum(a["checked"] for _, a in answers),
        "mixed": sum(a["mixed"] for _, a in answers),
        "torn": sum(a["torn"] for _, a in answers),
        "recompiles": sum({a["pid"]: a["recompiles"] for _, a in answers}.values()),
        "latency_ratio": None if latency is None else round(latency.median, 3),
        "latency": None if latency is None else latency.as_json(),
        "generation_ms": {
            "swaps": _quartiles([second for during, _ in took for second in during]),
            "no_swaps": _quartiles([second for _, quiet in took for second in quiet]),
        },
        "errors": load.lost[:3],
    }


def swap(registry: Registry, shipped: Direction, number: int, replicas: int, times: dict[str, list[float]]) -> None:
    """Publish and promote a new version where the number is even, roll back where it is odd; adds the milliseconds to `times`."""
    start = time.time()
    if number % 2 == 0:
        direction = version(shipped, number)
        registry.promote("embedded", registry.publish(direction, **SAID).sha256, **SAID)
        target, kind = direction.sha256, "publish"
    else:
        target, kind = str(registry.rollback("embedded", **SAID).live), "rollback"
    times[kind].append(1000 * (reached(registry, target, replicas) - start))


def _figures(milliseconds: list[float]) -> dict[str, float]:
    p50, p95 = np.percentile(milliseconds, [50, 95])
    return {"p50_ms": round(p50, 1), "p95_ms": round(p95, 1), "max_ms": round(max(milliseconds), 1)}


def _quartiles(seconds: list[float]) -> list[float]:
    """In milliseconds; of none, none."""
    if not seconds:
        return []
    return [round(1000 * float(value), 1) for value in np.percentile(seconds, [25, 50, 75])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument(
        "--stretches", type=int, default=20, help="stretches of load with swaps, each followed by one without"
    )
    parser.add_argument("--pause", type=float, default=4.0, help="mean seconds between two requests of a client")
    parser.add_argument("--gap", type=float, default=1.0, help="seconds between two swaps")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    asked = parser.parse_args()
    cluster.start()
    try:
        with tempfile.TemporaryDirectory(prefix="reins-swap-") as folder:
            figures = {"machine": describe()} | measure(
                asked.replicas, asked.swaps, asked.stretches, asked.pause, asked.gap, folder
            )
    finally:
        serve.shutdown()
        ray.shutdown()
    show(figures, asked.json)


if __name__ == "__main__":
    main()
