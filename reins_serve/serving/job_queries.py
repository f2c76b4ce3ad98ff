"""Which job comes next, and what else is asked of the table of jobs. Statements are made once; values come when they run."""

from typing import Any

from sqlalchemy import (
    Connection,
    Integer,
    Select,
    Text,
    Update,
    and_,
    bindparam,
    case,
    func,
    select,
    tuple_,
    update,
)

from reins_serve.serving.job_rows import to_job
from reins_serve.serving.jobs import Job
from reins_serve.serving.tables import OPEN, images, jobs

_model = bindparam("model", type_=Text)
_job_id = bindparam("job_id", type_=Text)

_waiting = and_(jobs.c.model == _model, jobs.c.status == "queued", jobs.c.holder.is_(None))
_on_their_way = and_(jobs.c.model == _model, jobs.c.status.in_(OPEN), jobs.c.holder.is_not(None))
_busy = select(jobs.c.owner, func.count().label("jobs")).where(_on_their_way).group_by(jobs.c.owner).subquery()
_age = (jobs.c.created_at, jobs.c.id)

FIND = select(jobs).where(jobs.c.id == _job_id)
FIND_TO_CHANGE = FIND.with_for_update()
FIND_IMAGE = select(images.c.png).where(images.c.job_id == _job_id)
FIND_KEY = select(jobs).where(jobs.c.owner == bindparam("owner"), jobs.c.idempotency_key == bindparam("key"))
FIND_AGE = select(jobs.c.created_at).where(jobs.c.owner == bindparam("owner"), jobs.c.id == _job_id)

ANY_WAITING = select(jobs.c.id).where(_waiting).limit(1)
COUNT = select(func.count()).select_from(jobs).where(jobs.c.model == _model, jobs.c.status == bindparam("status"))
COUNT_ON_THEIR_WAY = select(func.count()).select_from(jobs).where(_on_their_way)

# The job to claim, locked. A row that another transaction has locked is passed over: whoever locks a waiting job removes it.
NEXT_WAITING = (
    select(jobs)
    .outerjoin(_busy, _busy.c.owner == jobs.c.owner)
    .where(_waiting)
    .order_by(jobs.c.priority.desc(), func.coalesce(_busy.c.jobs, 0), *_age)
    .limit(1)
    .with_for_update(of=jobs, skip_locked=True)
)

CHANGE = update(jobs).where(jobs.c.id == _job_id)


def _renew() -> Update:
    percent = bindparam("percent", type_=Integer)
    rises = and_(jobs.c.status == "in_progress", jobs.c.progress < percent)
    return CHANGE.values(lease_until=bindparam("until"), progress=case((rises, percent), else_=jobs.c.progress))


RENEW = _renew()


def _place() -> Select[int]:
    """How many queued jobs go before one: those that are claimed, then those that will be, should none come and none end.

    The k-th waiting job of an owner with n jobs on their way has its turn among those with n + k, because every job that is
    claimed before it is one more on its way.
    """
    waits = case((jobs.c.holder.is_(None), 1), else_=0)
    own = func.row_number().over(partition_by=(jobs.c.owner, waits), order_by=(jobs.c.priority.desc(), *_age))
    queued = (
        select(*_age, jobs.c.priority, waits.label("waits"), (func.coalesce(_busy.c.jobs, 0) + own).label("turn"))
        .outerjoin(_busy, _busy.c.owner == jobs.c.owner)
        .where(jobs.c.model == _model, jobs.c.status == "queued")
        .subquery()
    )
    order = (queued.c.waits, queued.c.priority.desc(), queued.c.turn, queued.c.created_at, queued.c.id)
    ranked = select(queued.c.id, (func.row_number().over(order_by=order) - 1).label("place")).subquery()
    return select(ranked.c.place).where(ranked.c.id == _job_id)


PLACE = _place()


def listed(newest_first: bool, behind: bool) -> Select[Any]:
    """Jobs of an `owner` by time of creation, at most `number`; `behind` the one that was created `at` and is called `job_id`."""
    chosen = select(jobs).where(jobs.c.owner == bindparam("owner"), jobs.c.status != "expired")
    if behind:
        mark = tuple_(bindparam("at"), _job_id)
        chosen = chosen.where(tuple_(*_age) < mark if newest_first else tuple_(*_age) > mark)
    order = [column.desc() for column in _age] if newest_first else list(_age)
    return chosen.order_by(*order).limit(bindparam("number", type_=Integer))


def find_job(connection: Connection, job_id: str, to_change: bool = False) -> Job | None:
    """One job; `to_change` keeps others from changing it before this transaction ends."""
    row = connection.execute(FIND_TO_CHANGE if to_change else FIND, {"job_id": job_id}).mappings().first()
    return None if row is None else to_job(row)


def lock_jobs(connection: Connection, which: Select[Any]) -> list[Job]:
    """Jobs to change, without those that another transaction is changing."""
    return [to_job(row) for row in connection.execute(which.with_for_update(skip_locked=True)).mappings()]
