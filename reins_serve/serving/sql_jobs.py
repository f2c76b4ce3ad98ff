"""`SqlJobs`: the store of jobs in SQLite or PostgreSQL, which several gateways, and several clusters, may share.

A change of state is one transaction: it locks the job's row, asks `job_states` what becomes of it, writes that, and counts it.
Rows of jobs are locked before totals, and several of one kind in one order or not at all, so no two transactions wait for each
other.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from sqlalchemy import Connection, Select, delete, insert, select

from reins_serve.errors import StoreUnavailable
from reins_serve.serving import job_queries as queries
from reins_serve.serving import job_states as states
from reins_serve.serving.engines import clock, lock
from reins_serve.serving.job_queries import find_job, lock_jobs
from reins_serve.serving.job_rows import changed_columns, from_png, request_column, to_job, to_png, to_row
from reins_serve.serving.jobs import (
    LEASE_S,
    RETENTION_S,
    Count,
    Idempotency,
    IdempotencyConflict,
    Job,
    JobError,
    JobResult,
    OpenStatus,
    Page,
    QueueFull,
)
from reins_serve.serving.sql_totals import add_counts, read_counts
from reins_serve.serving.tables import ENDED, OPEN, commits, images, jobs
from reins_serve.serving.tally import Label, own_label, shown, tally
from reins_serve.serving.transactions import Transactions

REAPED_AT_ONCE = 100
COMMITS_KEPT_S = 600.0  # far longer than anybody tries a transaction again
PATIENCE_S = 5.0  # a restart of PostgreSQL takes less


class SqlJobs:
    """A `JobStore` in a database.

    Args:
        url: `sqlite:///path/to/jobs.sqlite` or `postgresql://user@host/database`. SQLite's file must not lie on a network
            share, and all its gateways are on one machine.
        label: What metrics call a direction's version.
        lease_s: How long a job is its holder's after a claim or a heartbeat.
        retention_s: How long a job and its files are kept after its end, and then that it has expired. None: for ever.
        patience_s: How long a transaction is tried while the database is away.

    Raises:
        ReinsError: not the URL of a database that jobs can be kept in. That it answers shows with the first method.
    """

    def __init__(
        self,
        url: str,
        label: Label = own_label,
        lease_s: float = LEASE_S,
        retention_s: float | None = RETENTION_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._database = Transactions(url, patience_s)
        self._label = label
        self._lease_s = lease_s
        self._retention_s = retention_s

    async def add(self, job: Job, max_queued: int, idempotency: Idempotency | None = None) -> Job:
        def work(connection: Connection) -> Job:
            values = to_row(job)
            if idempotency is not None:
                # The same key may come with requests for two models at a time, so the model's lock would not do.
                lock(connection, f"key {job.owner} {idempotency.key}")
                if (first := _same_request(connection, job.owner, idempotency)) is not None:
                    return first
                values |= {"idempotency_key": idempotency.key, "idempotency_digest": idempotency.digest}
            lock(connection, f"add {job.model}")
            if _number(connection, queries.COUNT, model=job.model, status="queued") >= max_queued:
                raise QueueFull("Too many jobs are waiting for this model. Try again later.")
            connection.execute(insert(jobs), values)
            if job.clip.image is not None:
                connection.execute(insert(images), {"job_id": job.id, "png": to_png(job.clip.image)})
            return job

        return await self._database.write(work)

    async def get(self, job_id: str) -> Job | None:
        return await self._database.read(lambda connection: find_job(connection, job_id))

    async def page(self, owner: str, after: str | None, limit: int, newest_first: bool) -> Page:
        def work(connection: Connection) -> Page:
            values: dict[str, object] = {"owner": owner, "number": limit + 1}
            if after is not None:
                at = connection.scalar(queries.FIND_AGE, {"owner": owner, "job_id": after})
                if at is None:
                    raise KeyError(after)
                values |= {"at": at, "job_id": after}
            rows = connection.execute(queries.listed(newest_first, after is not None), values).mappings().all()
            return Page(tuple(map(to_job, rows[:limit])), len(rows) > limit)

        return await self._database.read(work)

    async def claim(self, model: str, holder: str, limit: int) -> Job | None:
        def work(connection: Connection) -> Job | None:
            lock(connection, f"claim {model}")
            if _number(connection, queries.COUNT_ON_THEIR_WAY, model=model) >= limit:
                return None
            row = connection.execute(queries.NEXT_WAITING, {"model": model}).mappings().first()
            if row is None:
                return None
            now, before = clock(connection), to_job(row)
            after = states.claimed(before, holder, now + self._lease_s)
            self._store(connection, [(before, after)], now)
            png = connection.scalar(queries.FIND_IMAGE, {"job_id": after.id})
            return after if png is None else replace(after, clip=replace(after.clip, image=from_png(png)))

        if not await self._database.read(lambda connection: connection.scalar(queries.ANY_WAITING, {"model": model})):
            return None  # asked without the locks that a claim takes, because mostly nothing waits
        claiming = asyncio.ensure_future(self._database.write(work))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            with suppress(StoreUnavailable):
                if (job := await claiming) is not None:  # nobody hears of it now
                    await self.release(job.id, job.attempts, lost=False)
            raise

    async def begin(self, job_id: str, attempt: int) -> Job | None:
        return await self._change(job_id, lambda job, now: states.begun(job, attempt, now))

    async def renew(self, holder: str, progress: Mapping[str, tuple[int, int]]) -> set[str]:
        def work(connection: Connection) -> set[str]:
            held = select(jobs.c.id, jobs.c.attempts).where(
                jobs.c.id.in_(list(progress)), jobs.c.holder == holder, jobs.c.status.in_(OPEN)
            )
            rows = connection.execute(held.order_by(jobs.c.id).with_for_update()).all()
            kept = [row.id for row in rows if row.attempts == progress[row.id][0]]
            if kept:
                until = clock(connection) + self._lease_s
                values = [{"job_id": name, "percent": min(progress[name][1], 99), "until": until} for name in kept]
                connection.execute(queries.RENEW, values)
            return set(progress) - set(kept)

        return await self._database.write(work) if progress else set()

    async def complete(self, job_id: str, attempt: int, result: JobResult) -> Job | None:
        return await self._change(
            job_id, lambda job, now: states.completed(job, attempt, result, now, self._later(now))
        )

    async def fail(self, job_id: str, error: JobError, attempt: int) -> Job | None:
        return await self._change(job_id, lambda job, now: states.failed(job, attempt, error, now, self._later(now)))

    async def release(self, job_id: str, attempt: int, lost: bool = True) -> Job | None:
        return await self._change(job_id, lambda job, now: states.released(job, attempt, lost))

    async def remove(self, job_id: str) -> Job | None:
        def work(connection: Connection) -> Job | None:
            before = find_job(connection, job_id, to_change=True)
            if before is not None:
                connection.execute(delete(jobs).where(jobs.c.id == job_id))
                add_counts(connection, tally(before, None, self._label), clock(connection))
            return before

        return await self._database.write(work)

    async def reap(self) -> list[Job]:
        def work(connection: Connection) -> list[Job]:
            now = clock(connection)
            connection.execute(delete(commits).where(commits.c.committed_at < now - COMMITS_KEPT_S))
            lost = select(jobs).where(jobs.c.lease_until < now, jobs.c.status.in_(OPEN)).order_by(jobs.c.lease_until)
            before = lock_jobs(connection, lost.limit(REAPED_AT_ONCE))
            after = [states.reaped(job, now, self._later(now)) for job in before]
            self._store(connection, list(zip(before, after, strict=True)), now)
            return after

        return await self._database.write(work)

    async def expire(self, limit: int = 100) -> list[Job]:
        def work(connection: Connection) -> list[Job]:
            now = clock(connection)
            over = select(jobs).where(jobs.c.expires_at <= now).order_by(jobs.c.expires_at).limit(limit)
            before = lock_jobs(connection, over.where(jobs.c.status.in_(ENDED)))
            for job in before:
                after = states.expired(job, self._later(now))
                # A request with the same key is a new one from now on.
                gone = request_column(after) | {"idempotency_key": None, "idempotency_digest": None}
                connection.execute(queries.CHANGE, {"job_id": job.id} | changed_columns(after) | gone)
            forgotten = [job.id for job in lock_jobs(connection, over.where(jobs.c.status == "expired"))]
            connection.execute(delete(jobs).where(jobs.c.id.in_(forgotten)))
            return before

        return await self._database.write(work)

    async def count(self, model: str, status: OpenStatus) -> int:
        return await self._database.read(
            lambda connection: _number(connection, queries.COUNT, model=model, status=status)
        )

    async def position(self, job: Job) -> int | None:
        which = {"model": job.model, "job_id": job.id}
        return await self._database.read(lambda connection: connection.scalar(queries.PLACE, which))

    async def totals(self) -> Sequence[Count]:
        return shown(await self._database.read(read_counts))

    async def close(self) -> None:
        await self._database.close()

    async def _change(self, job_id: str, become: Callable[[Job, float], Job | None]) -> Job | None:
        def work(connection: Connection) -> Job | None:
            before = find_job(connection, job_id, to_change=True)
            now = clock(connection)
            after = None if before is None else become(before, now)
            if before is not None and after is not None:
                self._store(connection, [(before, after)], now)
            return after

        return await self._database.write(work)

    def _store(self, connection: Connection, changes: Sequence[tuple[Job, Job]], now: float) -> None:
        counts = []
        for before, after in changes:
            connection.execute(queries.CHANGE, {"job_id": after.id} | changed_columns(after))
            if after.terminal:
                connection.execute(delete(images).where(images.c.job_id == after.id))
            counts += tally(before, after, self._label)
        add_counts(connection, counts, now)

    def _later(self, now: float) -> float | None:
        return None if self._retention_s is None else now + self._retention_s


def _number(connection: Connection, query: Select[int], **values: str) -> int:
    return connection.scalar(query, values) or 0


def _same_request(connection: Connection, owner: str, idempotency: Idempotency) -> Job | None:
    """The job that the owner's request with this key has made."""
    row = connection.execute(queries.FIND_KEY, {"owner": owner, "key": idempotency.key}).mappings().first()
    if row is not None and row["idempotency_digest"] != idempotency.digest:
        raise IdempotencyConflict(
            "This idempotency key came with another request before. Give each request its own key."
        )
    return None if row is None else to_job(row)
