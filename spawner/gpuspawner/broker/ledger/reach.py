"""Which leases somebody may read about who sees some groups only, as a condition in SQL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from .schema import lease_groups, leases


@dataclass(frozen=True, slots=True)
class OfGroups:
    """The leases of a hub's users who were in one of these groups when they asked."""

    hub: str
    groups: frozenset[str]

    def has(self, lease_id: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Whether the lease with this id is one of them."""
        lease = leases.alias()  # of its own, so that a query of leases can have it, too
        return sa.exists().where(
            lease.c.id == lease_id,
            lease.c.hub == self.hub,
            lease_groups.c.lease_id == lease.c.id,
            lease_groups.c.name.in_(sorted(self.groups)),
        )
