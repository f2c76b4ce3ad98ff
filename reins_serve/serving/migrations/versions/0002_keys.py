"""Priorities, attempts handed back, idempotency keys, images; commits that can be looked up; when a total was counted last."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("priority", sa.Integer, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("returned", sa.Integer, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("idempotency_key", sa.Text))
    op.add_column("jobs", sa.Column("idempotency_digest", sa.Text))
    op.create_index("jobs_by_key", "jobs", ["owner", "idempotency_key"], unique=True)
    op.create_table(
        "images",
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("png", sa.LargeBinary, nullable=False),
    )
    op.add_column("totals", sa.Column("counted_at", sa.Double, nullable=False, server_default="0"))
    op.create_table(
        "commits",
        sa.Column("token", sa.Text, primary_key=True),
        sa.Column("committed_at", sa.Double, nullable=False),
    )
