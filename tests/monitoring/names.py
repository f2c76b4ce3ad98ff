"""Which names a PromQL query uses, and which of them nothing exports."""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import ray
import yaml

from reins_serve import metrics
from reins_serve.metrics import Metric

RULES = Path("k8s/monitoring/rules.yaml")
TARGET_LABELS = {"instance", "pod", "container", "namespace", "job"}  # what Prometheus adds to every sample
RAY_LABELS = {"application", "deployment", "replica"}  # what Serve adds to a replica's
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}


def groups() -> list[dict[str, Any]]:
    """The groups of the rule file."""
    return yaml.safe_load(RULES.read_text())["groups"]


def rules() -> list[dict[str, Any]]:
    """All rules, in order."""
    return [rule for group in groups() for rule in group["rules"]]


def queries(panel: dict[str, Any]) -> list[str]:
    """What a panel of the dashboard asks, for all models."""
    return [target["expr"].replace("$model", ".*") for target in panel["targets"]]


def selectors(query: str) -> Iterator[promql_parser.VectorSelector]:
    """Every selector of series in a query. Raises ValueError where it does not parse."""
    parts = [promql_parser.parse(query)]
    while parts:
        part = parts.pop()
        if isinstance(part, promql_parser.VectorSelector):
            yield part
        for field in ("lhs", "rhs", "expr", "param", "vector_selector", "args"):
            inner = getattr(part, field, None)
            parts += inner if isinstance(inner, list) else [] if inner is None else [inner]


def unknown(query: str, recorded: Iterable[str]) -> set[str]:
    """Names of series in a query, or of labels in its matchers, that nobody exports.

    Args:
        recorded: Names that rules record; of their labels nothing is known here.
    """
    known, found = exported(), set()
    for selector in selectors(query):
        name = selector.name
        if name in known:
            labels = {matcher.name for matcher in selector.matchers.matchers}
            found |= {f"{name}{{{label}}}" for label in labels - known[name]}
        elif name not in recorded and name not in rays_own():
            found.add(name or query)
    return found


@cache
def exported() -> dict[str, set[str]]:
    """Our own series by name, with their labels."""
    of_gateway = {name: labels for m in metrics.SERVED_BY_GATEWAY for name, labels in _series(m, "")}
    ours = (*metrics.EXPORTED_BY_REPLICAS, *metrics.EXPORTED_BY_WATCHERS)
    return of_gateway | {name: labels | RAY_LABELS for m in ours for name, labels in _series(m, "ray_")}


@cache
def rays_own() -> set[str]:
    """What Ray of this version defines, in Serve and on its nodes; Ray puts `ray_` before it."""
    package = Path(ray.__file__).parent
    files = [*(package / "serve/_private").rglob("*.py"), *(package / "dashboard/modules/reporter").glob("*.py")]
    return {f"ray_{name}" for file in files for name in re.findall(r'"((?:serve|node)_\w+)"', file.read_text())}


def _series(metric: Metric, prefix: str) -> Iterator[tuple[str, set[str]]]:
    labels = {*metric.labels, *TARGET_LABELS}
    for suffix in SUFFIXES.get(metric.kind, ("",)):
        yield prefix + metric.name + suffix, labels | ({"le"} if suffix == "_bucket" else set())
