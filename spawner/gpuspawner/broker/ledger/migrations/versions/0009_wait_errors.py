"""How wrong estimated waits were, so that the next broker's ranges are as wide as this one's."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Make the table; nothing is known yet."""
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "wait_errors",
        sa.Column("number", number, primary_key=True, autoincrement=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sides", sa.Float, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("wait_errors_by_owner", "wait_errors", ["owner", "number"])
