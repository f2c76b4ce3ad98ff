"""How the cost of steering grows: `python -m benchmarks.growth --json growth.json`, drawn by `python -m benchmarks.draw_growth`.

1. The push alone against a copy of the same bytes, over the tokens of one row, and over the rows of a batch at a fixed length,
   all with one direction or each with its own.
2. Calls of the embedded model to themselves without the time in steering's own functions, clocked inside them: over the distinct
   directions in a batch, and over the steered blocks.

Swaps over the number of replicas are measured by `reach`, over light watchers by `fanout`.
"""

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.clocked import in_calls
from benchmarks.machine import describe
from benchmarks.output import show
from benchmarks.paired import interleave, ratio
from benchmarks.steering import NORMS, OWN, WIDTH, pusher, units
from reins_serve.models.catalog import EMBEDDED
from reins_serve.models.generation import generate, request
from reins_serve.models.loading import load
from reins_serve.plugin import attach
from reins_serve.steering.direction import Direction
from reins_serve.steering.middleware import SteeringMiddleware
from reins_serve.steering.policy import SteeringRow

TOKENS = (256, 1024, 4096, 16384, 32768)
ROWS = DISTINCT = BLOCKS = (1, 2, 4, 8)
ROW_TOKENS = 2048
ADDED = "directions/embedded/add.safetensors"

Ratios = list[dict[str, float]]


def alone(shapes: Iterable[tuple[int, int]], distinct: bool, rounds: int) -> dict[str, Ratios]:
    """The push of `[rows, tokens, 1536]` to a copy of as many bytes, by norm rule."""
    found: dict[str, Ratios] = {norm: [] for norm in NORMS}
    for rows, tokens in shapes:
        hidden = torch.randn(rows, tokens, WIDTH)
        vectors = units(rows) if distinct else units(1).expand(rows, WIDTH).contiguous()
        series: dict[str, Callable[[], object]] = {"copy": hidden.clone}
        series |= {norm: partial(pusher(norm, vectors=vectors), hidden) for norm in NORMS}
        with torch.inference_mode():
            times = interleave(series, rounds, warm=2)
        for norm in NORMS:
            of = ratio(times[norm], times["copy"]).as_json()
            found[norm].append(of | {"rows": rows, "tokens": tokens, "ms": 1000 * float(np.median(times[norm]))})
    return found


def widened(direction: Direction, blocks: int) -> Direction:
    """The same at the first `blocks` blocks, each with a share of the strength, so that the clip stays a clip."""
    meta = direction.meta
    strength = meta.strength.model_copy(update={"serving": meta.strength.serving / blocks})
    changes = {
        "name": f"blocks-{blocks}",
        "blocks": tuple(range(blocks)),
        "statistics": meta.statistics[:1] * blocks,
        "strength": strength,
    }
    return Direction.create(meta.model_copy(update=changes), direction.vectors[:1].expand(blocks, -1))


def whole(rounds: int, batch: int) -> dict[str, Ratios]:
    """Steered calls of the embedded model to themselves without the time in steering's own functions."""
    clips = [request(EMBEDDED, "a red square moving left at sea", seed) for seed in range(batch)]
    add = Direction.load(ADDED)
    near = torch.nn.functional.normalize(add.vectors + 0.05 * units(batch, add.vectors.shape[1]), dim=1)
    several = {
        f"d{n}": Direction.create(add.meta.model_copy(update={"name": f"d{n}"}), near[n : n + 1]) for n in range(batch)
    }
    deep = {f"blocks-{blocks}": widened(add, blocks) for blocks in BLOCKS}

    def steered(steering: SteeringMiddleware, names: list[str]) -> None:
        rows = [SteeringRow(name, steering.directions[name].serving_strength) for name in names]
        with steering.generation(rows=rows) as g:
            generate(steering.pipeline, EMBEDDED, clips, g.arguments)

    def attached(names: list[str]) -> Callable[[], None]:
        directions = {"live": add} | {name: one for name, one in (several | deep).items() if name in names}
        return partial(steered, attach(load(EMBEDDED), model="embedded", directions=directions), names)

    def made() -> dict[str, Callable[[], None]]:
        return {f"directions {count}": attached([f"d{n % count}" for n in range(batch)]) for count in DISTINCT} | {
            f"blocks {count}": attached([f"blocks-{count}"] * batch) for count in BLOCKS
        }

    found = in_calls(made, OWN, rounds)
    return {
        "directions": [found[f"directions {count}"].as_json() | {"count": count} for count in DISTINCT],
        "blocks": [found[f"blocks {count}"].as_json() | {"count": count} for count in BLOCKS],
    }


def main() -> None:
    """Print and write every figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12, help="of each push, and of the embedded model")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    figures: dict[str, Any] = {
        "machine": describe(),
        "setting": {name: value for name, value in vars(asked).items() if name != "json"},
        "tokens": alone([(1, tokens) for tokens in TOKENS], False, asked.rounds),
        "rows": alone([(rows, ROW_TOKENS) for rows in ROWS], False, asked.rounds),
        "rows, each its own direction": alone([(rows, ROW_TOKENS) for rows in ROWS], True, asked.rounds),
        "calls": whole(asked.rounds, asked.batch),
    }
    show(figures, asked.json)


if __name__ == "__main__":
    main()
