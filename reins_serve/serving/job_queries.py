"""Which job comes next, and what else is asked of the table of jobs."""

from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, case, func, select, tuple_

from reins_serve.serving.job_rows import to_job
from reins_serve.serving.jobs import Job
from reins_serve.serving.tables import OPEN, jobs


def find_job(connection: Connection, job_id: str, to_change: bool = False) -> Job | None:
    """One job; `to_change` keeps others from changing it before this transaction ends."""
    found = select(jobs).where(jobs.c.id == job_id)
    row = connection.execute(found.with_for_update() if to_change else found).mappings().first()
    return None if row is None else to_job(row)


def lock_jobs(connection: Connection, which: Select[Any]) -> list[Job]:
    """Jobs to change, without those that another transaction is changing."""
    return [to_job(row) for row in connection.execute(which.with_for_update(skip_locked=True)).mappings()]


def count_where(connection: Connection, which: ColumnElement[bool]) -> int:
    """How many jobs there are of a kind."""
    return connection.scalar(select(func.count()).select_from(jobs).where(which)) or 0


def waiting(model: str) -> ColumnElement[bool]:
    """Jobs of a model that nobody holds."""
    return and_(jobs.c.model == model, jobs.c.status == "queued", jobs.c.holder.is_(None))


def on_their_way(model: str) -> ColumnElement[bool]:
    """Jobs of a model that are claimed or in progress."""
    return and_(jobs.c.model == model, jobs.c.status.in_(OPEN), jobs.c.holder.is_not(None))


def next_waiting(model: str) -> Select[Any]:
    """The job to claim, locked: by priority, then of the owner with the fewest on their way, then the oldest.

    A row that another transaction has locked is passed over: whoever locks a waiting job removes it.
    """
    busy = _busy(model)
    return (
        select(jobs)
        .outerjoin(busy, busy.c.owner == jobs.c.owner)
        .where(waiting(model))
        .order_by(jobs.c.priority.desc(), func.coalesce(busy.c.jobs, 0), jobs.c.created_at, jobs.c.id)
        .limit(1)
        .with_for_update(of=jobs, skip_locked=True)
    )


def place(model: str, job_id: str) -> Select[int]:
    """How many queued jobs go before one: those that are claimed, then those that will be, should none come and none end.

    The k-th waiting job of an owner with n jobs on their way has its turn among those with n + k, because every job that is
    claimed before it is one more on its way.
    """
    busy = _busy(model)
    waits = case((jobs.c.holder.is_(None), 1), else_=0)
    age = (jobs.c.created_at, jobs.c.id)
    own = func.row_number().over(partition_by=(jobs.c.owner, waits), order_by=(jobs.c.priority.desc(), *age))
    queued = (
        select(*age, jobs.c.priority, waits.label("waits"), (func.coalesce(busy.c.jobs, 0) + own).label("turn"))
        .outerjoin(busy, busy.c.owner == jobs.c.owner)
        .where(jobs.c.model == model, jobs.c.status == "queued")
        .subquery()
    )
    order = (queued.c.waits, queued.c.priority.desc(), queued.c.turn, queued.c.created_at, queued.c.id)
    ranked = select(queued.c.id, (func.row_number().over(order_by=order) - 1).label("place")).subquery()
    return select(ranked.c.place).where(ranked.c.id == job_id)


def listed(owner: str, limit: int, newest_first: bool, behind: tuple[float, str] | None) -> Select[Any]:
    """Jobs of an owner by time of creation, behind the one with this time and id."""
    age = tuple_(jobs.c.created_at, jobs.c.id)
    chosen = select(jobs).where(jobs.c.owner == owner, jobs.c.status != "expired").limit(limit)
    if behind is not None:
        chosen = chosen.where(age < tuple_(*behind) if newest_first else age > tuple_(*behind))
    columns = (jobs.c.created_at, jobs.c.id)
    return chosen.order_by(*(column.desc() for column in columns) if newest_first else columns)


def _busy(model: str) -> Any:
    return select(jobs.c.owner, func.count().label("jobs")).where(on_their_way(model)).group_by(jobs.c.owner).subquery()
