"""Leases to rows and back, and the intervals in which they were awake; plain functions on a connection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ...core.errors import LedgerFault
from ...core.model import Lease, LeaseState
from ...core.states import AWAKE
from ...core.want import Mode, Want
from ..decide.allow.budget import Interval
from ..decide.allow.report import Charged
from .clock import Steady
from .schema import awake, lease_devices, lease_groups, leases

_WANT = {
    "device_count": "device_count",
    "model": "model",
    "mode": "mode",
    "pool": "pool",
    "mig_profile": "mig_profile",
    "slice_memory_bytes": "memory_bytes",
    "slice_compute_percent": "compute_percent",
    "home_node": "node",
    "node_label": "node_label",
}
"""The columns of what was asked for, and the field of `Want` that each contains (a test checks this)."""
_COLUMNS = tuple(column.name for column in leases.columns if column.name != "number")
_FIELDS = tuple(name for name in _COLUMNS if name not in _WANT and name != "owner")
"""The fields of a lease that are columns: all but its want, devices and groups (a test checks this)."""

_INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def _upsert(insert: Any) -> sa.Executable:
    statement = insert(leases)
    changes = {name: statement.excluded[name] for name in _COLUMNS if name != "id"}
    own = leases.c.owner == statement.excluded["owner"]
    upsert: sa.Executable = statement.on_conflict_do_update(index_elements=["id"], set_=changes, where=own)
    return upsert.execution_options(preserve_rowcount=True)  # psycopg drops it for an INSERT otherwise


def _insert_interval(insert: Any) -> sa.Executable:
    statement: sa.Executable = insert(awake).on_conflict_do_nothing(
        index_elements=["lease_id"], index_where=sa.text("ended_at IS NULL")
    )
    return statement


# Built once: building a statement takes longer than running it.
_UPSERT = {name: _upsert(insert) for name, insert in _INSERTS.items()}
_INSERT_INTERVAL = {name: _insert_interval(insert) for name, insert in _INSERTS.items()}
_AWAKE = frozenset(state.value for state in AWAKE)
_STATE, _DEVICE, _GROUP = range(3)
_WRITTEN = sa.union_all(
    sa.select(
        sa.literal(_STATE).label("kind"),
        sa.literal(0).label("ordinal"),
        leases.c.state.label("text"),
        sa.cast(sa.null(), sa.Float).label("part"),
    ).where(leases.c.id == sa.bindparam("of_lease")),
    sa.select(
        sa.literal(_DEVICE),
        lease_devices.c.ordinal,
        lease_devices.c.device_uuid,
        lease_devices.c.gpu_fraction,
    ).where(lease_devices.c.lease_id == sa.bindparam("of_lease")),
    sa.select(
        sa.literal(_GROUP), lease_groups.c.ordinal, lease_groups.c.name, sa.cast(sa.null(), sa.Float)
    ).where(lease_groups.c.lease_id == sa.bindparam("of_lease")),
)
"""A lease's state, its devices with their parts, and its groups, in any order: one statement, not three."""
_INSERT_DEVICES = sa.insert(lease_devices)
_DELETE_DEVICES = sa.delete(lease_devices).where(lease_devices.c.lease_id == sa.bindparam("of_lease"))
_INSERT_GROUPS = sa.insert(lease_groups)
_DELETE_GROUPS = sa.delete(lease_groups).where(lease_groups.c.lease_id == sa.bindparam("of_lease"))
_OPEN_OF_LEASE = sa.select(awake).where(
    awake.c.ended_at.is_(None), awake.c.lease_id == sa.bindparam("of_lease")
)
_SET_PART = (
    sa.update(awake)
    .where(awake.c.lease_id == sa.bindparam("of_lease"), awake.c.ended_at.is_(None))
    .values(gpu_fraction=sa.bindparam("part"))
)
_CLOSE = (
    sa.update(awake)
    .where(awake.c.number == sa.bindparam("of_number"))
    .values(ended_at=sa.bindparam("end"), seen_at=sa.bindparam("end"), seconds=sa.bindparam("length"))
)
_OF_USER = (
    sa.select(awake)
    .join(leases, leases.c.id == awake.c.lease_id)
    .where(
        leases.c.hub == sa.bindparam("of_hub"),
        leases.c.user == sa.bindparam("of_user"),
        sa.or_(
            awake.c.ended_at.is_(None),
            awake.c.ended_at >= sa.bindparam("reaches", type_=awake.c.ended_at.type),
        ),
    )
    .order_by(awake.c.number)
)

_CLOCK_MARGIN = timedelta(days=2)
"""`ended_at` goes by the wall clock, an interval's length doesn't: the two may be this far apart."""


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


def write(connection: sa.Connection, lease: Lease, moment: Moment, owner: str) -> None:
    """Insert or replace one lease of `owner`, and open or close its awake interval to match its state.

    Only a lease that was awake has an open interval. Raises LedgerFault if it is another broker's.
    """
    written = _written(connection, lease.id)
    before = written.state
    done = connection.execute(
        _UPSERT[connection.dialect.name],
        {
            **{name: getattr(lease, name) for name in _FIELDS},
            **{column: getattr(lease.want, name) for column, name in _WANT.items()},
            "state": lease.state.value,
            "mode": lease.want.mode.value,
            "owner": owner,
        },
    )
    if done.rowcount == 0:
        raise LedgerFault(
            f"Lease {lease.id} belongs to another broker with the same database: give each hub names of its "
            "own, and look for a state folder that was copied from the other broker."
        )
    _write_devices(connection, lease, written.devices)
    _write_groups(connection, lease, written.groups)
    if lease.state in AWAKE and before in _AWAKE:
        # No new interval: one that a reboot ended begins again only when its container does (`charge`).
        # Of a lease from before there were fractions, its part may be known only now.
        connection.execute(_SET_PART, {"of_lease": lease.id, "part": lease.gpu_fraction})
    elif lease.state in AWAKE:
        charge(connection, lease, moment)
    elif before in _AWAKE:
        _close_intervals(connection, lease.id, moment)


def read(
    connection: sa.Connection, query: sa.Select[Any], values: dict[str, Any] | None = None
) -> tuple[Lease, ...]:
    """The leases of a query on the table `leases`, with their devices, in the query's order."""
    rows = connection.execute(query, values).mappings().all()
    devices: dict[str, list[tuple[str, float | None]]] = {row["id"]: [] for row in rows}
    groups = groups_of(connection, devices)
    ids = list(devices)
    for start in range(0, len(ids), 500):  # SQLite takes a limited number of parameters
        some = ids[start : start + 500]
        held = sa.select(lease_devices).where(lease_devices.c.lease_id.in_(some))
        for each in connection.execute(held.order_by(lease_devices.c.lease_id, lease_devices.c.ordinal)):
            devices[each.lease_id].append((each.device_uuid, each.gpu_fraction))
    return tuple(_lease(row, devices[row["id"]], groups[row["id"]]) for row in rows)


def erase(connection: sa.Connection, lease_ids: Iterable[str], owner: str) -> None:
    """Delete all rows of these leases, if they are the owner's."""
    for lease_id in lease_ids:
        if owner_of(connection, lease_id) != owner:
            continue
        for table in (awake, lease_devices, lease_groups):
            connection.execute(sa.delete(table).where(table.c.lease_id == lease_id))
        connection.execute(sa.delete(leases).where(leases.c.id == lease_id))


def owner_of(connection: sa.Connection, lease_id: str) -> str | None:
    """The broker that answers for the lease; None if there is no such lease."""
    owner: str | None = connection.execute(sa.select(leases.c.owner).where(leases.c.id == lease_id)).scalar()
    return owner


def take_over(connection: sa.Connection, lease_id: str, owner: str) -> None:
    """From now on `owner` answers for the lease."""
    connection.execute(sa.update(leases).where(leases.c.id == lease_id).values(owner=owner))


def claim(connection: sa.Connection, owner: str) -> None:
    """The living leases that an older version wrote, without an owner, are this broker's."""
    unowned = sa.and_(leases.c.owner == "", leases.c.state != LeaseState.CLOSED.value)
    connection.execute(sa.update(leases).where(unowned).values(owner=owner))


def _owned_by(owner: str) -> sa.ColumnElement[bool]:
    """Whether an open interval is of a lease of this broker."""
    mine = sa.select(leases.c.id).where(leases.c.state.in_(_AWAKE), leases.c.owner == owner)
    return sa.and_(awake.c.ended_at.is_(None), awake.c.lease_id.in_(mine))


def see(connection: sa.Connection, moment: Moment, owner: str) -> None:
    """Record that awake leases are still awake: after a reboot an interval ends where it was last seen."""
    same_boot = awake.c.boot_id == moment.steady.boot_id
    for row in connection.execute(sa.select(awake).where(_owned_by(owner), same_boot)).all():
        connection.execute(
            sa.update(awake)
            .where(awake.c.number == row.number)
            .values(seen_at=max(row.started_at, moment.at), seconds=_length(row, moment))
        )


def end_at_reboot(connection: sa.Connection, boot_id: str, owner: str) -> int:
    """End the owner's intervals of an earlier boot where they were last seen: no container survives a reboot.

    Those of other brokers are measured by another machine's boot.
    """
    ended = connection.execute(
        sa.update(awake).where(_owned_by(owner), awake.c.boot_id != boot_id).values(ended_at=awake.c.seen_at)
    )
    return ended.rowcount


def uncharged(connection: sa.Connection, owner: str) -> frozenset[str]:
    """Ids of the owner's running leases without an open interval: a reboot has ended it."""
    open_ids = sa.select(awake.c.lease_id).where(awake.c.ended_at.is_(None))
    running = sa.and_(leases.c.state.in_(_AWAKE), leases.c.owner == owner)
    return frozenset(
        connection.execute(sa.select(leases.c.id).where(running, leases.c.id.not_in(open_ids))).scalars()
    )


def gpu_seconds(connection: sa.Connection, user: str, since: datetime, now: Moment) -> float:
    """Sum over the user's awake intervals of length × part of a GPU, as far as they lie after `since`.

    Of all brokers that have this database; what runs on other machines counts up to when it was last seen.
    """
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
        total += seconds * row.gpu_fraction
    return total


def charged(connection: sa.Connection, since: datetime, now: Moment) -> tuple[Charged, ...]:
    """The awake intervals that may reach beyond `since`, open ones up to now.

    Of all brokers that have this database; what runs on other machines counts up to when it was last seen.
    """
    query = sa.select(awake, leases.c.user, leases.c.tier, leases.c.node).join(
        leases, leases.c.id == awake.c.lease_id
    )
    rows = connection.execute(query.where(_reaches(since)).order_by(awake.c.number)).all()
    groups = groups_of(connection, dict.fromkeys(row.lease_id for row in rows))
    return tuple(
        Charged(row.lease_id, row.user, tuple(groups[row.lease_id]), row.tier, _interval(row, now), row.node)
        for row in rows
    )


def intervals(
    connection: sa.Connection, since: datetime, now: Moment, user: tuple[str, str]
) -> tuple[Interval, ...]:
    """The same of one (hub, user), without whose and what for: what each start of theirs is held against."""
    values = {"of_hub": user[0], "of_user": user[1], "reaches": since - _CLOCK_MARGIN}
    return tuple(_interval(row, now) for row in connection.execute(_OF_USER, values))


def _reaches(since: datetime) -> sa.ColumnElement[bool]:
    return sa.or_(awake.c.ended_at.is_(None), awake.c.ended_at >= since - _CLOCK_MARGIN)


def _interval(row: Any, now: Moment) -> Interval:
    seconds = row.seconds if row.ended_at is not None else _length(row, now)
    return Interval(row.started_at, float(seconds), float(row.gpu_fraction))


def groups_of(connection: sa.Connection, lease_ids: Iterable[str]) -> dict[str, list[str]]:
    """The groups of each lease, in their order."""
    groups: dict[str, list[str]] = {lease_id: [] for lease_id in lease_ids}
    ids = list(groups)
    for start in range(0, len(ids), 500):  # SQLite takes a limited number of parameters
        of = sa.select(lease_groups).where(lease_groups.c.lease_id.in_(ids[start : start + 500]))
        for each in connection.execute(of.order_by(lease_groups.c.lease_id, lease_groups.c.ordinal)):
            groups[each.lease_id].append(each.name)
    return groups


def _lease(row: Any, devices: Sequence[tuple[str, float | None]], groups: Iterable[str]) -> Lease:
    fractions = tuple(fraction for _, fraction in devices if fraction is not None)
    asked = {name: row[column] for column, name in _WANT.items()}
    values = {name: row[name] for name in _FIELDS}
    values |= {
        "state": LeaseState(row["state"]),
        "want": Want(**{**asked, "mode": Mode(row["mode"])}),
        "device_uuids": tuple(uuid for uuid, _ in devices),
        "device_fractions": fractions if len(fractions) == len(devices) else (),
        "groups": tuple(groups),
    }
    return Lease(**values)


@dataclass(frozen=True, slots=True)
class _Written:
    """What the ledger has of a lease before it is written again; `state` is None if it has none."""

    state: str | None
    devices: Sequence[tuple[str, float | None]]
    groups: Sequence[str]


def _written(connection: sa.Connection, lease_id: str) -> _Written:
    rows = sorted(connection.execute(_WRITTEN, {"of_lease": lease_id}).all(), key=lambda row: row[:2])
    return _Written(
        next((text for kind, _, text, _ in rows if kind == _STATE), None),
        [(text, part) for kind, _, text, part in rows if kind == _DEVICE],
        [text for kind, _, text, _ in rows if kind == _GROUP],
    )


def _write_devices(
    connection: sa.Connection, lease: Lease, written: Sequence[tuple[str, float | None]]
) -> None:
    """Replace the devices that are written, if the lease has others now."""
    fractions = lease.device_fractions or (None,) * len(lease.device_uuids)
    devices = list(zip(lease.device_uuids, fractions, strict=True))
    if devices == list(written):
        return
    if written:
        connection.execute(_DELETE_DEVICES, {"of_lease": lease.id})
    if devices:
        connection.execute(
            _INSERT_DEVICES,
            [
                {"lease_id": lease.id, "ordinal": ordinal, "device_uuid": uuid, "gpu_fraction": fraction}
                for ordinal, (uuid, fraction) in enumerate(devices)
            ],
        )


def _write_groups(connection: sa.Connection, lease: Lease, written: Sequence[str]) -> None:
    """Replace the groups that are written, if the lease has others now."""
    if tuple(written) == lease.groups:
        return
    if written:
        connection.execute(_DELETE_GROUPS, {"of_lease": lease.id})
    if lease.groups:
        connection.execute(
            _INSERT_GROUPS,
            [
                {"lease_id": lease.id, "ordinal": ordinal, "name": name}
                for ordinal, name in enumerate(lease.groups)
            ],
        )


def charge(connection: sa.Connection, lease: Lease, moment: Moment) -> None:
    """Open an awake interval of the lease, unless one is open."""
    connection.execute(
        _INSERT_INTERVAL[connection.dialect.name],
        {
            "lease_id": lease.id,
            "device_count": lease.want.device_count,
            "gpu_fraction": lease.gpu_fraction,
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
        values = {"of_number": row.number, "end": end, "length": _length(row, moment)}
        connection.execute(_CLOSE, values)


def _length(row: Any, moment: Moment) -> float:
    """Seconds from the interval's start to `moment`, by the steady clock; never negative."""
    if row.boot_id != moment.steady.boot_id:
        return float(row.seconds)
    return float(max(0.0, moment.steady.seconds - row.steady_start_seconds))
