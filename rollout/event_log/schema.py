"""The tables of the store, one schema on SQLite and PostgreSQL. migrations/ brings a database here, step by step."""

from __future__ import annotations

import sqlalchemy as sa

METADATA = sa.MetaData()

# BIGINT, but SQLite numbers rows by itself only in a column that is spelled INTEGER.
ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")

EVENTS = sa.Table(
    "events",
    METADATA,
    sa.Column("id", ROW_ID, primary_key=True, autoincrement=True),
    sa.Column("model", sa.String(63), nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("actor", sa.String(255), nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    # The writer's own number, within its fence: what makes a write that is tried again land once.
    sa.Column("number", sa.BigInteger),
    sa.Column("rollout", sa.String(64), nullable=False, server_default=""),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Index("events_by_model", "model", "kind", "id"),
    sa.Index("events_by_kind", "kind", "id"),
    sa.Index("events_by_rollout", "rollout", "id"),
    sa.Index("events_by_write", "fence", "number", unique=True),
    sqlite_autoincrement=True,  # an id is never given twice, also when the newest entries were dropped
)

LEASE = sa.Table(
    "lease",
    METADATA,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("holder", sa.String(255), nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("renewals", sa.BigInteger, nullable=False, server_default="0"),
)

COUNTERS = sa.Table(
    "counters",
    METADATA,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
)

API_KEYS = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("id", sa.String(12), primary_key=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
)

QUOTAS = sa.Table(
    "quotas",
    METADATA,
    sa.Column("namespace", sa.String(63), primary_key=True),
    sa.Column("record", sa.Text, nullable=False),
)

USAGE_HOURS = sa.Table(
    "usage_hours",
    METADATA,
    sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("key", sa.String(63), primary_key=True),
    sa.Column("model", sa.String(63), primary_key=True),
    sa.Column("version", sa.String(255), primary_key=True),
    sa.Column("gateway", sa.String(255), primary_key=True),
    sa.Column("boot", sa.String(255), primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("input_tokens", sa.BigInteger, nullable=False),
    sa.Column("output_tokens", sa.BigInteger, nullable=False),
    sa.Column("unmetered", sa.BigInteger, nullable=False),
)

USAGE_DAYS = sa.Table(
    "usage_days",
    METADATA,
    sa.Column("day", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("key", sa.String(63), primary_key=True),
    sa.Column("model", sa.String(63), primary_key=True),
    sa.Column("version", sa.String(255), primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("input_tokens", sa.BigInteger, nullable=False),
    sa.Column("output_tokens", sa.BigInteger, nullable=False),
    sa.Column("unmetered", sa.BigInteger, nullable=False),
)

NOTIFIED = sa.Table(
    "notified",
    METADATA,
    sa.Column("receiver", sa.String(255), primary_key=True),
    # A `Position`: the entry of the log, and which of the things that it tells.
    sa.Column("entry", sa.BigInteger, nullable=False),
    sa.Column("place", sa.BigInteger, nullable=False),
)

PROBE_REPORTS = sa.Table(
    "probe_reports",
    METADATA,
    sa.Column("model", sa.String(63), primary_key=True),
    sa.Column("version", sa.String(255), primary_key=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("report", sa.Text, nullable=False),
)
