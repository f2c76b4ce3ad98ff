"""The gateway's totals: what became of jobs, counted once at the change of state that ends them, as prometheus-client serves it."""

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Summary,
    disable_created_metrics,
    generate_latest,
)

from reins_serve import metrics
from reins_serve.metrics import Metric
from reins_serve.serving.jobs import Job
from reins_serve.steering.direction import Direction
from reins_serve.steering.policy import LIVE

STEERING_ERRORS = ("steering_unavailable", "steering_not_applied")

Label = Callable[[str, str | None, str | None], str]  # model, the file's own version, digest -> what metrics call it

disable_created_metrics()


def _own_label(model: str, version: str | None, sha256: str | None) -> str:
    return version or "unknown"


class Totals:
    """Counters of one gateway. A job is counted when it ends: `completed`, `failed` or `cancelled`, each once."""

    def __init__(self, label: Label = _own_label) -> None:
        self._label = label
        self._registry = CollectorRegistry()
        self._series = {metric.name: self._register(metric) for metric in metrics.SERVED_BY_GATEWAY}

    def serves(self, model: str, directions: Mapping[str, Direction], registry_up: bool | None = None) -> None:
        """State which directions a model is served with now, and show its counts from zero on.

        Args:
            registry_up: Whether the registry answers; None where the model has no store.
        """
        info = self._series[metrics.DIRECTION_INFO.name]
        info.remove_by_labels({"model": model})
        for channel, direction in directions.items():
            version = self._label(model, direction.version, direction.sha256)
            self._of(metrics.DIRECTION_INFO, model=model, version=version, channel=channel).set(1)
        if LIVE in directions and (fitted := _time(directions[LIVE].meta.fit.created)) is not None:
            self._of(metrics.DIRECTION_AGE, model=model).set(time.time() - fitted)
        if registry_up is not None:
            self._of(metrics.REGISTRY_UP, model=model).set(float(registry_up))
        for outcome in ("completed", "failed", "cancelled"):
            self._of(metrics.GENERATIONS, model=model, outcome=outcome)

    def began(self, job: Job) -> None:
        """A replica has begun to denoise."""
        if job.started_at is not None:
            self._of(metrics.QUEUE_WAIT, model=job.model).observe(max(0.0, job.started_at - job.created_at))

    def completed(self, job: Job) -> None:
        """The clip is stored."""
        result = job.result
        if result is None:
            raise ValueError("a completed job has a result")
        record, model = result.record, job.model
        self._of(metrics.GENERATIONS, model=model, outcome="completed").inc()
        if record.steered and record.proved:
            version = self._label(model, record.version, record.sha256)
            self._of(metrics.STEERED, model=model, version=version).inc()
            self._of(metrics.VERSION_GENERATIONS, model=model, version=version, outcome="steered").inc()
            if record.score is not None:
                self._of(metrics.VERSION_SCORE, model=model, version=version).observe(record.score)
        else:
            self._of(metrics.UNSTEERED, model=model, reason=record.reason or "unknown").inc()
        self._of(metrics.STEERING_STEPS, model=model).inc(record.steps_steered)
        self._of(metrics.FRAMES, model=model).inc(job.clip.num_frames)
        self._of(metrics.GENERATION_SECONDS, model=model).observe(result.inference_time_s)
        self._of(metrics.BATCH_SIZE, model=model).observe(result.batch_size)
        if record.displacement is not None:
            self._of(metrics.DISPLACEMENT, model=model).observe(record.displacement)
        if record.score is not None:
            self._of(metrics.SCORE, model=model).observe(record.score)

    def failed(self, job: Job) -> None:
        """The job has ended without a clip."""
        self._of(metrics.GENERATIONS, model=job.model, outcome="failed").inc()
        if job.error is not None and job.error.sha256 is not None:
            version = self._label(job.model, job.error.version, job.error.sha256)
            self._of(metrics.VERSION_GENERATIONS, model=job.model, version=version, outcome="failed").inc()
        if job.error is not None and job.error.code in STEERING_ERRORS:
            self._of(metrics.STEERING_FAILURES, model=job.model, reason=job.error.code).inc()

    def cancelled(self, job: Job) -> None:
        """The job was deleted before its end."""
        self._of(metrics.GENERATIONS, model=job.model, outcome="cancelled").inc()

    def text(self, waiting: Mapping[str, int], running: Mapping[str, int]) -> bytes:
        """Everything in Prometheus' text format, with the present lengths of the queues by model."""
        for metric, lengths in ((metrics.WAITING, waiting), (metrics.RUNNING, running)):
            for model, length in lengths.items():
                self._of(metric, model=model).set(length)
        return generate_latest(self._registry)

    def _register(self, metric: Metric) -> Any:
        if metric.kind == "histogram":
            return Histogram(
                metric.name, metric.meaning, metric.labels, buckets=metric.buckets, registry=self._registry
            )
        kind = {"counter": Counter, "gauge": Gauge, "summary": Summary}[metric.kind]
        return kind(metric.name, metric.meaning, metric.labels, registry=self._registry)

    def _of(self, metric: Metric, **labels: object) -> Any:
        return self._series[metric.name].labels(**labels)


def _time(written: str) -> float | None:
    """Unix time of an ISO 8601 date; None where a file says something else."""
    try:
        return datetime.fromisoformat(written).timestamp()
    except ValueError:
        return None
