"""Deletes rows of leases, processes and writes from long ago; plain functions on a connection."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from ...core.model import LeaseState
from .schema import awake, ended_processes, lease_devices, lease_groups, leases, writes


def prune(connection: sa.Connection, before: datetime, most: int) -> int:
    """Deletes up to `most` leases that were closed before that, as many ended processes and as many writes.

    The oldest first. Returns how many rows were deleted; 0 means that there are no more.
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
    gone = len(ids)
    for table in (ended_processes, writes):
        old = sa.select(table.c.number).where(table.c.at < before).order_by(table.c.at).limit(most)
        numbers = list(connection.execute(old).scalars())
        connection.execute(sa.delete(table).where(table.c.number.in_(numbers)))
        gone += len(numbers)
    return gone
