"""The label that the machine of a lease must have."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Older leases asked for none."""
    op.add_column("leases", sa.Column("node_label", sa.Text))
