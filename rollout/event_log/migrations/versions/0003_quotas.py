"""What all keys of a namespace may use together."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table; a controller of the version before does not look at it."""
    op.create_table(
        "quotas",
        sa.Column("namespace", sa.String(63), primary_key=True),
        sa.Column("record", sa.Text, nullable=False),
    )


def downgrade() -> None:
    """Remove it again; quotas are lost."""
    op.drop_table("quotas")
