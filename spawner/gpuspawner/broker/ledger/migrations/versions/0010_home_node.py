"""The only machine that may serve a request, because the files of its user are there."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the column; any machine may serve those that wait."""
    op.add_column("leases", sa.Column("home_node", sa.Text))
