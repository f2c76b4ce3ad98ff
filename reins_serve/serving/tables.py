"""The tables of the jobs' database, as the newest migration leaves them. What may change in them: see `migrations`."""

from sqlalchemy import (
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
)

OPEN = ("queued", "in_progress")
ENDED = ("completed", "failed")

metadata = MetaData()

# `request`, `error` and `result` are JSON in text: PostgreSQL's own JSON type refuses the NUL that a prompt may contain.
jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("holder", Text),  # of an open job: None while it waits
    Column("lease_until", Double),
    Column("attempts", Integer, nullable=False),
    Column("progress", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("completed_at", Double),
    Column("expires_at", Double),
    Column("request", Text, nullable=False),
    Column("error", Text),
    Column("result", Text),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("returned", Integer, nullable=False, server_default="0"),
    Column("idempotency_key", Text),
    Column("idempotency_digest", Text),
    Index("jobs_by_state", "model", "status"),
    Index("jobs_by_owner", "owner", "created_at", "id"),
    Index("jobs_by_lease", "lease_until"),
    Index("jobs_by_expiry", "status", "expires_at"),
    Index("jobs_by_key", "owner", "idempotency_key", unique=True),
)

# Of jobs that are open and begin with an image. A table of its own: a change of state would write a long row anew.
images = Table(
    "images",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("png", LargeBinary, nullable=False),
)

totals = Table(
    "totals",
    metadata,
    Column("metric", Text, nullable=False),
    Column("labels", Text, nullable=False),  # JSON list of values, in the metric's order
    Column("part", Text, nullable=False),
    Column("value", Double, nullable=False),
    Column("counted_at", Double, nullable=False, server_default="0"),
    PrimaryKeyConstraint("metric", "labels", "part"),
)

# A transaction that changed something leaves its token, so that whoever did not hear the answer to its COMMIT can find out.
commits = Table(
    "commits",
    metadata,
    Column("token", Text, primary_key=True),
    Column("committed_at", Double, nullable=False),
)
