"""Who held which device when, as rows: for a timeline, in pages; and when users last had a GPU."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from ...core.model import LeaseState
from . import rows
from .reach import OfGroups
from .schema import awake, lease_devices, leases

_AT_ONCE = 500
"""SQLite takes a limited number of parameters."""


@dataclass(frozen=True, slots=True)
class Held:
    """A lease was awake on a device, from `started_at` to `ended_at`; None: it still is."""

    device_uuid: str
    lease_id: str
    hub: str
    user: str
    server: str
    tier: str
    started_at: datetime
    ended_at: datetime | None


def read(connection: sa.Connection, since: datetime, uuids: Collection[str]) -> tuple[Held, ...]:
    """What was held of these devices after `since`, by device and begin.

    An interval that was open when the machine lost its power ends where it was last seen.
    """
    query = (
        sa.select(
            lease_devices.c.device_uuid,
            leases.c.id,
            leases.c.hub,
            leases.c.user,
            leases.c.server,
            leases.c.tier,
            awake.c.started_at,
            awake.c.ended_at,
        )
        .join(leases, leases.c.id == awake.c.lease_id)
        .join(lease_devices, lease_devices.c.lease_id == awake.c.lease_id)
        .where(sa.or_(awake.c.ended_at.is_(None), awake.c.ended_at >= since))
        .order_by(lease_devices.c.device_uuid, awake.c.started_at, awake.c.number)
    )
    return tuple(
        Held(*row)
        for some in _portions(sorted(uuids))
        for row in connection.execute(query.where(lease_devices.c.device_uuid.in_(some)))
    )


@dataclass(frozen=True, slots=True)
class Stay:
    """A lease was awake, from `started_at` to `ended_at` (None: it still is), on all of its devices.

    `number` counts such times in the order in which they began. `gpu_fraction` is what is charged.
    `node` is the machine of the devices; "" of leases from before that was recorded.
    """

    number: int
    lease_id: str
    hub: str
    user: str
    server: str
    tier: str
    gpu_fraction: float
    started_at: datetime
    ended_at: datetime | None
    node: str
    device_uuids: tuple[str, ...]
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StaySearch:
    """Which stays are read: the newest `most` before number `before` that reach into `start` to `end`.

    `end` None: up to now.
    """

    start: datetime
    end: datetime | None
    most: int
    before: int | None = None
    user: str | None = None
    device_uuid: str | None = None
    of: OfGroups | None = None


_STAY = (
    awake.c.number, leases.c.id.label("lease_id"), leases.c.hub, leases.c.user, leases.c.server,
    leases.c.tier, awake.c.gpu_fraction, awake.c.started_at, awake.c.ended_at, leases.c.node,
)  # fmt: skip


def search(connection: sa.Connection, wanted: StaySearch) -> tuple[Stay, ...]:
    """The stays, the newest first.

    As a sum, the number can't be the way by which the database finds the rows: it would read years of history
    back for a day's page that isn't full. It takes the ends of intervals instead.
    """
    number = awake.c.number + 0
    query = (
        sa.select(*_STAY)
        .join(leases, leases.c.id == awake.c.lease_id)
        .where(sa.or_(awake.c.ended_at.is_(None), awake.c.ended_at >= wanted.start))
        .order_by(number.desc())
    )
    if wanted.end is not None:
        query = query.where(awake.c.started_at < wanted.end)
    if wanted.before is not None:
        query = query.where(number < wanted.before)
    if wanted.user is not None:
        query = query.where(leases.c.user == wanted.user)
    if wanted.device_uuid is not None:
        of_lease = lease_devices.c.lease_id == leases.c.id
        query = query.where(sa.exists().where(of_lease, lease_devices.c.device_uuid == wanted.device_uuid))
    if wanted.of is not None:
        query = query.where(wanted.of.has(leases.c.id))
    found = connection.execute(query.limit(wanted.most)).all()
    lease_ids = {row.lease_id for row in found}
    devices, groups = _devices_of(connection, lease_ids), rows.groups_of(connection, lease_ids)
    return tuple(
        Stay(**row._asdict(), device_uuids=tuple(devices[row.lease_id]), groups=tuple(groups[row.lease_id]))
        for row in found
    )


def _devices_of(connection: sa.Connection, lease_ids: Iterable[str]) -> dict[str, list[str]]:
    devices: dict[str, list[str]] = {lease_id: [] for lease_id in lease_ids}
    query = sa.select(lease_devices).order_by(lease_devices.c.lease_id, lease_devices.c.ordinal)
    for some in _portions(list(devices)):
        for row in connection.execute(query.where(lease_devices.c.lease_id.in_(some))):
            devices[row.lease_id].append(row.device_uuid)
    return devices


def last_ended(connection: sa.Connection, hub: str, users: Iterable[str]) -> dict[str, datetime]:
    """When the last lease of each of these users ended; without users who never had one."""
    had_devices = sa.exists().where(lease_devices.c.lease_id == leases.c.id)
    return {row.user: row.at for row in _last_closed(connection, hub, users, [leases.c.user], had_devices)}


def servers_ended(
    connection: sa.Connection, hub: str, users: Iterable[str]
) -> dict[tuple[str, str], datetime]:
    """When the last lease of each server ended, by user and name, also of those that only waited."""
    by = [leases.c.user, leases.c.server]
    return {(row.user, row.server): row.at for row in _last_closed(connection, hub, users, by)}


def _last_closed(
    connection: sa.Connection, hub: str, users: Iterable[str], by: Sequence[Any], *only: Any
) -> Iterable[Any]:
    """For each value of the columns `by`: `at`, when the last lease ended. `only`: of which leases."""
    query = (
        sa.select(*by, sa.func.max(leases.c.since).label("at"))
        .where(leases.c.hub == hub, leases.c.state == LeaseState.CLOSED.value, *only)
        .group_by(*by)
    )
    for some in _portions(sorted(set(users))):
        yield from connection.execute(query.where(leases.c.user.in_(some)))


def _portions(values: Sequence[str]) -> Iterable[Sequence[str]]:
    return (values[start : start + _AT_ONCE] for start in range(0, len(values), _AT_ONCE))
