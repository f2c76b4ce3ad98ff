"""The gateway's totals: what became of jobs, counted once at the change of state that ends them, as prometheus-client serves it."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from reins_serve import metrics
from reins_serve.metrics import Metric
from reins_serve.serving.jobs import Job
from reins_serve.steering.direction import Direction

STEERING_ERRORS = ("steering_unavailable", "steering_not_applied")

disable_created_metrics()


class Totals:
    """Counters of one gateway. A job is counted when it ends: `completed`, `failed` or `cancelled`, each once."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._series = {metric.name: self._register(metric) for metric in metrics.SERVED_BY_GATEWAY}

    def serves(self, model: str, directions: Mapping[str, Direction]) -> None:
        """State which directions a model is served with, and show its counts from zero on."""
        for channel, direction in directions.items():
            self._of(metrics.DIRECTION_INFO, model=model, version=direction.version, channel=channel).set(1)
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
            self._of(metrics.STEERED, model=model, version=record.version).inc()
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
        kind = Counter if metric.kind == "counter" else Gauge
        return kind(metric.name, metric.meaning, metric.labels, registry=self._registry)

    def _of(self, metric: Metric, **labels: object) -> Any:
        return self._series[metric.name].labels(**labels)
