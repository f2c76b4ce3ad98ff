"""How many replicas a load needs, and when scale-to-zero pays: `python -m benchmarks.simulate --json simulate.json`.

The constants are measured here: the time of a pipeline call against the clips in it, and the time from a replica's start to its
first job. `--call`, `--clip` and `--load` give those of another model and machine in their place. `check` is a real run, with one
replica behind the whole server, beside the simulation of the same arrivals: how far the answers can be trusted.
"""

import argparse
import asyncio
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np
import ray

from benchmarks import cluster
from benchmarks.load import Client, ends
from benchmarks.machine import describe
from benchmarks.output import show
from benchmarks.simulation import Outcome, Scaling, Service, Simulation, poisson

PROMPT, STEPS = "a red square moving left", 20
LOADS = (0.7, 2.8, 11.2, 44.8)  # mean arrivals, in multiples of one replica's capacity
QUIET = (1 / 60, 1 / 600, 1 / 3600)  # arrivals a second of a model that hardly anybody asks for


@ray.remote(num_cpus=0)
class Measured:
    """A replica's process, without server."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)

    def calls(self, sizes: list[int], rounds: int) -> list[tuple[int, float]]:
        """The seconds of pipeline calls, encoding included, by their clips."""
        from reins_serve.models import catalog, loading
        from reins_serve.models.generation import generate, request
        from reins_serve.models.video import mp4

        entry = catalog.get("embedded")
        pipeline = loading.load(entry)
        found = []
        for number in range(rounds + 1):
            for size in sizes:
                clips = [request(entry, PROMPT, row, num_inference_steps=STEPS) for row in range(size)]
                began = time.perf_counter()
                for frames in generate(pipeline, entry, clips):
                    mp4(frames, entry.fps)
                if number:  # the first round warms up
                    found.append((size, time.perf_counter() - began))
        return found


def service_of(calls: list[tuple[int, float]], batch: int, load_s: float) -> Service:
    """A straight line through the medians of the calls' times."""
    sizes = sorted({size for size, _ in calls})
    medians = [float(np.median([seconds for size, seconds in calls if size == one])) for one in sizes]
    clip_s, call_s = np.polyfit(sizes, medians, 1)
    return Service(max(0.0, float(call_s)), float(clip_s), batch, 0.02, load_s)


def sizing(service: Service, p95_s: float, seconds: float) -> list[dict[str, Any]]:
    """The fewest replicas that keep 95 % of the clips within a time, for each load."""
    rows = []
    for load in LOADS:
        rate = load * service.capacity
        arrivals = poisson(rate, seconds, 1)
        replicas = math.ceil(load)
        while (found := Simulation(arrivals, service, Scaling.fixed(replicas)).run()).latency(95) > p95_s:
            replicas += 1
        rows.append(
            {
                "clips_per_s": round(rate, 2),
                "in_capacities": load,
                "replicas": replicas,
                **_latency(found),
                "busy": round(load / replicas, 2),
                "mean_batch": round(float(np.mean(found.batches)), 2),
            }
        )
    return rows


def to_zero(service: Service, seconds: float) -> list[dict[str, Any]]:
    """A model that hardly anybody asks for: one replica always, or none while nobody asks (Serve's delays as by default)."""
    rows = []
    for rate in QUIET:
        arrivals = poisson(rate, seconds, 2)
        always = Simulation(arrivals, service, Scaling.fixed(1)).run()
        zero = Simulation(arrivals, service, Scaling(0, 1, service.max_batch, 10, 600, 600)).run()
        rows.append(
            {
                "clips_per_hour": round(3600 * rate, 1),
                "replica_time_saved": round(1 - zero.replica_s / always.replica_s, 3),
                "p50_s": {"always": round(always.latency(50), 2), "to_zero": round(zero.latency(50), 2)},
                "p95_s": {"always": round(always.latency(95), 2), "to_zero": round(zero.latency(95), 2)},
            }
        )
    return rows


async def real(arrivals: list[float], batch: int, folder: Path, port: int) -> tuple[dict[str, Any], float]:
    """The server under these arrivals: its latencies, and how long its replica took to load."""
    from reins_serve.serving.config import ApplicationConfig
    from reins_serve.serving.local import served

    model = {
        "name": "embedded",
        "directions": {"live": "directions/embedded/setpoint.safetensors"},
        "num_cpus": 0,
        "torch_threads": 1,
        "max_batch_size": batch,
        "max_batch_wait_ms": 20,
    }
    config = ApplicationConfig.model_validate({"models": [model], "output_dir": str(folder / "clips")})
    began = time.perf_counter()
    with served(config, port) as address:
        load_s = time.perf_counter() - began
        client = Client(address, 1.0, STEPS)
        await client.offer_at([0.0] * batch)
        await client.idle()
        client.accepted.clear()
        await client.offer_at(arrivals)
        await client.idle()
        found = await ends(config.database_url, client.accepted)
        await client.close()
    p50, p90 = np.percentile(found.latencies, [50, 90])
    figures = {"p50_s": round(float(p50), 2), "p90_s": round(float(p90), 2), "completed": found.outcomes["completed"]}
    return figures, load_s


def _latency(outcome: Outcome) -> dict[str, float]:
    return {f"p{percent}_s": round(outcome.latency(percent), 2) for percent in (50, 95, 99)}


def main() -> None:
    """Print and write every answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--call", type=float, help="seconds of a call apart from its clips; measured if not given")
    parser.add_argument("--clip", type=float, help="seconds of each clip in it")
    parser.add_argument("--load", type=float, help="seconds from a replica's start to its first job")
    parser.add_argument("--within", type=float, default=2.5, help="95 %% of the clips within so many times a full call")
    parser.add_argument("--check", type=float, default=60.0, help="seconds of the real run; 0: none")
    parser.add_argument("--port", type=int, default=8124)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    figures: dict[str, Any] = {"machine": describe()}
    if asked.call is not None and asked.clip is not None and asked.load is not None:
        service = Service(asked.call, asked.clip, asked.batch, 0.02, asked.load)
    else:
        cluster.start()
        calls = ray.get(Measured.remote().calls.remote([1, 2, 4, asked.batch], 5))
        ray.shutdown()
        service = service_of(calls, asked.batch, 0.0)
        if asked.check:
            arrivals = poisson(0.7 * service.capacity, asked.check, 3)
            with tempfile.TemporaryDirectory(prefix="reins-simulate-") as folder:
                found, load_s = asyncio.run(real(arrivals, asked.batch, Path(folder), asked.port))
            service = service_of(calls, asked.batch, load_s)
            simulated = Simulation(arrivals, service, Scaling.fixed(1)).run()
            figures["check"] = {
                "jobs": len(arrivals),
                "clips_per_s": round(0.7 * service.capacity, 2),
                "real": found,
                "simulated": {f"p{percent}_s": round(simulated.latency(percent), 2) for percent in (50, 90)},
            }
    full = service.seconds(service.max_batch)
    figures |= {
        "constants": {
            "call_s": round(service.call_s, 3),
            "clip_s": round(service.clip_s, 3),
            "load_s": round(service.load_s, 1),
            "max_batch": service.max_batch,
            "clips_per_s_of_a_replica": round(service.capacity, 2),
        },
        "within_s": round(asked.within * full, 2),
        "sizing": sizing(service, asked.within * full, 300 * full),
        "to_zero": to_zero(service, 24 * 3600),
    }
    show(figures, asked.json)


if __name__ == "__main__":
    main()
