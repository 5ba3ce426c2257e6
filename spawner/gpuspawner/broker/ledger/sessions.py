"""Past sessions as rows: who was awake when and for how long; plain functions on a connection."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from ...core.model import Lease
from . import rows
from .schema import awake, leases


@dataclass(frozen=True, slots=True)
class PastSession:
    """A lease that was awake: from when, until when (as far as known), and for how many seconds in all."""

    lease: Lease
    began_at: datetime
    ended_at: datetime
    awake_seconds: float


def read(
    connection: sa.Connection, since: datetime, most: int, user: tuple[str, str] | None = None
) -> tuple[PastSession, ...]:
    """The sessions that were awake after `since`, by their begin; the `most` newest of them.

    With `user`, a (hub, user), only those of that user.
    """
    times = (
        sa.select(
            awake.c.lease_id,
            sa.func.min(awake.c.started_at).label("began_at"),
            sa.func.max(sa.func.coalesce(awake.c.ended_at, awake.c.seen_at)).label("ended_at"),
            sa.func.sum(awake.c.seconds).label("awake_seconds"),
        )
        .where(sa.or_(awake.c.ended_at.is_(None), awake.c.ended_at >= since))
        .group_by(awake.c.lease_id)
        .order_by(sa.desc("began_at"))
        .limit(most)
    )
    if user is not None:
        own = sa.select(leases.c.id).where(leases.c.hub == user[0], leases.c.user == user[1])
        times = times.where(awake.c.lease_id.in_(own))
    found = {row.lease_id: row for row in connection.execute(times)}
    ids = list(found)
    read_leases = [
        lease
        for start in range(0, len(ids), 500)  # SQLite takes a limited number of parameters
        for lease in rows.read(connection, sa.select(leases).where(leases.c.id.in_(ids[start : start + 500])))
    ]
    sessions = [
        PastSession(lease, row.began_at, row.ended_at, row.awake_seconds)
        for lease in read_leases
        for row in [found[lease.id]]
    ]
    return tuple(sorted(sessions, key=lambda each: (each.began_at, each.lease.id)))
