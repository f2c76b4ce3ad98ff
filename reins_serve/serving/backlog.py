"""How much work there is for a model, for Serve's controller: it scales replicas by what the table of jobs says."""

from functools import lru_cache

from sqlalchemy import Engine, func, inspect, select
from sqlalchemy.exc import DBAPIError

from reins_serve.errors import StoreUnavailable
from reins_serve.serving.engines import open_engine, reading
from reins_serve.serving.tables import OPEN, jobs


def backlog(url: str, model: str) -> tuple[int, int]:
    """Jobs of a model that nobody has claimed, and jobs that are on their way. Blocks for one query; changes nothing.

    Raises:
        StoreUnavailable: the database does not answer; how much work there is is not known.
        ReinsError: not the URL of a database that jobs can be kept in.
    """
    held = jobs.c.holder.is_not(None)
    numbers = select(held, func.count()).where(jobs.c.model == model, jobs.c.status.in_(OPEN)).group_by(held)
    engine = _engine(url)
    try:
        with reading(engine) as connection:
            if engine not in _made:
                if not inspect(connection).has_table(jobs.name):
                    return 0, 0  # no gateway has begun yet
                _made.add(engine)
            by_held = {bool(row[0]): row[1] for row in connection.execute(numbers)}
    except DBAPIError as error:
        raise StoreUnavailable("The database of jobs does not answer.") from error
    return by_held.get(False, 0), by_held.get(True, 0)


_made: set[Engine] = set()  # databases that have their tables


@lru_cache
def _engine(url: str) -> Engine:
    return open_engine(url, 2)
