"""Why a lease in turns gets no turn for now, as when its user's GPU-hours are used up."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the column; nobody is kept asleep."""
    op.add_column("leases", sa.Column("kept_asleep", sa.Text, nullable=False, server_default=""))
