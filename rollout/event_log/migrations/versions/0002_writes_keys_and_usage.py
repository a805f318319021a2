"""Writes that land once, a lease without clocks, and the tables of keys and usage."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what is new; evidence that is there is told which rollout it is of."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    # On SQLite the table is made anew: without AUTOINCREMENT it gives the ids of the newest entries again, once those
    # were dropped, and who reads on after an id would miss what is written then.
    anew = {"sqlite_autoincrement": True}
    with op.batch_alter_table("events", recreate="always" if sqlite else "never", table_kwargs=anew) as events:
        events.add_column(sa.Column("number", sa.BigInteger))
        events.add_column(sa.Column("rollout", sa.String(64), nullable=False, server_default=""))
    found = "json_extract(payload, '$.rollout')" if sqlite else "payload::json ->> 'rollout'"
    op.execute(f"UPDATE events SET rollout = coalesce({found}, '') WHERE kind = 'evidence'")
    op.drop_index("events_by_model", "events")
    op.create_index("events_by_model", "events", ["model", "kind", "id"])
    op.create_index("events_by_kind", "events", ["kind", "id"])
    op.create_index("events_by_rollout", "events", ["rollout", "id"])
    op.create_index("events_by_write", "events", ["fence", "number"], unique=True)
    op.add_column("lease", sa.Column("renewals", sa.BigInteger, nullable=False, server_default="0"))
    op.drop_column("lease", "expires_at")
    op.execute(
        "INSERT INTO lease (name, holder, fence, renewals) SELECT 'controller', '', 0, 0 "
        "WHERE NOT EXISTS (SELECT 1 FROM lease WHERE name = 'controller')"
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
    )
    op.execute("INSERT INTO counters (name, number) VALUES ('keys', 0), ('usage-folded', 0)")
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(12), primary_key=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
    )
    _usage("usage_hours", "hour", ("gateway", "boot"))
    _usage("usage_days", "day", ())


def _usage(table: str, time: str, more: tuple[str, ...]) -> None:
    op.create_table(
        table,
        sa.Column(time, sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("key", sa.String(63), primary_key=True),
        sa.Column("model", sa.String(63), primary_key=True),
        sa.Column("version", sa.String(255), primary_key=True),
        *(sa.Column(name, sa.String(255), primary_key=True) for name in more),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("unmetered", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Remove it again; keys and usage are lost."""
    for table in ("usage_days", "usage_hours", "api_keys", "counters"):
        op.drop_table(table)
    op.add_column("lease", sa.Column("expires_at", sa.Double, nullable=False, server_default="0"))
    op.drop_column("lease", "renewals")
    for index in ("events_by_write", "events_by_rollout", "events_by_kind", "events_by_model"):
        op.drop_index(index, "events")
    op.create_index("events_by_model", "events", ["model", "id"])
    op.drop_column("events", "rollout")
    op.drop_column("events", "number")
