"""Writes `dashboard.json` for Grafana from `panels.yaml`: `python k8s/monitoring/make_dashboard.py`."""

import json
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
PANELS, TARGET = FOLDER / "panels.yaml", FOLDER / "dashboard.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS, WIDTH, HEIGHT = 24, 8, 8
DRAWN: dict[str, dict[str, Any]] = {
    "share": {"min": 0, "max": 1},
    "steps": {"custom": {"lineInterpolation": "stepAfter"}},
    "stacked": {"custom": {"stacking": {"mode": "normal"}, "fillOpacity": 40}},
}


def dashboard(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The whole document. Panels lie in rows from left to right, and go on below where a row is full."""
    panels: list[dict[str, Any]] = []
    x = y = 0
    for title, content in rows.items():
        panels.append({"type": "row", "title": title, "gridPos": _place(0, y, COLUMNS, 1)})
        x, y = 0, y + 1
        for described in content:
            width = described.get("width", WIDTH)
            if x + width > COLUMNS:
                x, y = 0, y + HEIGHT
            panels.append(_panel(described) | {"gridPos": _place(x, y, width, HEIGHT)})
            x += width
        y += HEIGHT
    return {
        "uid": "reins-serve",
        "title": "reins-serve",
        "tags": ["reins-serve"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": [{"id": number} | panel for number, panel in enumerate(panels, start=1)],
    }


def _panel(described: dict[str, Any]) -> dict[str, Any]:
    kind = described.get("kind", "timeseries")
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": SOURCE,
            "expr": asked["query"],
            "legendFormat": asked["legend"],
            "format": "heatmap" if kind == "heatmap" else "time_series",
            "instant": kind in ("stat", "bargauge"),
        }
        for number, asked in enumerate(described["queries"])
    ]
    fields = {"unit": described.get("unit", "short")} | DRAWN.get(described.get("drawn", ""), {})
    return {
        "type": kind,
        "title": described["title"],
        "description": described.get("description", ""),
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": fields, "overrides": []},
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _variables() -> list[dict[str, Any]]:
    models = "label_values(reins:generations:total, model)"
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
        {
            "name": "model",
            "type": "query",
            "label": "Model",
            "datasource": SOURCE,
            "query": {"query": models, "refId": "models"},
            "definition": models,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "refresh": 2,
        },
    ]


if __name__ == "__main__":
    TARGET.write_text(json.dumps(dashboard(yaml.safe_load(PANELS.read_text())), indent=1) + "\n")
