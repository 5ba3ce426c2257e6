"""What a lease asked for beside whole devices; earlier leases hold whole devices."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns; SQLite and PostgreSQL both fill in the default without rewriting the table."""
    op.add_column("leases", sa.Column("mode", sa.Text, nullable=False, server_default="whole"))
    op.add_column("leases", sa.Column("pool", sa.Text))
    op.add_column("leases", sa.Column("mig_profile", sa.Text))
    op.add_column("leases", sa.Column("slice_memory_bytes", sa.BigInteger))
    op.add_column("leases", sa.Column("slice_compute_percent", sa.Float))
    op.add_column("leases", sa.Column("mps", sa.Boolean, nullable=False, server_default=sa.false()))
