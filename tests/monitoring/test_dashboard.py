"""The dashboard: what its script writes, with queries that parse and ask for what exists."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.names import queries, rules, unknown
from tests.monitoring.promtool import needs_promtool, promtool

FOLDER = Path("k8s/monitoring")
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
DRAWN = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RECORDED = {rule["record"] for rule in rules() if "record" in rule} | {"ALERTS"}  # which Prometheus itself writes


def parses(asked: list[str], folder: Path) -> tuple[bool, str]:
    """Whether promtool takes the queries, as rules of a file."""
    content = {"groups": [{"name": "q", "rules": [{"record": f"q:{n}", "expr": q} for n, q in enumerate(asked)]}]}
    (folder / "queries.yaml").write_text(yaml.safe_dump(content))
    return promtool("check", "rules", folder / "queries.yaml")


def test_the_file_is_what_the_script_writes() -> None:
    script = runpy.run_path(str(FOLDER / "make_dashboard.py"))
    assert script["dashboard"](yaml.safe_load((FOLDER / "panels.yaml").read_text())) == DASHBOARD


def test_the_steering_rate_comes_first() -> None:
    assert DRAWN[0]["title"] == "Steering rate"
    assert queries(DRAWN[0]) == ['reins:steering_rate:ratio5m{model=~".*"}']


@needs_promtool
def test_every_query_parses(tmp_path: Path) -> None:
    fine, said = parses([query for panel in DRAWN for query in queries(panel)], tmp_path)
    assert fine, said


@needs_promtool
def test_a_query_that_does_not_parse_is_caught(tmp_path: Path) -> None:
    assert not parses(["sum by model (reins_requests_running)"], tmp_path)[0]


@pytest.mark.parametrize("panel", DRAWN, ids=lambda panel: panel["title"])
def test_panels_ask_for_what_exists(panel: dict[str, Any]) -> None:
    assert queries(panel)
    for query in queries(panel):
        assert unknown(query, RECORDED) == set()


def test_panels_do_not_overlap_and_have_different_ids() -> None:
    taken = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
