"""Where the time of steering goes, by torch's profiler: `python -m benchmarks.trace --json trace.json`.

The embedded model's call and a block as wide as Wan 2.1 1.3B's are recorded bare and steered, in turn. Printed is, for every
operation, how much more time of its own (without what it calls) a steered call spends in it, and how many more of it there are.
The profiler itself costs time on every operation, so these are shares to read, not the overhead: that is `steering`.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import describe
from benchmarks.output import show
from benchmarks.steering import block, embedded_series

SHOWN = 12


def recorded(call: Callable[[], object]) -> dict[str, tuple[float, int]]:
    """Operation -> its own milliseconds and its number, of one call."""
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        call()
    return {event.key: (event.self_cpu_time_total / 1000, event.count) for event in trace.key_averages()}


def differences(bare: Callable[[], object], steered: Callable[[], object], calls: int) -> dict[str, Any]:
    """What a steered call spends more, by operation: means over `calls` recorded calls of each, taken in turn."""
    spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    for call in (bare, steered):
        call()
    for _ in range(calls):
        for place, call in enumerate((bare, steered)):
            for name, (milliseconds, count) in recorded(call).items():
                spent[name][2 * place] += milliseconds / calls
                spent[name][2 * place + 1] += count / calls
    more = {name: (after - before, n_after - n_before) for name, (before, n_before, after, n_after) in spent.items()}
    added = {name: found for name, found in more.items() if round(found[1], 3)}
    order = sorted(added, key=lambda name: -abs(added[name][0]))
    return {
        "bare_ms": round(sum(one[0] for one in spent.values()), 3),
        "steered_ms": round(sum(one[2] for one in spent.values()), 3),
        "added_ms": round(sum(milliseconds for milliseconds, _ in added.values()), 3),
        "added_operations": round(sum(count for _, count in added.values())),
        "by_operation": {
            name: {"ms": round(added[name][0], 3), "count": round(added[name][1], 1)} for name in order[:SHOWN]
        },
    }


def main() -> None:
    """Print and write what was recorded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    whole, (stack, _) = embedded_series(asked.batch, "bare", "idle", "setpoint"), block(asked.tokens)
    ways = ("add, none", "add, token", "add, channel", "setpoint")
    figures = {
        "machine": describe(),
        "setting": {name: value for name, value in vars(asked).items() if name != "json"},
        "embedded model": {name: differences(whole["bare"], whole[name], asked.calls) for name in ("idle", "setpoint")},
        "block stack": {name: differences(stack["bare"], stack[name], max(2, asked.calls // 2)) for name in ways},
    }
    show(figures, asked.json)


if __name__ == "__main__":
    main()
