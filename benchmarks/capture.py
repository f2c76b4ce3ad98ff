"""What capturing costs: calls of the embedded model with the activations of all blocks read, against calls without.

    python -m benchmarks.capture [--rounds 60] [--batch 16] [--json FILE]

A second bare series says how far two equal series differ.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import describe
from benchmarks.output import write
from benchmarks.paired import interleave, ratio
from reins_serve.calibration.capture import Capture
from reins_serve.models.catalog import EMBEDDED
from reins_serve.models.generation import generate, request
from reins_serve.models.loading import load
from reins_serve.models.spec import path_of
from reins_serve.steering.direction import Window

AIM = 1.01


def main() -> None:
    """Print the machine, the paired ratios by wall and processor time, and the same of bare to bare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
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

    times = interleave({"bare": bare, "captured": captured, "bare again": bare}, arguments.rounds)
    print(json.dumps(describe()))
    print(
        f"{len(blocks)} blocks of width {EMBEDDED.hidden_width}, {arguments.batch} clips a call, {arguments.rounds} rounds"
    )
    figures: dict[str, object] = {
        "machine": describe(),
        "rounds": arguments.rounds,
        "batch": arguments.batch,
        "aim": AIM,
    }
    for name in ("captured", "bare again"):
        for clock in ("wall", "processor"):
            found = ratio(getattr(times[name], clock), getattr(times["bare"], clock))
            figures[f"{name} to bare, {clock}"] = found.as_json()
            verdict = f"; aim {AIM:g}: {found.within(AIM)}" if name == "captured" else ""
            print(f"{name} to bare, {clock} time: {found}{verdict}")
    print(f"bare: {np.median(times['bare'].wall) / arguments.batch * 1000:.0f} ms a clip")
    write(figures, arguments.json)


if __name__ == "__main__":
    main()
