"""The processes that the guard ended, as rows; plain functions on a connection."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from . import rows
from .schema import ended_processes


@dataclass(frozen=True, slots=True)
class EndedProcess:
    """A process that was ended, its user, and the reason. `user` is "" if the lease is no longer known.

    `used_bytes` is what its container had on the device, `quota_bytes` None where it had no quota there.
    `sentence` is what its user was told. `groups` are those of its lease; the ledger has them with the lease.
    """

    at: datetime
    offence: str
    lease_id: str | None
    hub: str
    user: str
    server: str
    container_id: str
    device_uuid: str
    pid: int
    name: str
    used_bytes: int
    quota_bytes: int | None
    over_seconds: float
    sentence: str
    groups: tuple[str, ...] = ()


_FIELDS = tuple(name for name in EndedProcess.__dataclass_fields__ if name != "groups")


def write(connection: sa.Connection, ended: Iterable[EndedProcess]) -> None:
    """Adds them."""
    added = [{name: getattr(each, name) for name in _FIELDS} for each in ended]
    if added:
        connection.execute(sa.insert(ended_processes), added)


def read(connection: sa.Connection, limit: int) -> tuple[EndedProcess, ...]:
    """The newest rows, the newest first."""
    query = sa.select(ended_processes).order_by(ended_processes.c.number.desc()).limit(limit)
    found = connection.execute(query).mappings().all()
    groups = rows.groups_of(connection, {row["lease_id"] for row in found if row["lease_id"] is not None})
    return tuple(
        EndedProcess(**{name: row[name] for name in _FIELDS}, groups=tuple(groups.get(row["lease_id"], ())))
        for row in found
    )
