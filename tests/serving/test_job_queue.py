"""Who comes next: bound, limit, priority, fairness, places in the queue, lists; on SQLite and on PostgreSQL alike."""

import pytest

from reins_serve.serving.backlog import backlog
from reins_serve.serving.jobs import QueueFull
from reins_serve.serving.sql_jobs import SqlJobs
from tests.serving.examples import RESULT, job

pytestmark = pytest.mark.anyio


async def claim_all(jobs: SqlJobs, model: str = "tiny") -> list[str]:
    """The jobs that wait, in the order in which they are claimed."""
    order = []
    while (claimed := await jobs.claim(model, "one", 99)) is not None:
        order.append(claimed.id)
    return order


async def test_the_queue_is_bounded_for_each_model(jobs: SqlJobs) -> None:
    await jobs.add(job("a"), 1)
    with pytest.raises(QueueFull):
        await jobs.add(job("b"), 1)
    assert await jobs.get("b") is None
    await jobs.add(job("c", model="other"), 1)
    await jobs.claim("tiny", "one", 9)
    with pytest.raises(QueueFull):
        await jobs.add(job("b"), 1)  # it waits still
    await jobs.begin("a", 1)
    await jobs.add(job("b"), 1)
    assert [await jobs.count("tiny", status) for status in ("queued", "in_progress")] == [1, 1]
    assert [await jobs.count("other", status) for status in ("queued", "in_progress")] == [1, 0]


async def test_no_more_jobs_are_on_their_way_than_the_limit(jobs: SqlJobs, jobs_url: str) -> None:
    for name in "abcd":
        await jobs.add(job(name), 9)
    await jobs.add(job("x", model="other"), 9)
    assert [getattr(await jobs.claim("tiny", holder, 2), "id", None) for holder in ("one", "two", "three")] == [
        "a",
        "b",
        None,
    ]
    await jobs.begin("a", 1)
    assert await jobs.claim("tiny", "one", 2) is None
    assert backlog(jobs_url, "tiny") == (2, 2)
    assert await jobs.claim("other", "one", 1) is not None  # each model has its own
    await jobs.complete("a", 1, RESULT)
    assert backlog(jobs_url, "tiny") == (2, 1)
    assert await jobs.claim("tiny", "one", 2) is not None
    await jobs.release("b", 1)
    assert backlog(jobs_url, "tiny") == (2, 1)
    assert backlog(jobs_url, "nothing of it") == (0, 0)


async def test_jobs_are_claimed_by_priority_then_from_who_has_the_fewest_on_their_way_then_by_age(
    jobs: SqlJobs,
) -> None:
    asked = [
        ("a1", "a", 0),
        ("a2", "a", 0),
        ("a3", "a", 0),
        ("b1", "b", 0),
        ("b2", "b", 0),
        ("c1", "c", 0),
        ("u", "a", 1),
    ]
    for age, (name, owner, priority) in enumerate(asked):
        await jobs.add(job(name, owner, priority=priority, created_at=1000.0 + age), 9)
    assert await claim_all(jobs) == ["u", "b1", "c1", "a1", "b2", "a2", "a3"]


async def test_an_owner_whose_jobs_end_is_served_again(jobs: SqlJobs) -> None:
    for age, (name, owner) in enumerate([("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b")]):
        await jobs.add(job(name, owner, created_at=1000.0 + age), 9)
    await jobs.claim("tiny", "one", 9)
    await jobs.begin("a1", 1)
    await jobs.complete("a1", 1, RESULT)
    assert await claim_all(jobs) == ["a2", "b1", "b2"]


async def test_places_foretell_the_order_of_the_claims(jobs: SqlJobs) -> None:
    asked = ["a1", "a2", "a3", "b1", "c1", "b2", "a4", "c2", "a5"]
    for age, name in enumerate(asked):
        priority = 1 if name in ("a4", "c2") else 0
        await jobs.add(job(name, name[0], priority=priority, created_at=1000.0 + age), 9)
    first = await jobs.claim("tiny", "one", 9)
    second = await jobs.claim("tiny", "one", 9)
    assert first is not None and second is not None
    places = {name: await jobs.position(job(name)) for name in asked}
    order = [first.id, second.id, *await claim_all(jobs)]
    assert sorted(places, key=lambda name: places[name] or 0) == order
    assert sorted(place for place in places.values() if place is not None) == list(range(9))
    await jobs.begin(first.id, 1)
    assert await jobs.position(first) is None
    assert await jobs.position(second) == 0


async def test_pages_show_the_owners_jobs_by_age(jobs: SqlJobs) -> None:
    # Two of the same moment, and ids in another order than the ages.
    ages = {"m": 1.0, "b": 2.0, "c": 2.0, "a": 3.0}
    for name, age in ages.items():
        await jobs.add(job(name, created_at=age), 9)
    await jobs.add(job("x", owner="you", created_at=2.5), 9)

    async def page(after: str | None, limit: int, newest_first: bool) -> tuple[str, bool]:
        found = await jobs.page("me", after, limit, newest_first)
        return "".join(item.id for item in found.jobs), found.has_more

    assert await page(None, 4, True) == ("acbm", False)
    assert await page(None, 3, True) == ("acb", True)
    assert await page("c", 9, True) == ("bm", False)
    assert await page("m", 2, False) == ("bc", True)
    assert await page("c", 2, False) == ("a", False)
    assert await page("m", 2, True) == ("", False)
    for unknown in ("x", "never there"):
        with pytest.raises(KeyError):
            await jobs.page("me", unknown, 3, newest_first=True)


async def test_the_backlog_of_a_database_that_no_gateway_has_begun_is_empty(jobs_url: str) -> None:
    assert backlog(jobs_url, "tiny") == (0, 0)
