"""Several gateways at once, each in a process of its own: nothing is taken twice, no bound is overstepped, all is counted."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from reins_serve.serving.backlog import backlog
from reins_serve.serving.jobs import Idempotency, IdempotencyConflict, Job, QueueFull
from reins_serve.serving.sql_jobs import SqlJobs
from tests.serving.databases import opened
from tests.serving.examples import ERROR, RESULT, job
from tests.serving.processes import CONTEXT, PATIENCE_S, running

GATEWAYS = 3
TASKS = 4  # of each
PATIENT = {"patience_s": float(PATIENCE_S)}


def gateway(story: Callable[..., Coroutine[Any, Any, list[Any]]], url: str, number: int, told: Any, *more: Any) -> None:
    """In a process: a story told several times at once on one store; what they return is put together."""

    async def main() -> None:
        async with opened(url, **PATIENT) as jobs:
            await jobs.get("a")
            together.wait()
            told_here = await asyncio.gather(*(story(jobs, f"{number}.{task}", *more) for task in range(TASKS)))
        told.put([item for part in told_here for item in part])

    together, *more = more
    asyncio.run(main())


def tell(story: Callable[..., Coroutine[Any, Any, list[Any]]], url: str, *more: Any) -> list[Any]:
    """What the stories in all gateways return."""
    told = CONTEXT.SimpleQueue()
    together = CONTEXT.Barrier(GATEWAYS, timeout=PATIENCE_S)
    arguments = [(story, url, number, told, together, *more) for number in range(GATEWAYS)]
    with running(gateway, *arguments) as processes:
        for process in processes:
            process.join(PATIENCE_S)
            assert process.exitcode == 0
    return [item for _ in processes for item in told.get()]


def filled(url: str, number: int) -> None:
    """Let jobs of three owners wait."""

    async def fill() -> None:
        async with opened(url) as jobs:
            for age in range(number):
                await jobs.add(job(f"{age}", "abc"[age % 3], created_at=float(age)), number)

    asyncio.run(fill())


def everything(url: str) -> tuple[list[Job], dict[str, float]]:
    """The jobs, and how many are counted by outcome."""

    async def read() -> tuple[list[Job], dict[str, float]]:
        async with opened(url) as jobs:
            found = [item for owner in "abc" for item in (await jobs.page(owner, None, 999, newest_first=True)).jobs]
            counted = [count for count in await jobs.totals() if count.metric == "reins_generations_total"]
            return found, {count.labels[1]: count.value for count in counted}

    return asyncio.run(read())


async def add_many(jobs: SqlJobs, name: str, bound: int) -> list[str]:
    stored = []
    for number in range(5):
        try:
            stored.append((await jobs.add(job(f"{name}.{number}", "a"), bound)).id)
        except QueueFull:
            stored.append("full")
    return stored


def test_the_bound_of_the_queue_is_exact(jobs_url: str) -> None:
    stored = Counter(tell(add_many, jobs_url, 17))
    assert stored.pop("full") == GATEWAYS * TASKS * 5 - 17
    assert set(stored) == {item.id for item in everything(jobs_url)[0]}
    assert backlog(jobs_url, "tiny") == (17, 0)


async def add_same(jobs: SqlJobs, name: str) -> list[str]:
    seen = []
    for number, model in enumerate(("tiny", "other", "tiny")):
        try:
            request = Idempotency(f"key{number}", model)
            seen.append((await jobs.add(job(f"{name}.{number}", "a", model if number else "tiny"), 99, request)).id)
        except IdempotencyConflict:
            seen.append("conflict")
    return seen


def test_a_request_that_is_sent_many_times_at_once_is_one_job(jobs_url: str) -> None:
    seen = Counter(tell(add_same, jobs_url))
    assert sorted(seen.values()) == [GATEWAYS * TASKS] * 3 and "conflict" not in seen
    assert set(seen) == {item.id for item in everything(jobs_url)[0]}


async def add_one_key(jobs: SqlJobs, name: str) -> list[str]:
    model = random.choice(["tiny", "other"])
    try:
        return [(await jobs.add(job(name, "a", model), 99, Idempotency("key", model))).model]
    except IdempotencyConflict:
        return ["conflict"]


def test_of_two_requests_with_one_key_for_two_models_one_is_refused(jobs_url: str) -> None:
    seen = set(tell(add_one_key, jobs_url))
    (stored,) = everything(jobs_url)[0]
    assert seen - {"conflict"} == {stored.model}


async def work_off(jobs: SqlJobs, name: str, limit: int, way: Any) -> list[str]:
    """Claim and complete until nothing waits; `way` counts how many are on their way."""
    done = []
    while await jobs.count("tiny", "queued"):
        claimed = await jobs.claim("tiny", name, limit)
        if claimed is None:
            continue
        with way.get_lock():
            way.value += 1
            assert way.value <= limit
        assert await jobs.begin(claimed.id, claimed.attempts) is not None
        with way.get_lock():
            way.value -= 1  # before it is over: what is counted here is never more than what is
        assert await jobs.complete(claimed.id, claimed.attempts, RESULT) is not None
        done.append(claimed.id)
    return done


def test_no_job_is_claimed_twice_and_the_limit_holds(jobs_url: str) -> None:
    filled(jobs_url, 60)
    done = tell(work_off, jobs_url, 5, CONTEXT.Value("i", 0))
    assert sorted(done, key=int) == [str(number) for number in range(60)]
    found, counted = everything(jobs_url)
    assert {item.status for item in found} == {"completed"}
    assert {item.attempts for item in found} == {1}
    assert counted == {"completed": 60}


async def do_anything(jobs: SqlJobs, name: str) -> list[str]:
    """Claim, and let all kinds of things happen to jobs, also to those of others; returns what was removed while open."""
    chance = random.Random(name)
    removed = []
    for step in range(12):
        claimed = await jobs.claim("tiny", name, 99)
        if claimed is None:
            break
        mine, attempt = claimed.id, claimed.attempts
        other = str(chance.randrange(60))
        if step % 4 == 3:
            await jobs.reap()
        if chance.random() < 0.2 and (gone := await jobs.remove(other)) is not None and not gone.terminal:
            removed.append(other)
        await jobs.begin(mine, attempt)
        await jobs.renew(name, {mine: (attempt, 50), other: (1, 60)})
        ways: list[Callable[[], Coroutine[Any, Any, object]]] = [
            lambda mine=mine, attempt=attempt: jobs.complete(mine, attempt, RESULT),
            lambda mine=mine, attempt=attempt: jobs.fail(mine, ERROR, attempt),
            lambda mine=mine, attempt=attempt: jobs.release(mine, attempt),
            lambda mine=mine, attempt=attempt: jobs.release(mine, attempt, lost=False),
        ]
        await chance.choice(ways)()
        await jobs.complete(other, 1, RESULT)
    return removed


def test_whatever_happens_at_once_every_job_has_one_end_and_is_counted_once(jobs_url: str) -> None:
    filled(jobs_url, 60)
    removed = tell(do_anything, jobs_url)
    found, counted = everything(jobs_url)
    assert len(removed) == len(set(removed)) == counted.get("cancelled", 0)
    ends = Counter(item.status for item in found)
    for outcome in ("completed", "failed"):
        # Some that had ended were removed later; they stay counted.
        assert counted[outcome] >= ends[outcome]
    assert sum(counted.values()) + ends["queued"] + ends["in_progress"] == 60
