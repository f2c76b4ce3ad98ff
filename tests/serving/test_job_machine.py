"""The store against a plain model of it: whatever is called in whatever order, a job is in the state that the rules say."""

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import update

from reins_serve.serving.engines import open_engine, writing
from reins_serve.serving.jobs import MAX_ATTEMPTS, Job, QueueFull
from reins_serve.serving.sql_jobs import SqlJobs
from reins_serve.serving.tables import jobs as table
from reins_serve.serving.tables import metadata
from tests.serving.examples import ERROR, RESULT, job

# Few of each, and the usual one most of the time, so that many rules in a row meet in one job.
MODELS = st.sampled_from(["tiny", "tiny", "tiny", "other"])
HOLDERS = st.sampled_from(["one", "one", "one", "two"])
OFF = st.sampled_from([0, 0, 0, 0, -1, 1])  # the attempt that somebody names, beside the one that the job is at
NAMES = st.integers(0, 3).map(str)
BOUND = 3


@dataclass(frozen=True)
class Known:
    """What the rules say of a job."""

    id: str
    owner: str
    model: str
    priority: int
    age: int
    status: str = "queued"
    holder: str | None = None
    attempts: int = 0
    returned: int = 0
    progress: int = 0

    @property
    def open(self) -> bool:
        return self.status in ("queued", "in_progress")

    def held(self, attempt: int) -> bool:
        return self.open and self.holder is not None and self.attempts == attempt


def known(found: Job, age: int) -> Known:
    shared = ("id", "owner", "model", "priority", "status", "holder", "attempts", "returned", "progress")
    return Known(age=age, **{name: getattr(found, name) for name in shared})


class Machine(RuleBasedStateMachine):
    """Rules call the store and the model alike; the invariants compare them."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.engine = open_engine(self.url, 1)
        self.store = SqlJobs(self.url, retention_s=1e6)
        self.jobs: dict[str, Known] = {}
        self.ended = {"completed": 0, "failed": 0, "cancelled": 0}
        self.ages = 0

    def teardown(self) -> None:
        self.runner.run(self.store.close())
        self.runner.close()
        self.engine.dispose()

    def do(self, called: Any) -> Any:
        return self.runner.run(called)

    @initialize()
    def nothing_is_there(self) -> None:
        self.do(self.store.get("a"))  # makes the tables
        with writing(self.engine) as connection:
            for kind in reversed(metadata.sorted_tables):
                connection.execute(kind.delete())

        for name, owner in zip("0123", "aaba", strict=True):
            self.add(name, owner, "tiny", 0)

    @rule(name=NAMES, owner=st.sampled_from("abc"), model=MODELS, priority=st.sampled_from([0, 0, 0, 1]))
    def add(self, name: str, owner: str, model: str, priority: int) -> None:
        if name in self.jobs:
            return
        self.ages += 1
        new = job(name, owner, model, priority=priority, created_at=1000.0 + self.ages)
        if sum(one.model == model and one.status == "queued" for one in self.jobs.values()) >= BOUND:
            with pytest.raises(QueueFull):
                self.do(self.store.add(new, BOUND))
        else:
            self.do(self.store.add(new, BOUND))
            self.jobs[name] = Known(name, owner, model, priority, self.ages)

    @rule(model=MODELS, holder=HOLDERS, limit=st.sampled_from([1, 2, 9, 9, 9, 9]))
    def claim(self, model: str, holder: str, limit: int) -> None:
        way = [one for one in self.jobs.values() if one.model == model and one.open and one.holder is not None]
        waiting = [one for one in self.jobs.values() if one.model == model and one.open and one.holder is None]
        claimed = self.do(self.store.claim(model, holder, limit))
        if not waiting or len(way) >= limit:
            assert claimed is None
            return
        best = min(waiting, key=lambda one: (-one.priority, sum(w.owner == one.owner for w in way), one.age))
        self.jobs[best.id] = replace(best, holder=holder, attempts=best.attempts + 1)
        assert known(claimed, best.age) == self.jobs[best.id]

    def named(self, name: str, off: int) -> tuple[Known | None, int]:
        """A job, if it is there, and the attempt that somebody names."""
        one = self.jobs.get(name)
        return one, off + (one.attempts if one is not None else 1)

    def changed(self, name: str, after: Job | None, expected: Known | None) -> None:
        if expected is None:
            assert after is None
        else:
            assert after is not None and known(after, expected.age) == expected
            self.jobs[name] = expected

    @rule(name=NAMES, off=OFF)
    def begin(self, name: str, off: int) -> None:
        one, attempt = self.named(name, off)
        fits = one is not None and one.held(attempt) and one.status == "queued"
        expected = replace(one, status="in_progress") if one is not None and fits else None
        self.changed(name, self.do(self.store.begin(name, attempt)), expected)

    @rule(name=NAMES, off=OFF)
    def complete(self, name: str, off: int) -> None:
        one, attempt = self.named(name, off)
        fits = one is not None and one.held(attempt) and one.status == "in_progress"
        expected = replace(one, status="completed", holder=None, progress=100) if one is not None and fits else None
        self.ended["completed"] += fits
        self.changed(name, self.do(self.store.complete(name, attempt, RESULT)), expected)

    @rule(name=NAMES, off=OFF)
    def fail(self, name: str, off: int) -> None:
        one, attempt = self.named(name, off)
        fits = one is not None and one.held(attempt)
        expected = replace(one, status="failed", holder=None) if one is not None and fits else None
        self.ended["failed"] += fits
        self.changed(name, self.do(self.store.fail(name, ERROR, attempt)), expected)

    @rule(name=NAMES, off=OFF, lost=st.booleans())
    def release(self, name: str, off: int, lost: bool) -> None:
        one, attempt = self.named(name, off)
        expected = None
        if one is not None and one.held(attempt) and not (lost and one.attempts - one.returned >= MAX_ATTEMPTS):
            returned = one.returned + (not lost)
            expected = replace(one, status="queued", holder=None, progress=0, returned=returned)
        self.changed(name, self.do(self.store.release(name, attempt, lost)), expected)

    @rule(holder=HOLDERS, beats=st.dictionaries(NAMES, st.tuples(OFF, st.integers(0, 120)), min_size=1))
    def renew(self, holder: str, beats: dict[str, tuple[int, int]]) -> None:
        said, lost = {}, set()
        for name, (off, percent) in beats.items():
            one, attempt = self.named(name, off)
            said[name] = (attempt, percent)
            if one is None or not one.held(attempt) or one.holder != holder:
                lost.add(name)
            elif one.status == "in_progress":
                self.jobs[name] = replace(one, progress=max(one.progress, min(percent, 99)))
        assert self.do(self.store.renew(holder, said)) == lost

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        one = self.jobs.pop(name, None)
        removed = self.do(self.store.remove(name))
        assert (removed is None) == (one is None)
        self.ended["cancelled"] += one is not None and one.open

    @rule(names=st.sets(NAMES, max_size=4))
    def leases_pass(self, names: set[str]) -> None:
        with writing(self.engine) as connection:
            passed = table.c.id.in_(names) & table.c.lease_until.is_not(None)
            connection.execute(update(table).where(passed).values(lease_until=1.0))
        lost = {name for name in names & set(self.jobs) if self.jobs[name].holder is not None}
        assert {one.id for one in self.do(self.store.reap())} == lost
        for name in lost:
            one = self.jobs[name]
            if one.attempts - one.returned < MAX_ATTEMPTS:
                self.jobs[name] = replace(one, status="queued", holder=None, progress=0)
            else:
                self.jobs[name] = replace(one, status="failed", holder=None)
                self.ended["failed"] += 1

    @rule(names=st.sets(NAMES, max_size=4))
    def time_passes(self, names: set[str]) -> None:
        with writing(self.engine) as connection:
            over = table.c.id.in_(names) & table.c.status.in_(["completed", "failed"])
            connection.execute(update(table).where(over).values(expires_at=1.0))
        over_now = {name for name in names & set(self.jobs) if self.jobs[name].status in ("completed", "failed")}
        assert {one.id for one in self.do(self.store.expire())} == over_now
        for name in over_now:
            self.jobs[name] = replace(self.jobs[name], status="expired")

    @invariant()
    def every_job_is_in_the_state_that_the_rules_say(self) -> None:
        for name in map(str, range(4)):
            found, one = self.do(self.store.get(name)), self.jobs.get(name)
            assert (None if found is None or one is None else known(found, one.age)) == one
            assert found is None or (found.lease_until is not None) == (found.holder is not None)
            assert found is None or (found.completed_at is not None) == found.terminal
        for model in ("tiny", "other"):
            for status in ("queued", "in_progress"):
                there = sum(one.model == model and one.status == status for one in self.jobs.values())
                assert self.do(self.store.count(model, status)) == there

    @invariant()
    def every_end_was_counted_once(self) -> None:
        counted = dict.fromkeys(self.ended, 0.0)
        for count in self.do(self.store.totals()):
            if count.metric == "reins_generations_total":
                counted[count.labels[1]] += count.value
        assert counted == self.ended


def test_the_store_follows_its_rules(jobs_url: str) -> None:
    machine = type("MachineOfUrl", (Machine,), {"url": jobs_url})
    few = settings(
        max_examples=20, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    run_state_machine_as_test(machine, settings=few)
