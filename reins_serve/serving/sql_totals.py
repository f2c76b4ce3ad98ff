"""The counts behind the metrics, in their table."""

import json
from collections.abc import Iterable

from sqlalchemy import Connection, select

from reins_serve.serving.engines import insert
from reins_serve.serving.jobs import Count
from reins_serve.serving.tables import totals


def add_counts(connection: Connection, counts: Iterable[Count], now: float) -> None:
    """Add to what was counted before, in one order, so that two transactions never wait for each other."""
    rows = [
        {
            "metric": count.metric,
            "labels": json.dumps(count.labels),
            "part": count.part,
            "value": count.value,
            "counted_at": now,
        }
        for count in sorted(counts, key=lambda count: (count.metric, count.labels, count.part))
    ]
    if rows:
        statement = insert(connection, totals)
        new = statement.excluded
        statement = statement.on_conflict_do_update(
            index_elements=["metric", "labels", "part"],
            set_={"value": totals.c.value + new.value, "counted_at": new.counted_at},
        )
        connection.execute(statement, rows)


def read_counts(connection: Connection) -> list[Count]:
    """Everything, what was counted last first."""
    rows = connection.execute(select(totals).order_by(totals.c.counted_at.desc()))
    return [Count(row.metric, tuple(json.loads(row.labels)), row.part, row.value) for row in rows]
