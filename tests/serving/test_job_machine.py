"""The store against a plain model of it: whatever is called in whatever order, a job is in the state that the rules say."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import update

from reins_serve.serving.engines import open_engine, writing
from reins_serve.serving.jobs import MAX_ATTEMPTS, Job, QueueFull
from reins_serve.serving.sql_jobs import SqlJobs
from reins_serve.serving.tables import jobs as table
from reins_serve.serving.tables import metadata
from tests.serving.examples import ERROR, RESULT, job

# Mostly what fits, so that many rules in a row meet in one job, and now and then what does not.
MODELS = st.sampled_from(["tiny", "tiny", "tiny", "other"])
HOLDERS = st.sampled_from(["one", "one", "one", "two"])
OFF = st.sampled_from([0, 0, 0, 0, 0, -1, 1])  # the attempt that somebody names, beside the one that the job is at
PICKS = st.tuples(st.integers(0, 11), st.sampled_from([True, True, True, False]))  # which job, and whether it shall fit
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

        for owner in "aab":
            self.add(owner, "tiny", 0)

    def pick(
        self, picked: tuple[int, bool], fits: Callable[[Known], bool] = lambda one: one.holder is not None
    ) -> Known:
        """One of the jobs that fit, if there are such and it shall fit; else of all."""
        number, shall_fit = picked
        chosen = [one for one in self.jobs.values() if fits(one)] if shall_fit else []
        chosen = chosen or list(self.jobs.values())
        return chosen[number % len(chosen)]

    @rule(owner=st.sampled_from("abc"), model=MODELS, priority=st.sampled_from([0, 0, 0, 1]))
    def add(self, owner: str, model: str, priority: int) -> None:
        self.ages += 1
        name = f"{self.ages}"
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

    def changed(self, one: Known, after: Job | None, expected: Known | None) -> None:
        if expected is None:
            assert after is None
        else:
            assert after is not None and known(after, expected.age) == expected
            self.jobs[one.id] = expected
            self.ended["completed"] += expected.status == "completed"
            self.ended["failed"] += expected.status == "failed"

    @precondition(lambda self: self.jobs)
    @rule(numbers=st.lists(st.integers(0, 11), min_size=2, max_size=6))
    def go_on(self, numbers: list[int]) -> None:
        """Open jobs go the usual way."""
        for number in numbers:
            one = self.pick((number, True), lambda one: one.open)
            if one.open and one.holder is None:
                self.claim(one.model, "one", 9)
            elif one.status == "queued" and one.holder is not None:
                self.begun(one, one.attempts)
            elif one.holder is not None and one.progress < 50:
                self.renewed(one.holder, {one.id: (one.attempts, one.progress + 30)})
            elif one.open:
                self.completed(one, one.attempts)

    @precondition(lambda self: self.jobs)
    @rule(picked=PICKS, off=OFF)
    def begin(self, picked: tuple[int, bool], off: int) -> None:
        one = self.pick(picked, lambda one: one.holder is not None and one.status == "queued")
        self.begun(one, one.attempts + off)

    def begun(self, one: Known, attempt: int) -> None:
        fits = one.held(attempt) and one.status == "queued"
        after = self.do(self.store.begin(one.id, attempt))
        self.changed(one, after, replace(one, status="in_progress") if fits else None)

    @precondition(lambda self: self.jobs)
    @rule(picked=PICKS, off=OFF)
    def complete(self, picked: tuple[int, bool], off: int) -> None:
        one = self.pick(picked, lambda one: one.status == "in_progress")
        self.completed(one, one.attempts + off)

    def completed(self, one: Known, attempt: int) -> None:
        fits = one.held(attempt) and one.status == "in_progress"
        after = self.do(self.store.complete(one.id, attempt, RESULT))
        self.changed(one, after, replace(one, status="completed", holder=None, progress=100) if fits else None)

    @precondition(lambda self: self.jobs)
    @rule(picked=PICKS, off=OFF)
    def fail(self, picked: tuple[int, bool], off: int) -> None:
        one = self.pick(picked)
        attempt = one.attempts + off
        after = self.do(self.store.fail(one.id, ERROR, attempt))
        self.changed(one, after, replace(one, status="failed", holder=None) if one.held(attempt) else None)

    @precondition(lambda self: self.jobs)
    @rule(picked=PICKS, off=OFF, lost=st.booleans())
    def release(self, picked: tuple[int, bool], off: int, lost: bool) -> None:
        one = self.pick(picked)
        attempt, expected = one.attempts + off, None
        if one.held(attempt) and not (lost and one.attempts - one.returned >= MAX_ATTEMPTS):
            returned = one.returned + (not lost)
            expected = replace(one, status="queued", holder=None, progress=0, returned=returned)
        self.changed(one, self.do(self.store.release(one.id, attempt, lost)), expected)

    @precondition(lambda self: self.jobs)
    @rule(holder=HOLDERS, beats=st.lists(st.tuples(PICKS, OFF, st.integers(0, 120)), min_size=1, max_size=4))
    def renew(self, holder: str, beats: list[tuple[tuple[int, bool], int, int]]) -> None:
        said = {}
        for picked, off, percent in beats:
            one = self.pick(picked, lambda one: one.status == "in_progress" and one.holder == holder)
            said[one.id] = (one.attempts + off, percent)
        self.renewed(holder, said)

    def renewed(self, holder: str, said: dict[str, tuple[int, int]]) -> None:
        lost = self.do(self.store.renew(holder, said))
        for name, (attempt, percent) in said.items():
            found = self.jobs.get(name)
            if found is None or not found.held(attempt) or found.holder != holder:
                lost.remove(name)
            elif found.status == "in_progress":
                self.jobs[name] = replace(found, progress=max(found.progress, min(percent, 99)))
        assert not lost

    @precondition(lambda self: self.jobs)
    @rule(picked=PICKS, open_too=st.sampled_from([True, False, False]))
    def remove(self, picked: tuple[int, bool], open_too: bool) -> None:
        one = self.pick(picked, lambda one: open_too or not one.open)
        if open_too or not one.open:
            assert self.do(self.store.remove(one.id)) is not None
            del self.jobs[one.id]
            self.ended["cancelled"] += one.open

    @precondition(lambda self: self.jobs)
    @rule(picked=st.lists(PICKS, min_size=1, max_size=2))
    def leases_pass(self, picked: list[tuple[int, bool]]) -> None:
        names = {self.pick(one).id for one in picked}
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

    @precondition(lambda self: self.jobs)
    @rule(picked=PICKS)
    def time_passes(self, picked: tuple[int, bool]) -> None:
        one = self.pick(picked, lambda one: one.status in ("completed", "failed"))
        over = one.status in ("completed", "failed")
        with writing(self.engine) as connection:
            ended = (table.c.id == one.id) & table.c.status.in_(["completed", "failed"])
            connection.execute(update(table).where(ended).values(expires_at=1.0))
        assert [job.id for job in self.do(self.store.expire())] == [one.id] * over
        if over:
            self.jobs[one.id] = replace(one, status="expired")

    @invariant()
    def every_job_is_in_the_state_that_the_rules_say(self) -> None:
        for name in map(str, range(1, self.ages + 1)):
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
        max_examples=15, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    run_state_machine_as_test(machine, settings=few)
