"""The report for the person who must decide: one HTML file that needs nothing else, with figures, plots and clips."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from reins_serve.models.video import contact_sheet

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .8rem; text-align: left; border-bottom: 1px solid #d8dee6; }
.passed { color: #19703a; } .failed { color: #b3261e; font-weight: 600; } img { max-width: 100%; } figure { margin: 1.5rem 0; }
figcaption { color: #55606c; }
"""


def write_html(report: Mapping[str, Any], clips: Sequence[tuple[str, np.ndarray]]) -> str:
    """The report as HTML.

    Args:
        report: What `report.json` holds.
        clips: Captions with clips `uint8 [T, H, W, 3]`, off and on in turn.
    """
    gates = report["gates"]
    failed = [name for name, gate in gates.items() if not gate["passed"]]
    title = f"{report['direction']['name']} for {report['direction']['model']}"
    verdict = f"Failed: {', '.join(failed)}" if failed else "All gates passed"
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(title)}</h1><p class={'failed' if failed else 'passed'}>{html.escape(verdict)}.</p>",
        _facts(report["direction"] | report.get("summary", {})),
        "<h2>Gates</h2>",
        _gates(gates),
    ]
    for caption, figure in _figures(report):
        parts.append(f"<figure><img alt='{html.escape(caption)}' src='{_png(figure)}'>")
        parts.append(f"<figcaption>{html.escape(caption)}</figcaption></figure>")
    if clips:
        sheet = base64.b64encode(contact_sheet(list(clips), scale=3)).decode()
        parts.append("<h2>Clips, off above on</h2>")
        parts.append(f"<figure><img alt='Pairs of clips' src='data:image/png;base64,{sheet}'></figure>")
    return "\n".join(parts) + "</html>\n"


def _facts(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(_text(value))}</td></tr>"
        for name, value in values.items()
    )
    return f"<table>{rows}</table>"


def _gates(gates: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{_text(gate['value'])}</td><td>{html.escape(gate['limit'])}</td>"
        f"<td class={'passed' if gate['passed'] else 'failed'}>{'passed' if gate['passed'] else 'failed'}</td></tr>"
        for name, gate in gates.items()
    )
    return f"<table><tr><th>gate</th><th>value</th><th>limit</th><th>verdict</th></tr>{rows}</table>"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "not measured" if value is None else str(value)


def _figures(report: Mapping[str, Any]) -> list[tuple[str, Figure]]:
    made = []
    layers = report.get("layers") or []
    if layers:
        blocks = [layer["block"] for layer in layers]
        lines = {"cross-fitted AUC": "auc", "expected refit cosine": "refit_cosine", "cosine to live": "cosine_to_live"}
        curves = {word: [_number(layer.get(key)) for layer in layers] for word, key in lines.items()}
        known = {word: curve for word, curve in curves.items() if np.isfinite(curve).any()}
        made.append(("What is known about safety at each block.", _lines(blocks, known, "block", "")))
    first = (report.get("selection") or {}).get("rounds", [[]])[0]
    if first:
        best: dict[str, dict[int, float]] = {}
        for found in first:
            kind, block = found["candidate"]["direction"].rsplit("-", 1)
            rates = best.setdefault(kind, {})
            rates[int(block)] = min(rates.get(int(block), 9.0), found["cost"])
        curves = {
            kind: [rates.get(b, np.nan) for b in sorted(set().union(*best.values()))] for kind, rates in best.items()
        }
        axis = sorted(set().union(*best.values()))
        made.append(("First round of the selection: unsafe rate plus worst benign loss of the best strength at each block.",
                     _lines(axis, curves, "block", "cost")))  # fmt: skip
    dose = report.get("dose")
    if dose:
        strengths = [one["strength"] for one in dose]
        curves = {"unsafe rate": [one["unsafe"] for one in dose], "worst benign loss": [one["loss"] for one in dose]}
        made.append(("Dose: unsafe rate by the harsher judge and worst benign loss, on selection prompts.",
                     _lines(strengths, curves, "strength", "share")))  # fmt: skip
    scores = report.get("scores")
    if scores:
        made.append(("Projection on the direction, cross-fitted, by the judge's label.", _histogram(scores)))
    return made


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _lines(axis: Sequence[float], curves: Mapping[str, Sequence[float]], xlabel: str, ylabel: str) -> Figure:
    figure, axes = plt.subplots(figsize=(7, 3))
    for name, curve in curves.items():
        axes.plot(axis, curve, marker="o", label=name)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def _histogram(scores: Mapping[str, Sequence[float]]) -> Figure:
    figure, axes = plt.subplots(figsize=(7, 3))
    bins = np.histogram_bin_edges(np.concatenate([np.asarray(values) for values in scores.values()]), bins=40)
    for name, values in scores.items():
        axes.hist(values, bins=list(bins), alpha=0.6, label=name)
    axes.set_xlabel("projection (0: unsafe class's mean, 1: safe class's mean)")
    axes.legend(fontsize=8)
    return figure


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
