"""Alembic's entry: runs on the connection that database.py hands over."""

from alembic import context

from rollout.event_log.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()
