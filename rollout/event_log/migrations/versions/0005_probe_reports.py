"""What bias probes showed of each version: whoever leads must know it, wherever the probes ran."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "probe_reports",
        sa.Column("model", sa.String(63), primary_key=True),
        sa.Column("version", sa.String(255), primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("report", sa.Text, nullable=False),
    )


def downgrade() -> None:
    """Remove it again; versions have to be probed anew."""
    op.drop_table("probe_reports")
