"""Leases to rows and back, and the intervals in which they were awake; plain functions on a connection."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ...core.model import Lease, LeaseState
from ...core.states import AWAKE
from ...core.want import Mode, Want
from .clock import Steady
from .schema import awake, lease_devices, leases

_WANT = {
    "device_count": "device_count",
    "model": "model",
    "mode": "mode",
    "pool": "pool",
    "mig_profile": "mig_profile",
    "slice_memory_bytes": "memory_bytes",
    "slice_compute_percent": "compute_percent",
}
"""The columns of what was asked for, and the field of `Want` that each holds (a test holds it)."""
_COLUMNS = tuple(column.name for column in leases.columns if column.name != "number")
_FIELDS = tuple(name for name in _COLUMNS if name not in _WANT)
"""The fields of a lease that are columns: all but what it wants and its devices (a test holds it)."""

_INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def _upsert(insert: Any) -> sa.Executable:
    statement = insert(leases)
    changes = {name: statement.excluded[name] for name in _COLUMNS if name != "id"}
    upsert: sa.Executable = statement.on_conflict_do_update(index_elements=["id"], set_=changes)
    return upsert


def _insert_interval(insert: Any) -> sa.Executable:
    statement: sa.Executable = insert(awake).on_conflict_do_nothing(
        index_elements=["lease_id"], index_where=sa.text("ended_at IS NULL")
    )
    return statement


# Made once: to put a statement together takes longer than to run it.
_UPSERT = {name: _upsert(insert) for name, insert in _INSERTS.items()}
_INSERT_INTERVAL = {name: _insert_interval(insert) for name, insert in _INSERTS.items()}
_DEVICES = (
    sa.select(lease_devices.c.device_uuid)
    .where(lease_devices.c.lease_id == sa.bindparam("of_lease"))
    .order_by(lease_devices.c.ordinal)
)
_INSERT_DEVICES = sa.insert(lease_devices)
_DELETE_DEVICES = sa.delete(lease_devices).where(lease_devices.c.lease_id == sa.bindparam("of_lease"))
_OPEN_OF_LEASE = sa.select(awake).where(
    awake.c.ended_at.is_(None), awake.c.lease_id == sa.bindparam("of_lease")
)


@dataclass(frozen=True, slots=True)
class Moment:
    """When a change happened, on the wall clock and on the steady one."""

    at: datetime
    steady: Steady

    def before(self, seconds: float) -> Moment:
        """The moment `seconds` earlier, not before the machine's boot; negative seconds count as none."""
        ago = min(max(0.0, seconds), max(0.0, self.steady.seconds))
        return Moment(
            self.at - timedelta(seconds=ago), Steady(self.steady.boot_id, self.steady.seconds - ago)
        )


def write(connection: sa.Connection, lease: Lease, moment: Moment) -> None:
    """Insert or replace one lease, and open or close its awake interval to match its state."""
    connection.execute(
        _UPSERT[connection.dialect.name],
        {
            **{name: getattr(lease, name) for name in _FIELDS},
            **{column: getattr(lease.want, name) for column, name in _WANT.items()},
            "state": lease.state.value,
            "mode": lease.want.mode.value,
        },
    )
    _write_devices(connection, lease)
    if lease.state in AWAKE:
        _open_interval(connection, lease, moment)
    else:
        _close_intervals(connection, lease.id, moment)


def read(
    connection: sa.Connection, query: sa.Select[Any], values: dict[str, Any] | None = None
) -> tuple[Lease, ...]:
    """The leases of a query on the table `leases`, with their devices, in the query's order."""
    rows = connection.execute(query, values).mappings().all()
    uuids: dict[str, list[str]] = {row["id"]: [] for row in rows}
    ids = list(uuids)
    for start in range(0, len(ids), 500):  # SQLite takes a limited number of parameters
        found = connection.execute(
            sa.select(lease_devices.c.lease_id, lease_devices.c.device_uuid)
            .where(lease_devices.c.lease_id.in_(ids[start : start + 500]))
            .order_by(lease_devices.c.lease_id, lease_devices.c.ordinal)
        )
        for lease_id, uuid in found:
            uuids[lease_id].append(uuid)
    return tuple(_lease(row, uuids[row["id"]]) for row in rows)


def erase(connection: sa.Connection, lease_ids: Iterable[str]) -> None:
    """Remove every trace of these leases."""
    for lease_id in lease_ids:
        for table in (awake, lease_devices):
            connection.execute(sa.delete(table).where(table.c.lease_id == lease_id))
        connection.execute(sa.delete(leases).where(leases.c.id == lease_id))


def see(connection: sa.Connection, moment: Moment) -> None:
    """Note that whoever is awake still is: after a reboot an interval ends where it was last seen."""
    same_boot = awake.c.boot_id == moment.steady.boot_id
    for row in connection.execute(sa.select(awake).where(awake.c.ended_at.is_(None), same_boot)).all():
        connection.execute(
            sa.update(awake)
            .where(awake.c.number == row.number)
            .values(seen_at=max(row.started_at, moment.at), seconds=_length(row, moment))
        )


def end_at_reboot(connection: sa.Connection, boot_id: str) -> int:
    """End the intervals of an earlier boot where they were last seen; nothing outlives a reboot."""
    ended = connection.execute(
        sa.update(awake)
        .where(awake.c.ended_at.is_(None), awake.c.boot_id != boot_id)
        .values(ended_at=awake.c.seen_at)
    )
    return ended.rowcount


def uncharged(connection: sa.Connection) -> frozenset[str]:
    """Ids of the running leases without an open interval: a reboot has ended it."""
    open_ids = sa.select(awake.c.lease_id).where(awake.c.ended_at.is_(None))
    running = leases.c.state.in_([state.value for state in AWAKE])
    return frozenset(
        connection.execute(sa.select(leases.c.id).where(running, leases.c.id.not_in(open_ids))).scalars()
    )


def gpu_seconds(connection: sa.Connection, user: str, since: datetime, now: Moment) -> float:
    """Sum over the user's awake intervals of length × devices, as far as they lie after `since`."""
    rows = connection.execute(
        sa.select(awake)
        .join(leases, leases.c.id == awake.c.lease_id)
        .where(leases.c.user == user, sa.or_(awake.c.ended_at.is_(None), awake.c.ended_at >= since))
    )
    total = 0.0
    for row in rows:
        seconds = row.seconds if row.ended_at is not None else _length(row, now)
        if row.started_at < since:
            end = row.ended_at if row.ended_at is not None else now.at
            seconds = min(seconds, max(0.0, (end - since).total_seconds()))
        total += seconds * row.device_count
    return total


def _lease(row: Any, uuids: Iterable[str]) -> Lease:
    asked = {name: row[column] for column, name in _WANT.items()}
    values = {name: row[name] for name in _FIELDS}
    values |= {
        "state": LeaseState(row["state"]),
        "want": Want(**{**asked, "mode": Mode(row["mode"])}),
        "device_uuids": tuple(uuids),
    }
    return Lease(**values)


def _write_devices(connection: sa.Connection, lease: Lease) -> None:
    of_lease = {"of_lease": lease.id}
    if tuple(connection.execute(_DEVICES, of_lease).scalars()) == lease.device_uuids:
        return
    connection.execute(_DELETE_DEVICES, of_lease)
    if lease.device_uuids:
        connection.execute(
            _INSERT_DEVICES,
            [
                {"lease_id": lease.id, "ordinal": ordinal, "device_uuid": uuid}
                for ordinal, uuid in enumerate(lease.device_uuids)
            ],
        )


def _open_interval(connection: sa.Connection, lease: Lease, moment: Moment) -> None:
    connection.execute(
        _INSERT_INTERVAL[connection.dialect.name],
        {
            "lease_id": lease.id,
            "device_count": lease.want.device_count,
            "started_at": moment.at,
            "seen_at": moment.at,
            "seconds": 0.0,
            "boot_id": moment.steady.boot_id,
            "steady_start_seconds": moment.steady.seconds,
        },
    )


def _close_intervals(connection: sa.Connection, lease_id: str, moment: Moment) -> None:
    for row in connection.execute(_OPEN_OF_LEASE, {"of_lease": lease_id}).all():
        end = max(row.started_at, moment.at)
        connection.execute(
            sa.update(awake)
            .where(awake.c.number == row.number)
            .values(ended_at=end, seen_at=end, seconds=_length(row, moment))
        )


def _length(row: Any, moment: Moment) -> float:
    """Seconds from the interval's start to `moment`, by the steady clock; never negative."""
    if row.boot_id != moment.steady.boot_id:
        return float(row.seconds)
    return float(max(0.0, moment.steady.seconds - row.steady_start_seconds))
