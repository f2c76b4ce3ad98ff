"""The documentation of metrics says what `reins_serve/metrics.py` defines, and the names keep Prometheus' habits."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from reins_serve import metrics
from reins_serve.metrics import Metric
from tests.monitoring.names import rules

PAGE = Path("docs/metrics.md").read_text()
EVERY = {*metrics.SERVED_BY_GATEWAY, *metrics.EXPORTED_BY_REPLICAS, *metrics.EXPORTED_BY_WATCHERS}


@pytest.mark.parametrize(
    ("section", "prefix", "defined"),
    [
        ("Of the gateway", "", metrics.SERVED_BY_GATEWAY),
        ("Of each replica", "ray_", metrics.EXPORTED_BY_REPLICAS),
        ("Of each process that follows a store", "ray_", metrics.EXPORTED_BY_WATCHERS),
    ],
)
def test_the_tables_list_every_metric_as_it_is(section: str, prefix: str, defined: Sequence[Metric]) -> None:
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w, ]*) \| (.+) \|$", text, re.MULTILINE)
    assert rows == [(prefix + m.name, m.kind, ", ".join(m.labels), m.meaning) for m in defined]


def test_the_page_names_no_recorded_series_that_is_not_recorded() -> None:
    assert set(re.findall(r"reins:\w+:\w+", PAGE)) <= {rule.get("record") for rule in rules()}


def test_every_metric_of_the_module_is_served_or_exported() -> None:
    assert {value for value in vars(metrics).values() if isinstance(value, Metric)} == EVERY


@pytest.mark.parametrize("metric", sorted(EVERY, key=lambda metric: metric.name), ids=lambda metric: metric.name)
def test_names_and_labels_are_as_prometheus_wants_them(metric: Metric) -> None:
    assert metric.name.startswith("reins_")
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert not {"id", "job", "instance", "prompt", "path", "le", "quantile"} & set(metric.labels)
    assert not re.search(r"_(ms|milliseconds|minutes|mb|percent)\b", metric.name)
