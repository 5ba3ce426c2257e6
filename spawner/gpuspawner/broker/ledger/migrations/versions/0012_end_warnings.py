"""How often users were warned of their servers' end, so that the next broker keeps the end that it told."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Make the table; users of running servers are warned again once."""
    op.create_table(
        "end_warnings",
        sa.Column("lease_id", sa.Text, primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("warnings", sa.Integer, nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sentence", sa.Text, nullable=False),
    )
