"""The ledger's tables, as SQLAlchemy Core; `migrations/` makes them, this describes them.

`leases.number` is the order of arrival and outlives a clock that is set back. `memory_bytes` is held of all
devices together, in a slice the same of each; `mode` and what follows it is what was asked for. `owner` is
the broker that answers for the lease: several may have one database, and each changes its own leases only.
`gpu_fraction` is the part of the physical GPU (0-1) that is charged, in `awake` summed up over the lease's
devices: GPU-seconds are `seconds` × `gpu_fraction`. An interval
of `awake` is open while `ended_at` is NULL; `seconds` is its length on a steady clock up to `seen_at`, so the
wall clock may be set in between, and after a reboot the interval ends where it was last seen.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

HEAD = "0012"
"""The newest migration: a ledger that says so needs none, and alembic is not even imported."""


class UtcTime(sa.TypeDecorator[datetime]):
    """An aware time in UTC; SQLite keeps it as text that sorts and that people can read."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite counts up Integer keys only

metadata = sa.MetaData()

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("number", _NUMBER, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("hub", sa.Text, nullable=False),
    sa.Column("user", sa.Text, nullable=False),
    sa.Column("server", sa.Text, nullable=False),
    sa.Column("tier", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("device_count", sa.Integer, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("since", UtcTime, nullable=False),
    sa.Column("model", sa.Text),
    sa.Column("memory_bytes", sa.BigInteger, nullable=False),
    sa.Column("compute_percent", sa.Float, nullable=False),
    sa.Column("container_id", sa.Text),
    sa.Column("notice", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("mode", sa.Text, nullable=False, server_default="whole"),
    sa.Column("pool", sa.Text),
    sa.Column("mig_profile", sa.Text),
    sa.Column("slice_memory_bytes", sa.BigInteger),
    sa.Column("slice_compute_percent", sa.Float),
    sa.Column("home_node", sa.Text),
    sa.Column("node_label", sa.Text),
    sa.Column("mps", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("owner", sa.Text, nullable=False, server_default=""),
    sa.Column("node", sa.Text, nullable=False, server_default=""),
    sa.Column("kept_asleep", sa.Text, nullable=False, server_default=""),
    sa.Index("leases_by_state", "state", "number"),
    sa.Index("leases_by_user", "user", "number"),
    sa.Index("leases_by_age", "state", "since"),
    sqlite_autoincrement=True,
)

lease_devices = sa.Table(
    "lease_devices",
    metadata,
    sa.Column("lease_id", sa.Text, sa.ForeignKey("leases.id"), primary_key=True),
    sa.Column("ordinal", sa.Integer, primary_key=True),
    sa.Column("device_uuid", sa.Text, nullable=False),
    sa.Column("gpu_fraction", sa.Float),
)

lease_groups = sa.Table(
    "lease_groups",
    metadata,
    sa.Column("lease_id", sa.Text, sa.ForeignKey("leases.id"), primary_key=True),
    sa.Column("ordinal", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Index("lease_groups_by_name", "name"),
)
"""The user's groups when the lease was asked for."""

awake = sa.Table(
    "awake",
    metadata,
    sa.Column("number", _NUMBER, primary_key=True, autoincrement=True),
    sa.Column("lease_id", sa.Text, sa.ForeignKey("leases.id"), nullable=False),
    sa.Column("device_count", sa.Integer, nullable=False),
    sa.Column("gpu_fraction", sa.Float, nullable=False, server_default="1"),
    sa.Column("started_at", UtcTime, nullable=False),
    sa.Column("ended_at", UtcTime),
    sa.Column("seen_at", UtcTime, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("boot_id", sa.Text, nullable=False),
    sa.Column("steady_start_seconds", sa.Float, nullable=False),
    sa.Index("awake_by_lease", "lease_id"),
    sa.Index("awake_by_end", "ended_at"),
    sa.Index("awake_open", "lease_id", unique=True, sqlite_where=sa.text("ended_at IS NULL"),
             postgresql_where=sa.text("ended_at IS NULL")),
    sqlite_autoincrement=True,
)  # fmt: skip

ended_processes = sa.Table(
    "ended_processes",
    metadata,
    sa.Column("number", _NUMBER, primary_key=True, autoincrement=True),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("offence", sa.Text, nullable=False),
    sa.Column("lease_id", sa.Text),
    sa.Column("hub", sa.Text, nullable=False),
    sa.Column("user", sa.Text, nullable=False),
    sa.Column("server", sa.Text, nullable=False),
    sa.Column("container_id", sa.Text, nullable=False),
    sa.Column("device_uuid", sa.Text, nullable=False),
    sa.Column("pid", sa.BigInteger, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("used_bytes", sa.BigInteger, nullable=False),
    sa.Column("quota_bytes", sa.BigInteger),
    sa.Column("over_seconds", sa.Float, nullable=False),
    sa.Column("sentence", sa.Text, nullable=False),
    sa.Index("ended_by_time", "at"),
    sqlite_autoincrement=True,
)
"""What the guard did. No foreign key: rows are kept independently, and a lease may be unknown."""

decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("number", _NUMBER, primary_key=True, autoincrement=True),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("document", sa.Text),
    sa.Column("author", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Index("decisions_by_subject", "kind", "subject"),
    sqlite_autoincrement=True,
)
"""What people decided at run time. Rows are only added: the rules in force follow from all of them."""

writes = sa.Table(
    "writes",
    metadata,
    sa.Column("number", _NUMBER, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("ended_at", UtcTime),
    sa.Column("author", sa.Text, nullable=False),
    sa.Column("via", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("groups", sa.Text, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text),
    sa.Column("result", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("status", sa.Integer),
    sa.Column("answer", sa.Text),
    sa.Index("writes_by_time", "at"),
    sa.Index("writes_by_request", "author", "request_id", unique=True),
    sqlite_autoincrement=True,
)
"""The audit log. A row is added before the change is made, and gets its result afterwards."""

wait_errors = sa.Table(
    "wait_errors",
    metadata,
    sa.Column("number", _NUMBER, primary_key=True, autoincrement=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("sides", sa.Float, nullable=False),
    sa.Index("wait_errors_by_owner", "owner", "number"),
    sqlite_autoincrement=True,
)
"""How far true begins were from the middle of the estimate, in sides of its range; each broker's newest."""

end_warnings = sa.Table(
    "end_warnings",
    metadata,
    sa.Column("lease_id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("warnings", sa.Integer, nullable=False),
    sa.Column("last_at", UtcTime, nullable=False),
    sa.Column("sentence", sa.Text, nullable=False),
)
"""How often the user of a running lease was warned of its end, and how last. No foreign key: rows of leases
that have ended go with the next change."""
