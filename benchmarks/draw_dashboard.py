"""Draws the panels of the Grafana dashboard with matplotlib, from what a Prometheus answered to their queries."""

import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

Course = tuple[dict[str, str], list[tuple[float, float]]]  # labels, and (time, value)
COLUMN_INCHES, ROW_INCHES = 0.62, 0.3
HISTORY = ("timeseries", "state-timeline", "heatmap")


def draw(dashboard: dict[str, Any], answers: dict[str, list[Course]], start: float, end: float, file: Path) -> None:
    """Write a picture of the dashboard.

    Args:
        answers: What each query was answered, by the query as the dashboard has it.
        start, end: The time that is shown, in Unix seconds.
    """
    panels = dashboard["panels"]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = plt.figure(figsize=(24 * COLUMN_INCHES, height * ROW_INCHES), layout="none")
    for panel in panels:
        place = panel["gridPos"]
        if panel["type"] == "row":
            figure.text(0.008, 1 - (place["y"] + 0.85) / height, panel["title"], size=11, weight="bold")
            continue
        axes = _axes(figure, place, height)
        axes.set_title(panel["title"], size=8.5, loc="left")
        lines = [
            (_legend(target["legendFormat"], labels), values)
            for target in panel["targets"]
            for labels, values in answers[target["expr"]]
        ]
        _fill(axes, panel, lines, start, end)
    figure.savefig(file, dpi=90, pil_kwargs={"optimize": True})
    plt.close(figure)


def _axes(figure: Figure, place: dict[str, int], height: int) -> Axes:
    left, bottom = (place["x"] + 1.1) / 24, 1 - (place["y"] + place["h"] - 1.0) / height
    return figure.add_axes((left, bottom, (place["w"] - 1.4) / 24, (place["h"] - 2.0) / height))


def _legend(template: str, labels: dict[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), template).strip()


def _fill(axes: Axes, panel: dict[str, Any], lines: list[tuple[str, Any]], start: float, end: float) -> None:
    kind, fields = panel["type"], panel["fieldConfig"]["defaults"]
    axes.tick_params(labelsize=6.5, length=2)
    if not lines:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", color="grey", transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    if kind in HISTORY:
        axes.set_xlim(0, (end - start) / 60)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda minutes, _: f"{minutes:g} min"))
    if kind == "stat":
        _stat(axes, lines, fields["unit"])
    elif kind == "bargauge":
        _bars(axes, lines)
    elif kind == "heatmap":
        _heatmap(axes, lines, start)
    elif kind == "state-timeline":
        _timeline(axes, lines, start)
    else:
        _course(axes, lines, fields, start)


def _course(axes: Axes, lines: list[tuple[str, Any]], fields: dict[str, Any], start: float) -> None:
    custom = fields.get("custom", {})
    style = "steps-post" if custom.get("lineInterpolation") == "stepAfter" else "default"
    if "stacking" in custom:
        times = sorted({at for _, values in lines for at, _ in values})
        heights = [[dict(values).get(at, 0.0) for at in times] for _, values in lines]
        axes.stackplot(_minutes(times, start), heights, labels=[name for name, _ in lines], alpha=0.7)
    else:
        for name, values in lines:
            axes.plot(*_gapped(values, start), label=name, linewidth=1.2, drawstyle=style)
    if fields["unit"] == "percentunit":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    elif fields["unit"] == "s":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g} s"))
    if "max" in fields:
        axes.set_ylim(fields["min"] - 0.03, fields["max"] + 0.03)
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=5.5, loc="best", framealpha=0.6)


def _stat(axes: Axes, lines: list[tuple[str, Any]], unit: str) -> None:
    shown = "\n".join(
        f"{name}: {values[-1][1] / 86400:.1f} days" if unit == "s" else f"{name}: {values[-1][1]:g}"
        for name, values in lines
    )
    axes.text(0.5, 0.5, shown, ha="center", va="center", size=9, transform=axes.transAxes, wrap=True)
    axes.set_axis_off()


def _bars(axes: Axes, lines: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in lines]
    values = [course[-1][1] for _, course in lines]
    axes.barh(range(len(lines)), values, height=0.4)
    _named(axes, names)


def _timeline(axes: Axes, lines: list[tuple[str, Any]], start: float) -> None:
    for place, (_, values) in enumerate(lines):
        minutes, _ = _gapped(values, start)
        axes.plot(minutes, np.where(np.isnan(minutes), np.nan, place), linewidth=8, solid_capstyle="butt")
    _named(axes, [name for name, _ in lines])


def _named(axes: Axes, names: list[str]) -> None:
    """Write each bar's name above it."""
    axes.set_yticks([])
    axes.set_ylim(-0.5, len(names) - 0.2)
    for place, name in enumerate(names):
        axes.text(0.01, place + 0.25, name, size=5.5, va="bottom", transform=axes.get_yaxis_transform())


def _heatmap(axes: Axes, lines: list[tuple[str, Any]], start: float) -> None:
    """Clips by bucket; a bucket counts what lies above the bound below it."""
    ordered = sorted(lines, key=lambda line: float(line[0]))
    times = sorted({at for _, values in ordered for at, _ in values})
    at_most = np.array([[dict(values).get(at, 0.0) for at in times] for _, values in ordered])
    within = np.diff(at_most, axis=0, prepend=0)
    axes.pcolormesh(_minutes(times, start), np.arange(len(ordered)), within, shading="nearest", cmap="Blues")
    axes.set_yticks(np.arange(len(ordered)), [f"≤ {name}" for name, _ in ordered])
    axes.tick_params(axis="y", labelsize=5.5)


def _gapped(values: list[tuple[float, float]], start: float) -> tuple[np.ndarray, np.ndarray]:
    """Minutes and values, with a break where a step has no value."""
    times, found = (np.array(column) for column in zip(*values, strict=True))
    step = np.diff(times).min() if len(times) > 1 else 1.0
    breaks = np.flatnonzero(np.diff(times) > 1.5 * step) + 1
    return np.insert(_minutes(times, start), breaks, np.nan), np.insert(found, breaks, np.nan)


def _minutes(times: Any, start: float) -> np.ndarray:
    return (np.asarray(times) - start) / 60
