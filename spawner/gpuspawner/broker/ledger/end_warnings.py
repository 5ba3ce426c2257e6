"""How often users were warned that their servers end, as rows: for the next broker; on a connection."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from ...core.model import LeaseState
from .schema import end_warnings, leases


@dataclass(frozen=True, slots=True)
class EndWarning:
    """So many warnings were given of a lease's end, the last one with this sentence at that time."""

    lease_id: str
    warnings: int
    last_at: datetime
    sentence: str


def write(
    connection: sa.Connection, given: Iterable[EndWarning], withdrawn: Iterable[str], owner: str
) -> None:
    """Replaces what is known of these leases, and forgets the withdrawn ones and what has ended."""
    changed = {each.lease_id: each for each in given}
    gone = set(withdrawn) | set(changed)
    if not gone:
        return
    closed = sa.select(leases.c.id).where(leases.c.state == LeaseState.CLOSED.value)
    mine = end_warnings.c.owner == owner
    ended = sa.or_(end_warnings.c.lease_id.in_(gone), end_warnings.c.lease_id.in_(closed))
    connection.execute(sa.delete(end_warnings).where(mine, ended))
    rows = [
        {
            "lease_id": each.lease_id,
            "owner": owner,
            "warnings": each.warnings,
            "last_at": each.last_at,
            "sentence": each.sentence,
        }
        for each in changed.values()
    ]
    if rows:
        connection.execute(sa.insert(end_warnings), rows)


def read(connection: sa.Connection, owner: str) -> tuple[EndWarning, ...]:
    """Those of one broker's leases, the oldest first."""
    query = sa.select(
        end_warnings.c.lease_id, end_warnings.c.warnings, end_warnings.c.last_at, end_warnings.c.sentence
    ).where(end_warnings.c.owner == owner)
    order = (end_warnings.c.last_at, end_warnings.c.lease_id)
    return tuple(EndWarning(*row) for row in connection.execute(query.order_by(*order)))
