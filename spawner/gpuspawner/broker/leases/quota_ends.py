"""Which running servers end because a quota was changed, where somebody said that they should.

The decision is in the ledger, one for each lease, so it holds over a restart of the broker. A lease that the
quota allows again, because of another change or because another server was stopped, does not end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from ...core.errors import Refusal
from ...core.model import Lease, LeaseState
from ...core.quota import Subject
from ..decide.allow.quota import beyond, holding_of
from ..decide.when.deadline import WARNINGS_SECONDS, Cause, Deadline
from .allocator import Allocator
from .rulebook import AllowanceOf, Rulebook

_HOLDS = (LeaseState.RESERVED, LeaseState.RUNNING, LeaseState.ASLEEP)
"""States of leases that the quota is held against; one that is being released ends anyway."""


@dataclass(frozen=True, slots=True)
class QuotaEnds:
    """Asked when a quota is changed, and by the rounds of `Endings`."""

    rulebook: Rulebook
    allocator: Allocator

    def beyond(self, subject: Subject, allowance: AllowanceOf) -> list[Lease]:
        """Leases that hold a GPU, of users of this subject, that are more than `allowance` gives them."""
        return [
            lease
            for leases in self._by_user(self.allocator.leases())
            for lease in _beyond(leases, allowance)
            if subject.covers(lease.user, lease.groups)
        ]

    def look(self, kept_until: Callable[[Lease], datetime]) -> dict[str, Deadline]:
        """When leases end, by id: both warnings come first, and nobody ends before their minimum is over."""
        told = self.rulebook.rules.to_end
        if not told:
            return {}
        leases = self.allocator.leases()
        concerned = {(lease.hub, lease.user) for lease in leases if lease.id in told}
        ends: dict[str, Deadline] = {}
        for of_user in self._by_user(lease for lease in leases if (lease.hub, lease.user) in concerned):
            for lease in _beyond(of_user, self.rulebook.allowance):
                if lease.id in told:
                    warned = told[lease.id] + timedelta(seconds=WARNINGS_SECONDS[0])
                    ends[lease.id] = Deadline(max(warned, kept_until(lease)), Cause.QUOTA_CHANGED)
        return ends

    def _by_user(self, leases: Iterable[Lease]) -> list[list[Lease]]:
        """Those that hold devices, in the order of arrival."""
        found: dict[tuple[str, str], list[Lease]] = {}
        for lease in leases:
            if lease.state in _HOLDS:
                found.setdefault((lease.hub, lease.user), []).append(lease)
        return list(found.values())


def _beyond(leases: list[Lease], allowance: AllowanceOf) -> list[Lease]:
    """Of one user's leases. None where the groups can't be read: nothing ends because of that."""
    try:
        allowed = allowance(leases[-1].user, leases[-1].groups)
    except Refusal:
        return []
    over = beyond(allowed, [holding_of(lease) for lease in leases])
    return [lease for lease, is_over in zip(leases, over, strict=True) if is_over]
