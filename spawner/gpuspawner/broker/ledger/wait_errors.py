"""How wrong estimated waits were, as rows: the newest of each broker; plain functions on a connection."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import sqlalchemy as sa

from .schema import wait_errors

KEPT = 80
"""As many as the estimates use."""


def write(connection: sa.Connection, sides: Iterable[float], at: datetime, owner: str) -> None:
    """Adds them, in this order, and removes those that are too old to count."""
    rows = [{"owner": owner, "at": at, "sides": each} for each in sides]
    if not rows:
        return
    connection.execute(sa.insert(wait_errors), rows)
    mine = wait_errors.c.owner == owner
    newest = sa.select(wait_errors.c.number).where(mine).order_by(wait_errors.c.number.desc())
    last_out = connection.execute(newest.offset(KEPT).limit(1)).scalar()
    if last_out is not None:
        connection.execute(sa.delete(wait_errors).where(mine, wait_errors.c.number <= last_out))


def read(connection: sa.Connection, owner: str) -> tuple[float, ...]:
    """Those of one broker, in the order in which they were added."""
    query = sa.select(wait_errors.c.sides).where(wait_errors.c.owner == owner).order_by(wait_errors.c.number)
    return tuple(connection.execute(query).scalars())
