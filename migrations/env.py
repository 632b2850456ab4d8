"""Alembic's entry: it runs on the connection that `app.db.migrations` hands over."""

from alembic import context

from app.db.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite alters a table by copying it.
    render_as_batch=True,
    compare_server_default=False,
)
context.run_migrations()
