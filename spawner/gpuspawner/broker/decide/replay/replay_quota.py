"""Quotas in a replay: who is refused and why, and who is served first, as the live broker says. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from ....core.errors import Refusal
from ....core.model import Lease
from ....core.quota import UNLIMITED, Allowance, Quota
from ..allow.budget import Entry, Interval, Spent, applying, runs_out_at, spend
from ..allow.quota import Ask, by_subject, combine, holding_of, refusals
from ..book import Book
from ..line.queue import Claim, claim_from
from .simulate import SimulatedSite


class ReplayQuotas:
    """The quotas, and what each user has used of their GPU-hours so far in the replay.

    `zero` is the date that second 0 of the replay stands for: periods of budgets follow the calendar.
    `entries` are grants and refunds, `properties` what hub groups have in their own. One replay each: make a
    new one for the next.
    """

    def __init__(
        self,
        quotas: Iterable[Quota],
        zero: datetime,
        entries: Iterable[Entry] = (),
        properties: Iterable[Quota] = (),
    ) -> None:
        self._quotas = by_subject(quotas)
        self._properties = by_subject(properties)
        self._zero = zero
        self._entries = tuple(entries)
        self._past: defaultdict[str, list[Interval]] = defaultdict(list)
        self._awake: dict[str, tuple[Lease, float]] = {}

    def over(self, site: SimulatedSite) -> SimulatedSite:
        """The site with these quotas."""
        rules = replace(site.rules, claim=self.claim)
        return replace(site, rules=rules, admit=self.admit, look=self.look, lasts_at_most=self.lasts_at_most)

    def claim(self, lease: Lease) -> Claim:
        """What the queue needs to know of a lease's quota."""
        return claim_from(self._allowed(lease))

    def admit(self, lease: Lease, book: Book, now_seconds: float) -> Refusal | None:
        """The refusal that the request meets, or None."""
        holdings = [holding_of(each) for each in book.of_user(lease.hub, lease.user)]
        spent = self._spent(lease, now_seconds)
        found = refusals(
            self._allowed(lease), Ask(lease.tier, lease.want), holdings, spent, self._at(now_seconds)
        )
        return found[0] if found else None

    def lasts_at_most(self, lease: Lease, now_seconds: float) -> float:
        """How long a lease that begins now lasts before its user's GPU-hours are used up."""
        now = self._at(now_seconds)
        end = runs_out_at(self._spent(lease, now_seconds), lease.gpu_fraction, now)
        return UNLIMITED if end is None else max(0.0, (end - now).total_seconds())

    def look(self, book: Book, lease: Lease, now_seconds: float) -> None:
        """A lease begins, or ends: what it used is counted."""
        if lease.state.holds_devices:
            self._awake.setdefault(lease.id, (lease, now_seconds))
        elif lease.id in self._awake:
            self._past[lease.user].append(self._interval(*self._awake.pop(lease.id), now_seconds))

    def _allowed(self, lease: Lease) -> Allowance:
        return combine(self._quotas, lease.user, lease.groups, self._properties)

    def _spent(self, lease: Lease, now_seconds: float) -> list[Spent]:
        budgets = self._allowed(lease).budgets
        if not budgets:
            return []
        awake = [
            self._interval(each, began, now_seconds)
            for each, began in self._awake.values()
            if each.user == lease.user
        ]
        entries = applying(self._entries, lease.user, lease.groups)
        intervals = [*self._past[lease.user], *awake]
        return [spend(each, intervals, entries, self._at(now_seconds)) for each in budgets]

    def _interval(self, lease: Lease, began_seconds: float, now_seconds: float) -> Interval:
        return Interval(self._at(began_seconds), now_seconds - began_seconds, lease.gpu_fraction)

    def _at(self, seconds: float) -> datetime:
        return self._zero + timedelta(seconds=seconds)
