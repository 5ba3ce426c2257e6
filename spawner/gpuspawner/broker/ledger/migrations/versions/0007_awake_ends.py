"""An index on the ends of awake intervals: the timeline of a day doesn't read the history of a year."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Make the index."""
    op.create_index("awake_by_end", "awake", ["ended_at"])
