"""Alembic's entry: runs on the connection that sql.py hands over."""

from alembic import context

from rollout.event_log.sql import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()
