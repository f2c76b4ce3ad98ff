"""What capturing costs: calls of the embedded model with the activations of all blocks read, against calls without.

    python benchmarks/capture.py [--pairs 30] [--batch 16]

Calls are interleaved (bare, captured, bare, ...), so that what else the machine does hits both; a second bare series says how
far two equal series differ.
"""

import argparse
import itertools
import time

import numpy as np
import torch
from machine import describe

from reins_serve.calibration.capture import Capture
from reins_serve.models.catalog import EMBEDDED
from reins_serve.models.generation import generate, request
from reins_serve.models.loading import load
from reins_serve.models.spec import path_of
from reins_serve.steering.direction import Window


def main() -> None:
    """Print the machine, the ratio of medians with its quartiles, and the same of bare to bare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pipeline = load(EMBEDDED)
    clips = [request(EMBEDDED, "a red square moving left at sea", seed) for seed in range(arguments.batch)]
    blocks = range(len(path_of(pipeline)))

    def bare() -> None:
        generate(pipeline, EMBEDDED, clips)

    def captured() -> None:
        with Capture(pipeline, len(clips), blocks, Window(start=0, end=0.5)) as capture:
            generate(pipeline, EMBEDDED, clips, capture.arguments)
        assert capture.activations.pooled.shape[1] == len(blocks)

    series = {"bare": bare, "captured": captured, "bare again": bare}
    seconds: dict[str, list[float]] = {name: [] for name in series}
    for call in series.values():
        call()
    orders = itertools.cycle(itertools.permutations(series))
    for _, order in zip(range(arguments.pairs), orders, strict=False):
        for name in order:
            began = time.perf_counter()
            series[name]()
            seconds[name].append(time.perf_counter() - began)
    print(describe())
    print(
        f"{len(blocks)} blocks of width {EMBEDDED.hidden_width}, {arguments.batch} clips a call, {arguments.pairs} calls of each"
    )
    for name in ("captured", "bare again"):
        ratios = np.array(seconds[name]) / np.array(seconds["bare"])
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        print(f"{name} / bare: {middle:.3f} (quartiles {low:.3f} to {high:.3f})")
    print(f"bare: {np.median(seconds['bare']) / arguments.batch * 1000:.0f} ms a clip")


if __name__ == "__main__":
    main()
