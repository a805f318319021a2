"""How far each receiver of notifications has been told: beside the log that it is a place in."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "notified",
        sa.Column("receiver", sa.String(255), primary_key=True),
        sa.Column("entry", sa.BigInteger, nullable=False),
        sa.Column("place", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Remove it again; receivers are then told what happens from then on."""
    op.drop_table("notified")
