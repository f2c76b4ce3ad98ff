"""How long until a swap has reached the last of more and more replicas: `python -m benchmarks.reach --json reach.json`.

Swaps (publish or rollback until the last replica has it) under the load of the benchmark `swap`, drawn by `draw_growth` beside the
registry's light watchers (`fanout`). Starting the replicas takes most of the time, and `swap` measures eight of them in
`make bench`: this one runs by hand.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import ray
from ray import serve

from benchmarks import cluster, swap
from benchmarks.machine import describe
from benchmarks.output import show

SHOWN = ("replicas", "swaps", "p50_ms", "p95_ms", "max_ms", "lost")


def main() -> None:
    """Print and write every figure; one cluster and one store for all numbers of replicas."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--swaps", type=int, default=24, help="for each number of replicas")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    cluster.start()
    try:
        with tempfile.TemporaryDirectory(prefix="reins-reach-") as folder:
            measured = [swap.measure(replicas, asked.swaps, 2, 2.0, 0.5, folder) for replicas in asked.replicas]
    finally:
        serve.shutdown()
        ray.shutdown()
    swaps = [{name: figures[name] for name in SHOWN} for figures in measured]
    show({"machine": describe(), "swaps": swaps}, asked.json)


if __name__ == "__main__":
    main()
