"""Many more requests than the server can take: `python -m benchmarks.load --json load.json`.

An open loop offers the embedded model several times its capacity through the whole server: gateways, table of jobs, batching,
replicas, files. The same number of processes, with the same threads and batch size, calls the pipeline in a bare loop, without
server or steering. Blocks of both take turns on one machine, so that both see the same of what else runs there; the replicas
of one wait idle while the other works. `throughput_ratio` is the median over the rounds of clips per second, served to bare.
Served clips come in bursts, a batch each: their rate is the slope of the completed jobs against the time that the table has.

Latency runs from the request to the record's completion; a job is lost if it was accepted and neither completed nor failed.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import httpx
import numpy as np
import psutil
import ray

from benchmarks.machine import describe
from benchmarks.output import show
from benchmarks.paired import ratio

PROMPT = "a red square moving left"
RETRY_S = 0.25
PATIENCE_S = 600.0
LEAST_CALLS = 4  # of a block: clips come in batches, and a rate is the slope through their ends


@ray.remote(num_cpus=0)
class Bare:
    """The pipeline in a loop, as many clips at a time as the server's replicas make."""

    def __init__(self, threads: int, batch: int, steps: int) -> None:
        import torch

        from reins_serve.models import catalog, loading

        torch.set_num_threads(threads)
        self._entry = catalog.get("embedded")
        self._pipeline = loading.load(self._entry)
        self._batch = batch
        self._steps = steps
        self.run(0.0)

    def run(self, seconds: float) -> tuple[int, float]:
        """Clips, and the time that they took: whole batches until the time is over, each encoded as the server does it."""
        from reins_serve.models.generation import generate, request
        from reins_serve.models.video import write_mp4

        began, made = time.perf_counter(), 0
        with tempfile.TemporaryDirectory() as folder:
            while True:
                requests = [
                    request(self._entry, PROMPT, made + row, num_inference_steps=self._steps)
                    for row in range(self._batch)
                ]
                for clip in generate(self._pipeline, self._entry, requests):
                    write_mp4(clip, Path(folder) / "clip.mp4", self._entry.fps)
                made += self._batch
                if time.perf_counter() - began >= seconds:
                    return made, time.perf_counter() - began


class Client:
    """Offers jobs at a steady rate, whatever becomes of those before."""

    def __init__(self, address: str, rate: float, steps: int) -> None:
        self._http = httpx.AsyncClient(base_url=address, timeout=60, limits=httpx.Limits(max_connections=64))
        self._rate = rate
        self._body = {"prompt": PROMPT, "num_inference_steps": steps}
        self.offered = 0
        self.accepted: list[str] = []
        self.refused: Counter[int] = Counter()
        self.retry_after_missing = 0

    async def offer(self, seconds: float) -> None:
        """Create jobs at the steady rate for so long."""
        await self.offer_at(np.arange(0.0, seconds, 1 / self._rate).tolist())

    async def offer_at(self, times: Sequence[float]) -> None:
        """Create jobs at these seconds from now, each at its own, whatever becomes of the others."""
        began, sent = time.monotonic(), []
        for at in times:
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))
            sent.append(asyncio.create_task(self._create(self.offered)))
            self.offered += 1
        await asyncio.gather(*sent)

    async def _create(self, seed: int) -> None:
        answer = await self._http.post("/v1/videos", json=self._body | {"seed": seed})
        if answer.status_code == 200:
            self.accepted.append(answer.json()["id"])
            return
        self.refused[answer.status_code] += 1
        self.retry_after_missing += answer.status_code == 429 and "retry-after" not in answer.headers

    async def idle(self) -> None:
        """Wait until no job waits or runs."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            names = ("reins_requests_waiting", "reins_requests_running")
            if sum([await self._metric(f'{name}{{model="embedded"}}') for name in names]) == 0:
                return
            await asyncio.sleep(RETRY_S)
        raise TimeoutError(f"the server still has jobs after {PATIENCE_S:g} s")

    async def _metric(self, name: str) -> float:
        text = (await self._http.get("/metrics")).text
        found = (line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith(name + " "))
        return float(next(found, 0.0))

    async def close(self) -> None:
        await self._http.aclose()


@dataclass
class Ends:
    """How accepted jobs ended, by the table; of the completed ones Unix times, seconds, and the clips and seconds of their call."""

    outcomes: Counter[str] = field(default_factory=Counter)
    completed: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)

    def rate(self, began: float, ended: float) -> float:
        """Clips a second between two times."""
        times = np.sort([at for at in self.completed if began <= at < ended])
        return float(np.polyfit(times - began, np.arange(len(times)), 1)[0])


async def ends(database: str, ids: list[str]) -> Ends:
    """How the accepted jobs ended."""
    from reins_serve.serving.sql_jobs import SqlJobs

    store, found = SqlJobs(database), Ends()
    for name in ids:
        job = await store.get(name)
        found.outcomes[job.status if job is not None and job.terminal else "lost"] += 1
        if job is not None and job.completed_at and job.started_at and job.result is not None:
            found.completed.append(job.completed_at)
            found.latencies.append(job.completed_at - job.created_at)
            found.waits.append(job.started_at - job.created_at)
            found.batches.append(job.result.batch_size)
            found.calls.append(job.result.inference_time_s)
    await store.close()
    return found


def memory_mib() -> float:
    """Resident memory of Serve's replicas, the gateways among them."""
    found = 0
    for process in psutil.process_iter(["name", "cmdline", "memory_info"]):
        command = " ".join(process.info["cmdline"] or [])
        if command.startswith("ray::ServeReplica"):
            found += process.info["memory_info"].rss
    return found / 2**20


async def measure(asked: argparse.Namespace, folder: Path, port: int) -> dict[str, Any]:
    """Serve, load, compare; every figure of the run."""
    from reins_serve.serving.config import ApplicationConfig
    from reins_serve.serving.local import served

    config = ApplicationConfig.model_validate(
        {
            "models": [
                {
                    "name": "embedded",
                    "directions": {"live": "directions/embedded/setpoint.safetensors"},
                    "num_replicas": asked.replicas,
                    "num_cpus": 0,
                    "torch_threads": asked.threads,
                    "max_batch_size": asked.batch,
                    "max_batch_wait_ms": 20,
                    "max_queued": asked.queued or 3 * asked.batch * asked.replicas,
                }
            ],
            "output_dir": str(folder / "clips"),
            "database": asked.database or f"sqlite:///{folder}/jobs.sqlite3",
            "num_gateways": asked.gateways,
        }
    )
    with served(config, port) as address:
        bare = [Bare.remote(asked.threads, asked.batch, asked.steps) for _ in range(asked.replicas)]
        clips, seconds = _together(ray.get([one.run.remote(asked.block) for one in bare]))
        if asked.block < LEAST_CALLS * (call_s := asked.batch * asked.replicas * seconds / clips):
            raise SystemExit(
                f"A pipeline call takes {call_s:.1f} s here, and a rate needs {LEAST_CALLS} of them: ask for a longer --block."
            )
        client = Client(address, asked.overload * clips / seconds, asked.steps)
        await client.offer(5.0)
        await client.idle()
        before, spans = memory_mib(), []
        for _ in range(asked.rounds):
            alone = _together(await asyncio.gather(*(one.run.remote(asked.block) for one in bare)))
            offering = asyncio.create_task(client.offer(asked.block + 4.0))
            await asyncio.sleep(2.0)  # the queue has filled
            began = time.time()
            await asyncio.sleep(asked.block)
            spans.append((alone[0] / alone[1], began, time.time()))
            await offering
            await client.idle()
        after = memory_mib()
        await client.close()
        found = await ends(config.database_url, client.accepted)
    rounds = [{"bare": bare_rate, "served": found.rate(began, ended)} for bare_rate, began, ended in spans]
    compared = ratio([one["served"] for one in rounds], [one["bare"] for one in rounds])
    return {
        "throughput_ratio": round(compared.median, 3),
        "throughput": compared.as_json(),
        "clips_per_s": {kind: round(float(np.median([r[kind] for r in rounds])), 2) for kind in ("bare", "served")},
        "offered": client.offered,
        "accepted": len(client.accepted),
        "completed": found.outcomes["completed"],
        "failed": found.outcomes["failed"],
        "lost": found.outcomes["lost"],
        "rejected_429": client.refused[429],
        "rejected_otherwise": sum(client.refused.values()) - client.refused[429],
        "retry_after_missing": client.retry_after_missing,
        **_figures("", found.latencies),
        **_figures("queue_", found.waits),
        # Of one pipeline call: how much of the difference lies in the call itself, and how much between two calls.
        "call_s": {
            "bare": round(asked.batch * asked.replicas / float(np.median([r["bare"] for r in rounds])), 3),
            "served": round(float(np.median(found.calls)), 3),
        },
        "mean_batch": round(float(np.mean(found.batches)), 2),
        "rss_growth_mib": round(after - before, 1),
        "rss_mib": round(after, 1),
    }


def _together(runs: list[tuple[int, float]]) -> tuple[int, float]:
    return sum(clips for clips, _ in runs), max(seconds for _, seconds in runs)


def _figures(kind: str, seconds: list[float]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(seconds, [50, 90, 99])
    values = {"p50_s": p50, "p90_s": p90, "p99_s": p99, "mean_s": float(np.mean(seconds))}
    return {kind + name: round(float(value), 3) for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=2, help="processes with a pipeline, on both sides")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each")
    parser.add_argument("--batch", type=int, default=8, help="most clips of one pipeline call")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a clip")
    parser.add_argument("--gateways", type=int, default=1)
    parser.add_argument(
        "--queued", type=int, help="jobs that may wait before a 429; three batches a replica if not given"
    )
    parser.add_argument("--overload", type=float, default=3.0, help="offered load in multiples of the bare loop's rate")
    parser.add_argument("--rounds", type=int, default=5, help="how often the two take turns")
    parser.add_argument("--block", type=float, default=30.0, help="seconds of each block")
    parser.add_argument("--database", help="URL of a database; the default is an SQLite file")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reins-load-") as folder:
        figures = asyncio.run(measure(asked, Path(folder), asked.port))
    setting = {name: value for name, value in vars(asked).items() if name not in ("json", "port", "database")}
    figures = {"machine": describe(), "setting": setting} | figures
    show(figures, asked.json)


if __name__ == "__main__":
    main()
