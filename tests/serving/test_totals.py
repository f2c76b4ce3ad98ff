"""What changes of jobs add to the metrics, and the page that shows it."""

from collections import Counter as Tally
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest

from reins_serve import metrics
from reins_serve.metrics import Metric
from reins_serve.serving.jobs import Count, Job, JobError, JobResult
from reins_serve.serving.sql_jobs import SqlJobs
from reins_serve.serving.tally import MAX_VERSIONS, shown, tally
from reins_serve.serving.totals import Totals
from tests.serving.databases import opened
from tests.serving.examples import ERROR, OFF, RESULT, STEERED, job, started

WAITS = job("a", created_at=100.0)
CLAIMED = replace(WAITS, holder="one", attempts=1)
BEGUN = replace(CLAIMED, status="in_progress", started_at=103.0)
DONE = replace(BEGUN, status="completed", result=RESULT)
KINDS: dict[str, Any] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram, "summary": Summary}


def label(model: str, version: str | None, sha256: str | None) -> str:
    return f"{model} v{version}"


def added(counts: Iterable[Count]) -> list[Count]:
    """Counts of one kind together, as the table keeps them."""
    sums: Tally[tuple[str, tuple[str, ...], str]] = Tally()
    for count in counts:
        sums[count.metric, count.labels, count.part] += count.value  # type: ignore[assignment]
    return [Count(*key, value=value) for key, value in sums.items()]


def page(counts: Iterable[Count], served: str = "tiny") -> dict[str, float]:
    """The samples of the page."""
    totals = Totals()
    totals.serves(served, {})
    lines = totals.text(added(counts), {}, {}).decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def series(metric: Metric) -> Any:
    """A registry with one metric of prometheus-client's own, and that metric."""
    registry = CollectorRegistry()
    more = {"buckets": metric.buckets} if metric.buckets else {}
    return registry, KINDS[metric.kind](metric.name, metric.meaning, metric.labels, registry=registry, **more)


def test_a_completed_clip_is_counted_with_all_that_is_known_of_it() -> None:
    steered = '{model="tiny",version="tiny v7"}'
    counted = page(tally(BEGUN, DONE, label))
    assert counted['reins_generations_total{model="tiny",outcome="completed"}'] == 1
    assert counted[f"reins_steered_generations_total{steered}"] == 1
    assert counted['reins_version_generations_total{model="tiny",outcome="steered",version="tiny v7"}'] == 1
    assert counted[f"reins_version_score_sum{steered}"] == 0.25
    assert counted['reins_steering_steps_total{model="tiny"}'] == 2
    assert counted['reins_frames_total{model="tiny"}'] == 4
    assert counted['reins_generation_seconds_sum{model="tiny"}'] == 0.3
    assert counted['reins_batch_size_sum{model="tiny"}'] == 2
    assert counted['reins_steering_displacement_sum{model="tiny"}'] == 0.5
    assert counted['reins_steering_score_bucket{le="0.25",model="tiny"}'] == 1
    assert not [name for name in counted if name.startswith("reins_unsteered")]


def test_clips_are_counted_by_how_often_a_guard_held_them_where_there_is_one() -> None:
    held = replace(DONE, result=replace(RESULT, record=replace(STEERED, guarded=0.75)))
    counted = page([*tally(BEGUN, held, label), *tally(BEGUN, DONE, label)])
    assert [counted[f'reins_steering_guarded_bucket{{le="{le}",model="tiny"}}'] for le in (0.5, 0.75)] == [0, 1]
    assert counted['reins_steering_guarded_count{model="tiny"}'] == 1


def test_a_clip_that_was_not_steered_is_counted_by_its_reason() -> None:
    counted = page(tally(BEGUN, replace(DONE, result=JobResult(OFF, 0.1, 1)), label))
    assert counted['reins_unsteered_generations_total{model="tiny",reason="admin"}'] == 1
    assert not [name for name in counted if name.startswith(("reins_steered", "reins_version"))]
    for name in ("score", "guarded"):
        assert counted[f'reins_steering_{name}_count{{model="tiny"}}'] == 0
    unproved = replace(DONE, result=JobResult(replace(STEERED, proved=False), 0.1, 1))
    assert page(tally(BEGUN, unproved, label))['reins_unsteered_generations_total{model="tiny",reason="unknown"}'] == 1


def test_a_models_own_counts_are_there_from_zero_on() -> None:
    """Else what its first clips add would be lost to `rate`, which sees no addition in a series' first sample."""
    before, after = page([]), page(tally(BEGUN, DONE, label))
    of_a_version = {name for name in after if name.startswith(("reins_steered", "reins_version"))}
    assert set(before) == set(after) - of_a_version
    assert set(before.values()) == {0}


def test_a_failed_job_is_counted_by_its_steering_and_a_removed_one_as_cancelled() -> None:
    error = JobError("steering_not_applied", "It was not.", "7", "ab" * 32)
    counted = page(tally(BEGUN, replace(BEGUN, status="failed", error=error), label))
    assert counted['reins_generations_total{model="tiny",outcome="failed"}'] == 1
    assert counted['reins_steering_failures_total{model="tiny",reason="steering_not_applied"}'] == 1
    assert counted['reins_version_generations_total{model="tiny",outcome="failed",version="tiny v7"}'] == 1
    counted = page(tally(BEGUN, replace(BEGUN, status="failed", error=ERROR), label))
    assert not [name for name in counted if name.startswith(("reins_steering_failures", "reins_version"))]
    assert [count.labels for count in tally(WAITS, None, label)] == [("tiny", "cancelled")]


def test_the_wait_in_the_queue_is_counted_when_denoising_begins() -> None:
    counted = page(tally(CLAIMED, BEGUN, label))
    assert counted['reins_queue_wait_seconds_sum{model="tiny"}'] == 3
    early = replace(BEGUN, started_at=99.0)  # by another machine's clock
    assert page(tally(CLAIMED, early, label))['reins_queue_wait_seconds_sum{model="tiny"}'] == 0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, WAITS),
        (WAITS, CLAIMED),
        (BEGUN, replace(BEGUN, progress=50)),
        (BEGUN, WAITS),
        (DONE, replace(DONE, status="expired", result=None)),
        (DONE, None),
    ],
)
def test_other_changes_are_not_counted(before: Job | None, after: Job | None) -> None:
    assert tally(before, after, label) == []


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10_000) | st.sampled_from([*metrics.SECONDS, *metrics.GAPS]), max_size=20))
def test_the_page_shows_observations_as_prometheus_client_does(values: list[float]) -> None:
    for metric in (metrics.GENERATION_SECONDS, metrics.SCORE, metrics.VERSION_SCORE):
        registry, expected = series(metric)
        counts: list[Count] = []
        for value in values:
            record = replace(STEERED, score=value)
            done = replace(DONE, result=JobResult(record, value, 1))
            counts += tally(BEGUN, done, lambda *_: "7")
            expected.labels(
                **{"model": "tiny", "version": "7"} if "version" in metric.labels else {"model": "tiny"}
            ).observe(value)
        lines = Totals().text(added(counts), {}, {}).decode().splitlines()
        own = [
            line for line in lines if line.startswith((metric.name, f"# HELP {metric.name}", f"# TYPE {metric.name}"))
        ]
        assert own == [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


def test_before_anything_is_counted_every_metric_is_named_and_every_served_model_begins_at_0() -> None:
    totals = Totals()
    totals.serves("tiny", {}, registry_up=True)
    text = totals.text([], {"tiny": 3}, {"tiny": 1}).decode()
    for metric in metrics.SERVED_BY_GATEWAY:
        (header,) = [line for line in generate_latest(series(metric)[0]).decode().splitlines() if "HELP" in line]
        assert header in text.splitlines()
    samples = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    assert {name: value for name, value in samples if float(value)} == {
        'reins_registry_up{model="tiny"}': "1.0",
        'reins_requests_running{model="tiny"}': "1.0",
        'reins_requests_waiting{model="tiny"}': "3.0",
    }
    outcomes = ('outcome="cancelled"', 'outcome="completed"', 'outcome="failed"')
    zeros = [f'reins_generations_total{{model="tiny",{outcome}}}' for outcome in outcomes]
    zeros += [f'{name}{{model="tiny"}}' for name in ("reins_frames_total", "reins_batch_size_sum")]
    assert [name for name in zeros if [name, "0.0"] not in samples] == []


def test_what_is_no_number_does_not_spoil_a_sum() -> None:
    record = replace(STEERED, score=float("nan"), displacement=float("inf"))
    counted = page(tally(BEGUN, replace(DONE, result=JobResult(record, 0.1, 1)), label))
    assert counted['reins_generations_total{model="tiny",outcome="completed"}'] == 1
    assert not [name for name, value in counted.items() if value and ("score_" in name or "displacement_" in name)]


def test_buckets_of_another_version_fall_in_with_the_bounds_above_them() -> None:
    stored = [
        Count(metrics.BATCH_SIZE.name, ("tiny",), part, value) for part, value in [("3.0", 5), ("inf", 1), ("sum", 99)]
    ]
    counted = page(stored)
    assert [
        counted[f'reins_batch_size_bucket{{le="{bound}",model="tiny"}}'] for bound in ("2.0", "4.0", "64.0", "+Inf")
    ] == [
        0,
        5,
        5,
        6,
    ]
    assert counted['reins_batch_size_count{model="tiny"}'] == 6


def test_the_versions_that_were_counted_last_are_shown() -> None:
    many = [
        Count(metric.name, ("tiny", str(version), *outcome), "value", 1.0)
        for version in reversed(range(3 * MAX_VERSIONS))
        for metric, outcome in ((metrics.STEERED, ()), (metrics.VERSION_GENERATIONS, ("steered",)))
    ]
    others = [
        Count(metrics.STEERED.name, ("other", "1"), "value", 1.0),
        Count(metrics.FRAMES.name, ("tiny",), "value", 4.0),
        Count("of a newer version", ("a", "b"), "value", 4.0),
    ]
    left = shown(many + others)
    assert left == many[: 2 * MAX_VERSIONS] + others[:2]


@pytest.mark.anyio
async def test_every_store_shows_what_all_have_counted_also_when_the_jobs_are_gone(jobs_url: str) -> None:
    async with opened(jobs_url, retention_s=0) as one, opened(jobs_url, label=label) as two:
        await started(one, "a")
        await one.complete("a", 1, RESULT)
        await started(two, "b")
        await two.complete("b", 1, RESULT)
        await started(two, "c")
        await two.remove("c")
        await one.expire()
        await one.expire()
        await two.remove("b")
        assert set(await one.totals()) == set(await two.totals())
        counted = page(await one.totals())
        assert counted['reins_generations_total{model="tiny",outcome="completed"}'] == 2
        assert counted['reins_generations_total{model="tiny",outcome="cancelled"}'] == 1
        assert counted['reins_steered_generations_total{model="tiny",version="7"}'] == 1
        assert counted['reins_steered_generations_total{model="tiny",version="tiny v7"}'] == 1
        assert counted['reins_generation_seconds_bucket{le="0.5",model="tiny"}'] == 2
        assert counted['reins_generation_seconds_sum{model="tiny"}'] == pytest.approx(0.6)
        assert counted['reins_queue_wait_seconds_count{model="tiny"}'] == 3


@pytest.mark.anyio
async def test_a_change_that_is_refused_is_not_counted(jobs: SqlJobs) -> None:
    await started(jobs, "a")
    await jobs.complete("a", 1, RESULT)
    before = await jobs.totals()
    assert await jobs.complete("a", 1, RESULT) is None
    assert await jobs.fail("a", ERROR, 1) is None
    assert await jobs.totals() == before
