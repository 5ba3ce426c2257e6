"""The processes that the guard ended, as rows; plain functions on a connection."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from . import rows
from .reach import OfGroups
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


@dataclass(frozen=True, slots=True)
class EndedSearch:
    """Which records are read: the newest `most` before number `before`."""

    most: int
    before: int | None = None
    of: OfGroups | None = None


def read(connection: sa.Connection, wanted: EndedSearch) -> tuple[tuple[int, EndedProcess], ...]:
    """The records with their numbers, the newest first."""
    query = sa.select(ended_processes).order_by(ended_processes.c.number.desc()).limit(wanted.most)
    if wanted.before is not None:
        query = query.where(ended_processes.c.number < wanted.before)
    if wanted.of is not None:
        query = query.where(wanted.of.has(ended_processes.c.lease_id))
    found = connection.execute(query).mappings().all()
    groups = rows.groups_of(connection, {row["lease_id"] for row in found if row["lease_id"] is not None})
    return tuple((row["number"], _record(row, groups.get(row["lease_id"], ()))) for row in found)


def _record(row: Any, groups: Iterable[str]) -> EndedProcess:
    return EndedProcess(**{name: row[name] for name in _FIELDS}, groups=tuple(groups))
