"""Checks a request against the user's quota; the allocator calls it under its lock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from ...core.errors import NotAllowed, Refusal
from ...core.model import GpuRequest, Lease, LeaseState
from ...core.quota import UNLIMITED, Allowance
from ...core.session import EndAction
from ...core.units import Clock, utc_now
from ...core.want import Want
from ..decide.allow.budget import Interval, Spent, applying, spend
from ..decide.allow.period import window_at
from ..decide.allow.quota import Ask, check, holding_of, survivors
from ..decide.line.backfill import SessionHold
from ..decide.line.queue import Claim, claim_from
from ..decide.when.sessions import Reservation, longest_start
from ..ledger import Ledger
from .kept import KeptPlaces
from .rulebook import Rulebook


class Gate(Protocol):
    """Decides whether a user may have another lease beside those that they have."""

    def counts_from(self, request: GpuRequest) -> datetime | None:
        """From when on the user's use counts for the quota; None: it doesn't count. Raises a Refusal."""
        ...

    def admit(self, request: GpuRequest, leases: Sequence[Lease], used: Sequence[Interval]) -> None:
        """Raises a Refusal if the request exceeds the quota.

        `leases` are all living leases of this user, `used` what the user used since `counts_from`.
        """
        ...

    async def refused(self, leases: Sequence[Lease]) -> list[tuple[Lease, Refusal]]:
        """Those of one user's living leases that may no longer wait, each with the reason."""
        ...


class Floor(Protocol):
    """What is held now: the allocator."""

    def lease(self, lease_id: str) -> Lease | None:
        """The living lease with this id."""
        ...

    def taken(self, tier: str, group: str) -> int:
        """How many leases of this tier hold devices whose users are members of the group."""
        ...

    def lacks(self, want: Want, kept: Want, count: int) -> bool:
        """Whether a lease like `want`, placed now, would take one of `count` places like `kept`."""
        ...


@dataclass(frozen=True, slots=True)
class Cap:
    """A new server that has to end for a lab session: when it ends, and the message to its user."""

    ends_at: datetime
    sentence: str


class QuotaGate:
    """Holds the rulebook's quotas and what is kept for lab sessions.

    GPU-hours are read from the ledger, so they are exact.
    """

    floor: Floor | None = None
    """What is held now; without it nothing is kept for sessions."""

    def __init__(self, rulebook: Rulebook, ledger: Ledger, clock: Clock = utc_now) -> None:
        self._rulebook = rulebook
        self._ledger = ledger
        self._clock = clock
        self._caps: dict[str, Cap] = {}
        self.kept = KeptPlaces(rulebook)

    def cap_of(self, lease_id: str) -> Cap | None:
        """When a lease has to end for a lab session that was known at its start."""
        return self._caps.get(lease_id)

    def counts_from(self, request: GpuRequest) -> datetime | None:
        """See Gate. Raises QuotaUnreadable."""
        return self._counts_from(self._rulebook.allowance(request.user, request.groups))

    def admit(self, request: GpuRequest, leases: Sequence[Lease], used: Sequence[Interval]) -> None:
        """Raises a quota refusal or SessionReserved; see Gate."""
        allowed = self._rulebook.allowance(request.user, request.groups)
        spent = self._spent(request.user, request.groups, allowed, used)
        holdings = [holding_of(lease) for lease in leases]
        check(allowed, Ask(request.tier, request.want), holdings, spent, self._clock())
        self._make_way(request, allowed)

    async def refused(self, leases: Sequence[Lease]) -> list[tuple[Lease, Refusal]]:
        """See Gate. Who holds a GPU is never among them. A group that can't be read refuses all."""
        gone = [lease for lease in leases if lease.state is LeaseState.WAITING and self._is_gone(lease.tier)]
        offered = [lease for lease in leases if lease not in gone]
        return [(lease, self._tier_gone(lease.tier)) for lease in gone] + await self._over_quota(offered)

    def _is_gone(self, tier: str) -> bool:
        """Whether the settings no longer have the tier, so that nobody may start it."""
        tiers = self._rulebook.known.tiers
        return bool(tiers) and all(each.name != tier for each in tiers)

    def _tier_gone(self, tier: str) -> Refusal:
        names = ", ".join(each.title for each in self._rulebook.known.tiers)
        return NotAllowed(
            f"{tier!r} was removed from this hub while you waited for it: choose one of {names}."
        )

    async def _over_quota(self, leases: Sequence[Lease]) -> list[tuple[Lease, Refusal]]:
        waiting = [lease for lease in leases if lease.state is LeaseState.WAITING]
        if not waiting:
            return []
        last = waiting[-1]
        try:
            allowed = self._rulebook.allowance(last.user, last.groups)
        except Refusal as refusal:
            return [(lease, refusal) for lease in waiting]
        spent = await self.spent(last.hub, last.user, last.groups, allowed)
        judged = survivors(allowed, [holding_of(lease) for lease in leases], spent, self._clock())
        return [
            (lease, refusal)
            for lease, (_, refusal) in zip(leases, judged, strict=True)
            if refusal is not None
        ]

    def _make_way(self, request: GpuRequest, allowed: Allowance) -> None:
        """Notes when the start ends for a lab session. Raises SessionReserved if there is too little time."""
        if self.floor is None:
            return
        floor = self.floor
        self._caps = {
            lease_id: cap for lease_id, cap in self._caps.items() if floor.lease(lease_id) is not None
        }
        cap = self.cap_for(request.want, request.groups, allowed)
        if cap is not None:
            self._caps[request.lease_id] = cap

    def cap_for(self, want: Want, groups: Iterable[str], allowed: Allowance) -> Cap | None:
        """When a server that starts now has to end for a lab session; None if none needs its place.

        Raises SessionReserved if there is too little time before the session.
        """
        if self.floor is None:
            return None
        now, floor = self._clock(), self.floor
        in_the_way = [
            kept for kept, count in self.kept_for_others(groups) if floor.lacks(want, self._want(kept), count)
        ]
        seconds, sentence = longest_start(now, allowed.session_seconds, in_the_way)
        return Cap(now + timedelta(seconds=seconds), sentence) if sentence else None

    def kept_for_others(self, groups: Iterable[str]) -> list[tuple[Reservation, int]]:
        """What is kept now for groups other than these, and how many places of it nobody has taken yet."""
        members = frozenset(groups)
        return [each for each in self._kept_now() if each[0].group not in members and each[1] > 0]

    def kept_for(self, groups: Iterable[str]) -> list[tuple[Reservation, int]]:
        """What is kept now for these groups, and how many places of it nobody has taken yet."""
        members = frozenset(groups)
        return [each for each in self._kept_now() if each[0].group in members]

    def _kept_now(self) -> list[tuple[Reservation, int]]:
        if self.floor is None:
            return []
        now, floor = self._clock(), self.floor
        return [(kept, kept.kept(now, floor.taken(kept.tier, kept.group))) for kept in self.kept.near(now)]

    def _want(self, kept: Reservation) -> Want:
        return next(tier.want for tier in self._rulebook.known.tiers if tier.name == kept.tier)

    def claim_of(self, lease: Lease) -> Claim:
        """What the queue needs to know of the lease's quota, at this moment.

        Who is a member of a class that meets now, and asks for its tier, counts for the class.
        """
        try:
            allowed = self._rulebook.allowance(lease.user, lease.groups)
        except Refusal:
            allowed = Allowance()
        now = self._clock()
        of_group = allowed
        for kept in self.kept.near(now):
            if kept.group in lease.groups and kept.tier == lease.tier:
                of_group = replace(self._rulebook.of_group(kept.group), group=kept.group)
                break
        extended = self._rulebook.rules.extended_seconds.get(lease.id, 0.0)
        cap = self.cap_of(lease.id)
        until_cap = UNLIMITED
        if cap is not None and cap.ends_at > now:  # else it waited until the session was over
            until_cap = (cap.ends_at - now).total_seconds()
        if extended:
            allowed = replace(allowed, session_seconds=allowed.session_seconds + extended)
        return claim_from(allowed, of_group, until_cap)

    def holds(self, now: datetime) -> list[SessionHold]:
        """The places that are kept for lab sessions now; without those that nobody took in time."""
        return self._holds(self.kept.near(now), now)

    def coming_holds(self, now: datetime) -> list[SessionHold]:
        """The same, and what will be kept in the next hours."""
        return self._holds(self.kept.coming(now), now)

    def _holds(self, reservations: Iterable[Reservation], now: datetime) -> list[SessionHold]:
        wants = {tier.name: tier.want for tier in self._rulebook.known.tiers}
        sessions = self._rulebook.rules.sessions
        return [
            SessionHold(
                group=kept.group,
                want=wants[kept.tier],
                count=kept.seats,
                from_seconds=kept.keep_from.timestamp(),
                begins_seconds=kept.meeting.start.timestamp(),
                ends_seconds=kept.meeting.end.timestamp(),
                released_seconds=kept.release_at.timestamp(),
                moves_out=sessions[kept.meeting.session].move_out is not EndAction.NOTHING,
            )
            for kept in reservations
            if now < kept.release_at
        ]

    async def spent(self, hub: str, user: str, groups: Iterable[str], allowed: Allowance) -> list[Spent]:
        """What the user used of each of their budgets in its present period. Raises LedgerFault."""
        since = self._counts_from(allowed)
        if since is None:
            return []
        return self._spent(user, groups, allowed, await self._ledger.intervals(since, hub, user))

    def _counts_from(self, allowed: Allowance) -> datetime | None:
        """The begin of the earliest period of these budgets; None if there is no budget."""
        if not allowed.budgets:
            return None
        now = self._clock()
        windows = [window_at(budget.period, now) for budget in allowed.budgets]
        return min((window.start for window in windows if window is not None), default=now)

    def _spent(
        self, user: str, groups: Iterable[str], allowed: Allowance, used: Sequence[Interval]
    ) -> list[Spent]:
        if not allowed.budgets:
            return []
        entries = applying(self._rulebook.rules.entries, user, groups)
        return [spend(budget, used, entries, self._clock()) for budget in allowed.budgets]
