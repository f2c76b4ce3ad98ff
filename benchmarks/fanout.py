"""How long the registry takes to tell many watchers of a new version: `python -m benchmarks.fanout --json fanout.json`.

Light watchers only: threads that wait in the registry's long-poll, report, and note when the answer came. What a replica does with
it (fetching, checking, swapping) takes place on a thousand machines at the same time in a cluster, and would only crowd this one.
The time runs from before the call of `promote` to the last watcher's answer. A line through the medians (seconds against
watchers) gives the cost of one more watcher; what lies beyond the largest number measured is extrapolated, and says so.
"""

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np
import ray

from benchmarks import cluster
from benchmarks.machine import describe
from benchmarks.output import show
from reins_serve.rollout.client import Registry, connect
from reins_serve.rollout.snapshot import Report
from reins_serve.steering.direction import Direction

SAID: dict[str, Any] = {"who": "benchmark", "why": "a measurement"}
FILES = ("directions/embedded/setpoint.safetensors", "directions/embedded/add.safetensors")
MODEL, PER_PROCESS, PATIENCE_S = "embedded", 32, 60.0


@ray.remote(num_cpus=0)
class Watchers:
    """Some watchers in one process, as threads."""

    def __init__(self, url: str, first: int, count: int) -> None:
        self._registry = connect(url)
        self._heard: dict[int, list[float]] = {}
        self._lock = threading.Lock()
        for number in range(first, first + count):
            threading.Thread(target=self._follow, args=(f"watcher-{number}",), daemon=True).start()

    def _follow(self, name: str) -> None:
        known = 0
        while True:
            snapshot = self._registry.wait(MODEL, known, Report(name, known, None, None, time.time()))
            if snapshot.generation != known:
                known = snapshot.generation
                with self._lock:
                    self._heard.setdefault(known, []).append(time.time())

    def heard(self, generation: int) -> list[float]:
        """When those that know a generation heard of it, Unix times."""
        with self._lock:
            return list(self._heard.get(generation, ()))


def everybody(groups: list[Any], generation: int, watchers: int) -> list[float]:
    """When each watcher heard of a generation, once all have."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        heard = [at for found in ray.get([group.heard.remote(generation) for group in groups]) for at in found]
        if len(heard) == watchers:
            return heard
        time.sleep(0.05)
    raise TimeoutError(f"not all of {watchers} watchers heard of generation {generation} within {PATIENCE_S:g} s")


def fan_out(url: str, registry: Registry, watchers: int, moves: int) -> dict[str, float]:
    """Milliseconds until the median watcher, and the last one, has heard; medians over the moves."""
    spans = [min(PER_PROCESS, watchers - first) for first in range(0, watchers, PER_PROCESS)]
    groups = [Watchers.remote(url, PER_PROCESS * index, count) for index, count in enumerate(spans)]
    pointer = registry.find(MODEL)
    assert pointer is not None
    everybody(groups, pointer.generation, watchers)
    middles, lasts = [], []
    for move in range(moves):
        began = time.time()
        generation = registry.promote(MODEL, str(1 + (move + 1) % 2), **SAID).generation
        heard = np.array(everybody(groups, generation, watchers)) - began
        middles.append(float(np.median(heard)))
        lasts.append(float(heard.max()))
        time.sleep(0.2)
    for group in groups:
        ray.kill(group)
    low, middle, high = np.percentile(lasts, [25, 50, 75])
    return {
        "watchers": watchers,
        "median_ms": round(1000 * float(np.median(middles)), 1),
        "last_ms": round(1000 * float(middle), 1),
        "last_quartiles_ms": [round(1000 * float(low), 1), round(1000 * float(high), 1)],
    }


def extrapolated(measured: list[dict[str, float]], replicas: int) -> dict[str, float]:
    """A straight line through the measured times of the last watcher, by least squares."""
    slope, constant = np.polyfit([m["watchers"] for m in measured], [m["last_ms"] for m in measured], 1)
    return {
        "ms_per_watcher": round(float(slope), 3),
        "constant_ms": round(float(constant), 1),
        "replicas": replicas,
        "last_ms": round(float(constant + slope * replicas)),
    }


def main() -> None:
    """Print and write every figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--watchers", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--replicas", type=int, default=1000, help="for how many the line is drawn on")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    cluster.start()
    try:
        with tempfile.TemporaryDirectory(prefix="reins-fanout-") as folder:
            registry = connect(f"{folder}/store")
            for file in FILES:
                registry.publish(Direction.load(file), **SAID)
            registry.promote(MODEL, "1", **SAID)
            measured = [fan_out(f"{folder}/store", registry, count, asked.moves) for count in asked.watchers]
    finally:
        ray.shutdown()
    figures: dict[str, Any] = {
        "machine": describe(),
        "setting": {"watchers": asked.watchers, "moves": asked.moves},
        "measured": measured,
        "extrapolated": extrapolated(measured, asked.replicas),
    }
    show(figures, asked.json)


if __name__ == "__main__":
    main()
