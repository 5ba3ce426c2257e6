"""Leases, their devices, and when they were awake."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the first three tables."""
    op.create_table(
        "leases",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("hub", sa.Text, nullable=False),
        sa.Column("user", sa.Text, nullable=False),
        sa.Column("server", sa.Text, nullable=False),
        sa.Column("tier", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("device_count", sa.Integer, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("since", TIME, nullable=False),
        sa.Column("model", sa.Text),
        sa.Column("memory_bytes", sa.BigInteger, nullable=False),
        sa.Column("compute_percent", sa.Float, nullable=False),
        sa.Column("container_id", sa.Text),
        sa.Column("notice", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("leases_by_state", "leases", ["state", "number"])
    op.create_index("leases_by_user", "leases", ["user", "number"])
    op.create_table(
        "lease_devices",
        sa.Column("lease_id", sa.Text, sa.ForeignKey("leases.id"), primary_key=True),
        sa.Column("ordinal", sa.Integer, primary_key=True),
        sa.Column("device_uuid", sa.Text, nullable=False),
    )
    op.create_table(
        "awake",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("lease_id", sa.Text, sa.ForeignKey("leases.id"), nullable=False),
        sa.Column("device_count", sa.Integer, nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("ended_at", TIME),
        sa.Column("seen_at", TIME, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("boot_id", sa.Text, nullable=False),
        sa.Column("steady_start_seconds", sa.Float, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("awake_by_lease", "awake", ["lease_id"])
    op.create_index(
        "awake_open",
        "awake",
        ["lease_id"],
        unique=True,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
