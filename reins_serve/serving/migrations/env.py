"""What alembic runs for a migration: the revisions, on the connection and in the transaction that `upgrade` has opened."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
