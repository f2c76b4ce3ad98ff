"""The gateway's page of metrics: what was counted in the jobs' database, and gauges of the present, in Prometheus' format."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from reins_serve import metrics
from reins_serve.metrics import Metric
from reins_serve.serving.jobs import Count
from reins_serve.serving.tally import Label, own_label
from reins_serve.steering.direction import Direction
from reins_serve.steering.policy import LIVE

OUTCOMES = ("completed", "failed", "cancelled")
_OF_A_MODEL = tuple(m for m in metrics.SERVED_BY_GATEWAY if m.kind != "gauge" and m.labels == ("model",))


class Totals:
    """The metrics that every gateway of a database shows alike, beside the gauges of its own configuration."""

    def __init__(self, label: Label = own_label) -> None:
        self._label = label
        self._registry = CollectorRegistry()
        self._counted = _Counted()
        self._registry.register(self._counted)
        self._gauges = {
            metric.name: Gauge(metric.name, metric.meaning, metric.labels, registry=self._registry)
            for metric in metrics.SERVED_BY_GATEWAY
            if metric.kind == "gauge"
        }

    def serves(self, model: str, directions: Mapping[str, Direction], registry_up: bool | None = None) -> None:
        """State which directions a model is served with now, and show its counts from zero on.

        Args:
            registry_up: Whether the registry answers; None where the model has no store.
        """
        for metric in (metrics.DIRECTION_INFO, metrics.DIRECTION_GATE):
            self._gauges[metric.name].remove_by_labels({"model": model})
        for channel, direction in directions.items():
            version = self._label(model, direction.version, direction.sha256)
            self._gauge(metrics.DIRECTION_INFO, model=model, version=version, channel=channel).set(1)
        if LIVE in directions and (fitted := _time(directions[LIVE].meta.fit.created)) is not None:
            self._gauge(metrics.DIRECTION_AGE, model=model).set(time.time() - fitted)
        for name, gate in directions[LIVE].meta.gates.items() if LIVE in directions else ():
            if gate.value is not None:
                self._gauge(metrics.DIRECTION_GATE, model=model, gate=name).set(gate.value)
        if registry_up is not None:
            self._gauge(metrics.REGISTRY_UP, model=model).set(float(registry_up))
        self._counted.models.add(model)

    def requires(self, model: str, required: bool) -> None:
        """State whether a model makes no clip without a direction."""
        self._gauge(metrics.STEERING_REQUIRED, model=model).set(float(required))

    def text(self, counted: Iterable[Count], waiting: Mapping[str, int], running: Mapping[str, int]) -> bytes:
        """The page.

        Args:
            counted: What `JobStore.totals` says.
            waiting, running: The present lengths of the queues by model.
        """
        for metric, lengths in ((metrics.WAITING, waiting), (metrics.RUNNING, running)):
            for model, length in lengths.items():
                self._gauge(metric, model=model).set(length)
        self._counted.counts = tuple(counted)
        return generate_latest(self._registry)

    def _gauge(self, metric: Metric, **labels: str) -> Gauge:
        return self._gauges[metric.name].labels(**labels)


class _Counted(Collector):
    """Stored counts as families of samples."""

    def __init__(self) -> None:
        self.models: set[str] = set()
        self.counts: tuple[Count, ...] = ()

    def collect(self) -> Iterator[Family]:
        series: dict[str, dict[tuple[str, ...], dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
        for model in sorted(self.models):
            for outcome in OUTCOMES:
                series[metrics.GENERATIONS.name][model, outcome] = {"value": 0.0}
            for metric in _OF_A_MODEL:
                series[metric.name][(model,)] = {"value" if metric.kind == "counter" else "sum": 0.0}
        for count in self.counts:
            series[count.metric][count.labels][count.part] = count.value
        for metric in metrics.SERVED_BY_GATEWAY:
            if metric.kind != "gauge":
                yield _family(metric, series[metric.name])


def _family(metric: Metric, series: Mapping[tuple[str, ...], Mapping[str, float]]) -> Family:
    kinds: dict[str, Any] = {
        "counter": CounterMetricFamily,
        "histogram": HistogramMetricFamily,
        "summary": SummaryMetricFamily,
    }
    family = kinds[metric.kind](metric.name, metric.meaning, labels=metric.labels)
    for labels, parts in series.items():
        if metric.kind == "counter":
            family.add_metric(labels, parts["value"])
        elif metric.kind == "summary":
            family.add_metric(labels, parts["count"], parts["sum"])
        else:
            buckets = _buckets(metric, parts)
            family.add_metric(labels, buckets, parts["sum"])
            if (
                metric.buckets[0] < 0
            ):  # a sum that may fall is not shown, as by prometheus-client; the family leaves both out
                family.add_sample(f"{metric.name}_count", dict(zip(metric.labels, labels, strict=True)), buckets[-1][1])
    return family


def _buckets(metric: Metric, parts: Mapping[str, float]) -> list[tuple[str, float]]:
    """Upper bounds and how many observations lie at or below each; bounds of a version before fall in with those above them."""
    counted = {float(part): value for part, value in parts.items() if part != "sum"}
    bounds = [*map(float, metric.buckets), float("inf")]
    return [(floatToGoString(bound), sum(value for at, value in counted.items() if at <= bound)) for bound in bounds]


def _time(written: str) -> float | None:
    """Unix time of an ISO 8601 date; None where a file says something else."""
    try:
        return datetime.fromisoformat(written).timestamp()
    except ValueError:
        return None
