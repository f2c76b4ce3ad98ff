"""Revisions of the jobs' database, run by `upgrade` when a gateway starts.

The rule: a revision adds and never takes away. During a rolling upgrade gateways of the version before still read and write
the tables, so a new column may be null or has a default in the database, and no table, column, state of a job or meaning is
renamed, removed or narrowed; a value that older code could not read, such as another state, counts as a change of meaning.
What nobody uses any more may go two releases later. A gateway that finds a revision newer than any it knows leaves the tables
as they are and works with the columns that it knows.
"""

import threading

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from reins_serve.serving.engines import lock, writing

LOCK = "migrations"

_one_at_a_time = threading.Lock()  # alembic keeps the migration that runs in a module


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the tables to a revision, in one transaction that others wait for; a newer or equal one is left as it is."""
    config = Config()
    config.set_main_option("script_location", "reins_serve.serving:migrations")
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with _one_at_a_time, writing(engine) as connection:
        lock(connection, LOCK)
        present = MigrationContext.configure(connection).get_current_revision()
        if present is None or present in known:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
