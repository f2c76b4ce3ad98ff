"""What capturing costs: denoising steps of the embedded model with the activations of all blocks read, in lockstep with bare ones.

    python -m benchmarks.capture [--rounds 60] [--batch 16] [--json FILE]

A second bare series says how far two equal series differ.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.lockstep import StepEnd, in_step
from benchmarks.machine import describe
from benchmarks.output import show
from benchmarks.paired import across, ratio
from reins_serve.calibration.capture import Capture
from reins_serve.models.catalog import EMBEDDED
from reins_serve.models.generation import generate, request
from reins_serve.models.loading import load
from reins_serve.models.spec import Pipeline, path_of
from reins_serve.steering.direction import Window

AIM = 1.01


def main() -> None:
    """Print and write every figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clips = [request(EMBEDDED, "a red square moving left at sea", seed) for seed in range(arguments.batch)]

    def bare(pipeline: Pipeline, step_end: StepEnd) -> None:
        generate(pipeline, EMBEDDED, clips, {"callback_on_step_end": step_end})

    def captured(pipeline: Pipeline, step_end: StepEnd) -> None:
        blocks = range(len(path_of(pipeline)))
        with Capture(pipeline, len(clips), blocks, Window(start=0, end=0.5)) as capture:
            own = capture.arguments["callback_on_step_end"]
            generate(pipeline, EMBEDDED, clips, {"callback_on_step_end": lambda *step: step_end(*step[:3], own(*step))})
        assert capture.activations.pooled.shape[1] == len(blocks)

    calls = {name: partial(bare, load(EMBEDDED)) for name in ("bare", "bare again")}
    found = in_step(calls | {"captured": partial(captured, load(EMBEDDED))}, arguments.rounds)
    base = found["bare"]
    captured_to_bare, floor = across(found["captured"].to(base)), across(found["bare again"].to(base))
    figures = {
        "machine": describe(),
        "rounds": arguments.rounds,
        "batch": arguments.batch,
        "aim": AIM,
        "captured to bare": captured_to_bare.as_json() | {"aim": captured_to_bare.beside(floor, AIM)},
        "captured to bare, steps in the window": across(found["captured"].to(base, base.first_half)).as_json(),
        "captured to bare, whole calls": ratio(found["captured"].calls(), base.calls()).as_json(),
        "bare again to bare": floor.as_json(),
        "ms a clip": round(1000 * float(np.median(base.calls())) / arguments.batch),
    }
    show(figures, arguments.json)


if __name__ == "__main__":
    main()
