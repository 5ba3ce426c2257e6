"""Deletes rows of leases and processes that ended long ago; plain functions on a connection."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from ...core.model import LeaseState
from .schema import awake, ended_processes, lease_devices, lease_groups, leases


def prune(connection: sa.Connection, before: datetime, most: int) -> int:
    """Deletes up to `most` leases that were closed before that, and as many ended processes.

    The oldest first. Returns how many of each were deleted; fewer than `most` means that there are no more.
    """
    closed = (
        sa.select(leases.c.id)
        .where(leases.c.state == LeaseState.CLOSED.value, leases.c.since < before)
        .order_by(leases.c.since)
        .limit(most)
    )
    ids = list(connection.execute(closed).scalars())
    for table in (awake, lease_devices, lease_groups):
        connection.execute(sa.delete(table).where(table.c.lease_id.in_(ids)))
    connection.execute(sa.delete(leases).where(leases.c.id.in_(ids)))
    old = sa.select(ended_processes.c.number).where(ended_processes.c.at < before)
    numbers = list(connection.execute(old.order_by(ended_processes.c.at).limit(most)).scalars())
    connection.execute(sa.delete(ended_processes).where(ended_processes.c.number.in_(numbers)))
    return len(ids) + len(numbers)
