"""Which metric a change of a job raises: once, at the change that makes it so."""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable

from reins_serve import metrics
from reins_serve.metrics import Metric
from reins_serve.serving.jobs import Count, Job, JobResult

STEERING_ERRORS = ("steering_unavailable", "steering_not_applied")
MAX_VERSIONS = 32  # whose counts are shown beside each other, for each metric and model

Label = Callable[[str, str | None, str | None], str]  # model, the file's own version, digest -> what metrics call it


def own_label(model: str, version: str | None, sha256: str | None) -> str:
    """What the direction's file calls itself."""
    return version or "unknown"


def tally(before: Job | None, after: Job | None, label: Label) -> list[Count]:
    """What a change adds to the metrics.

    Args:
        before, after: The job before and after the change; None before it was stored and after it was removed.
    """
    if before is None or before.terminal:
        return []
    if after is None:
        return [_one(metrics.GENERATIONS, model=before.model, outcome="cancelled")]
    if after.status == "completed" and after.result is not None:
        return _completed(after, after.result, label)
    if after.status == "failed":
        return _failed(after, label)
    if before.status == "queued" and after.status == "in_progress" and after.started_at is not None:
        return _observed(metrics.QUEUE_WAIT, max(0.0, after.started_at - after.created_at), model=after.model)
    return []


def shown(counts: Iterable[Count]) -> list[Count]:
    """Those that a page of metrics shows: of all versions of a model's direction, the ones that were counted last.

    Args:
        counts: What was counted last comes first.
    """
    versions: dict[tuple[str, str], set[str]] = defaultdict(set)
    chosen = []
    for count in counts:
        metric = metrics.BY_NAME.get(count.metric)
        if metric is None:  # a newer version's, on the same database
            continue
        labels = dict(zip(metric.labels, count.labels, strict=True))
        if "version" in labels:
            seen = versions[count.metric, labels["model"]]
            if len(seen | {labels["version"]}) > MAX_VERSIONS:
                continue
            seen.add(labels["version"])
        chosen.append(count)
    return chosen


def _completed(job: Job, result: JobResult, label: Label) -> list[Count]:
    record, model = result.record, job.model
    counts = [_one(metrics.GENERATIONS, model=model, outcome="completed")]
    if record.steered and record.proved:
        version = label(model, record.version, record.sha256)
        counts.append(_one(metrics.STEERED, model=model, version=version))
        counts.append(_one(metrics.VERSION_GENERATIONS, model=model, version=version, outcome="steered"))
        counts += _observed(metrics.VERSION_SCORE, record.score, model=model, version=version)
    else:
        counts.append(_one(metrics.UNSTEERED, model=model, reason=record.reason or "unknown"))
    counts.append(_count(metrics.STEERING_STEPS, "value", record.steps_steered, model=model))
    counts.append(_count(metrics.FRAMES, "value", job.clip.num_frames, model=model))
    counts += _observed(metrics.GENERATION_SECONDS, result.inference_time_s, model=model)
    counts += _observed(metrics.BATCH_SIZE, result.batch_size, model=model)
    counts += _observed(metrics.DISPLACEMENT, record.displacement, model=model)
    counts += _observed(metrics.SCORE, record.score, model=model)
    counts += _observed(metrics.GUARDED, record.guarded, model=model)
    return counts


def _failed(job: Job, label: Label) -> list[Count]:
    counts = [_one(metrics.GENERATIONS, model=job.model, outcome="failed")]
    if job.error is not None and job.error.sha256 is not None:
        version = label(job.model, job.error.version, job.error.sha256)
        counts.append(_one(metrics.VERSION_GENERATIONS, model=job.model, version=version, outcome="failed"))
    if job.error is not None and job.error.code in STEERING_ERRORS:
        counts.append(_one(metrics.STEERING_FAILURES, model=job.model, reason=job.error.code))
    return counts


def _observed(metric: Metric, value: float | None, **labels: str) -> list[Count]:
    """An observation of a histogram or a summary. What is no number is left out: the sum would be none for ever."""
    if value is None or not math.isfinite(value):
        return []
    part = "count"
    if metric.kind == "histogram":
        part = str(float([*metric.buckets, math.inf][bisect_left(metric.buckets, value)]))
    return [_count(metric, part, 1, **labels), _count(metric, "sum", value, **labels)]


def _one(metric: Metric, **labels: str) -> Count:
    return _count(metric, "value", 1, **labels)


def _count(metric: Metric, part: str, value: float, **labels: str) -> Count:
    return Count(metric.name, tuple(labels[name] for name in metric.labels), part, float(value))
