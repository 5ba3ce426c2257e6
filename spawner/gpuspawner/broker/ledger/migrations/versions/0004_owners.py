"""A lease's broker, machine, groups, and the part of a GPU with which it is charged."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the columns. Earlier intervals keep what they were charged with: whole devices.

    The broker that opens the ledger first claims the living leases; those that run get their part of a GPU
    when it has read its devices, from the beginning of their present interval.
    """
    op.add_column("leases", sa.Column("owner", sa.Text, nullable=False, server_default=""))
    op.add_column("leases", sa.Column("node", sa.Text, nullable=False, server_default=""))
    op.add_column("lease_devices", sa.Column("gpu_fraction", sa.Float))
    op.add_column("awake", sa.Column("gpu_fraction", sa.Float, nullable=False, server_default="1"))
    op.execute("UPDATE awake SET gpu_fraction = device_count")
    op.create_table(
        "lease_groups",
        sa.Column("lease_id", sa.Text, sa.ForeignKey("leases.id"), primary_key=True),
        sa.Column("ordinal", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
    )
    op.create_index("lease_groups_by_name", "lease_groups", ["name"])
