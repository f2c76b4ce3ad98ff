"""Draws `growth.json`, `reach.json` and `fanout.json` of `benchmarks/results` for the docs: `python -m benchmarks.draw_growth`."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.stored import read

PICTURE = Path("docs/images/growth.png")


def _band(axes: Axes, across: list[float], found: list[dict[str, Any]], label: str) -> None:
    """Medians with their 95 % intervals."""
    axes.plot(across, [one["median"] for one in found], marker="o", markersize=3, label=label)
    axes.fill_between(across, [one["low"] for one in found], [one["high"] for one in found], alpha=0.2)


def _pushes(axes: Axes, found: dict[str, Any], of: str) -> None:
    for norm, series in found.items():
        _band(axes, [one[of] for one in series], series, f"add, {norm}")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("push to copy, time")


def _calls(axes: Axes, found: dict[str, Any], of: str) -> None:
    series = found[of]
    _band(axes, [one["count"] for one in series], series, "steered in half of the steps")
    axes.set_ylim(bottom=1)
    axes.set_ylabel("call to itself less steering")


def draw(found: dict[str, Any], reach: dict[str, Any] | None, fanout: dict[str, Any] | None, file: Path) -> None:
    """Write the picture: the push over tokens and rows, calls over directions and blocks, swaps over replicas and watchers."""
    figure, places = plt.subplots(2, 3, figsize=(12, 6.4), layout="constrained")
    (tokens, rows, own), (directions, blocks, swaps) = places
    _pushes(tokens, found["tokens"], "tokens")
    tokens.set_xscale("log", base=2)
    tokens.set_xlabel("tokens of one row, width 1536")
    _pushes(rows, found["rows"], "rows")
    rows.set_xlabel("rows of 2,048 tokens, one direction")
    _pushes(own, found["rows, each its own direction"], "rows")
    own.set_xlabel("rows of 2,048 tokens, each its own direction")
    _calls(directions, found["calls"], "directions")
    directions.set_xlabel("distinct directions in a batch, embedded model")
    _calls(blocks, found["calls"], "blocks")
    blocks.set_xlabel("steered blocks, embedded model")
    for series, across, middle, last, label in (
        (reach["swaps"] if reach else [], "replicas", "p50_ms", "p95_ms", "swap under load"),
        (fanout["measured"] if fanout else [], "watchers", "median_ms", "last_ms", "told to light watchers"),
    ):
        if series:
            counts = [one[across] for one in series]
            (line,) = swaps.plot(
                counts, [one[middle] for one in series], marker="o", markersize=3, label=f"{label}: middle"
            )
            swaps.plot(counts, [one[last] for one in series], ls="--", color=line.get_color(), label=f"{label}: late")
    swaps.set_xscale("log", base=2)
    swaps.set_yscale("log")
    swaps.set_xlabel("replicas or watchers, on two cores")
    swaps.set_ylabel("ms")
    for axes in places.flat:
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="lower right" if axes is swaps else "best")
    figure.savefig(file, dpi=90, pil_kwargs={"optimize": True})
    plt.close(figure)


def main() -> None:
    """Draw what was measured."""
    found = read("growth")
    if found is None:
        raise SystemExit(
            "benchmarks/results/growth.json is not there: run `python -m benchmarks.growth --json` with that file."
        )
    draw(found, read("reach"), read("fanout"), PICTURE)


if __name__ == "__main__":
    main()
