"""Lab sessions in a replay: what is kept for a class, and who leaves for it, as in the live broker. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from ....core.errors import Refusal, SessionReserved
from ....core.model import Lease
from ....core.session import EndAction, LabSession
from ....core.want import Want
from ..book import Book
from ..line.backfill import SessionHold
from ..line.queue import Claim
from ..when.sessions import Occupant, Reservation, longest_start, make_room, reservations
from .simulate import SimulatedSite


@dataclass(frozen=True, slots=True)
class Labs:
    """The lab sessions of a replay; `want` is what a place of a tier is, `zero` the date of second 0."""

    sessions: Mapping[str, LabSession]
    want: Callable[[str], Want]
    zero: datetime
    span_seconds: float


class ReplaySessions:
    """What is kept, and until when starts may last. One replay each: make a new one for the next."""

    def __init__(self, labs: Labs) -> None:
        self._labs = labs
        self._ends: dict[str, float] = {}
        until = labs.zero + timedelta(seconds=labs.span_seconds)
        self._kept = reservations(labs.sessions.values(), labs.zero, until)

    def over(self, site: SimulatedSite) -> SimulatedSite:
        """The site with these sessions, beside what it has already."""

        def claim(lease: Lease) -> Claim:
            return self._claim(site.rules.claim(lease), lease)

        def admit(lease: Lease, book: Book, now_seconds: float) -> Refusal | None:
            return site.admit(lease, book, now_seconds) or self._refusal(
                lease, book, site.rules.claim(lease), now_seconds
            )

        def lasts(lease: Lease, now_seconds: float) -> float:
            own = self._ends.get(lease.id, math.inf) - now_seconds
            most = site.lasts_at_most(lease, now_seconds)
            return min(most, own) if own > 0 else most  # it waited until the class was there

        rules = replace(site.rules, claim=claim, sessions=self._holds, coming=self._coming)
        moments = {
            self._seconds(at)
            for kept in self._kept
            for at in (kept.keep_from, kept.meeting.start, kept.release_at, kept.meeting.end)
        }
        return replace(
            site,
            rules=rules,
            admit=admit,
            lasts_at_most=lasts,
            moments=sorted({*site.moments, *moments}),
            leave=self._leave,
        )

    def _near(self, now_seconds: float) -> Iterable[Reservation]:
        now = self._at(now_seconds)
        return (each for each in self._kept if each.keep_from <= now < each.meeting.end)

    def _claim(self, claim: Claim, lease: Lease) -> Claim:
        """A member of a class that meets counts for the class."""
        for kept in self._near(lease.since.timestamp()):
            if kept.group in lease.groups:
                return replace(claim, group=kept.group)
        return claim

    def _holds(self, now_seconds: float) -> list[SessionHold]:
        return self._as_holds(self._near(now_seconds), now_seconds)

    def _coming(self, now_seconds: float) -> list[SessionHold]:
        return self._as_holds(self._kept, now_seconds)

    def _as_holds(self, reservations: Iterable[Reservation], now_seconds: float) -> list[SessionHold]:
        now = self._at(now_seconds)
        return [
            SessionHold(
                group=kept.group,
                want=self._labs.want(kept.tier),
                count=kept.seats,
                from_seconds=self._seconds(kept.keep_from),
                begins_seconds=self._seconds(kept.meeting.start),
                ends_seconds=self._seconds(kept.meeting.end),
                released_seconds=self._seconds(kept.release_at),
                moves_out=self._moves_out(kept),
            )
            for kept in reservations
            if now < kept.release_at
        ]

    def _refusal(self, lease: Lease, book: Book, claim: Claim, now_seconds: float) -> Refusal | None:
        now = self._at(now_seconds)
        in_the_way = [
            kept
            for kept in self._near(now_seconds)
            if kept.group not in lease.groups
            and (count := kept.kept(now, _taken(book, kept))) > 0
            and book.lacks(lease.want, self._labs.want(kept.tier), count)
        ]
        longest = math.inf if claim.session_seconds is None else claim.session_seconds
        try:
            seconds, sentence = longest_start(now, longest, in_the_way)
        except SessionReserved as refusal:
            return refusal
        if sentence:
            self._ends[lease.id] = now_seconds + seconds
        return None

    def _leave(self, book: Book, now_seconds: float) -> list[str]:
        """Who has to end at this moment, when a session begins: the newest first, as the rounds do."""
        leaving: list[str] = []
        for kept in self._kept:
            if self._moves_out(kept) and self._seconds(kept.meeting.start) == now_seconds:
                leaving += self._in_the_way(book, kept, frozenset(leaving))
        return leaving

    def _moves_out(self, kept: Reservation) -> bool:
        return self._labs.sessions[kept.meeting.session].move_out is not EndAction.NOTHING

    def _in_the_way(self, book: Book, kept: Reservation, gone: frozenset[str]) -> tuple[str, ...]:
        others = [
            Occupant(lease.id, lease.since)
            for lease in book.leases()
            if lease.state.holds_devices and kept.group not in lease.groups and lease.id not in gone
        ]
        want, missing = self._labs.want(kept.tier), max(0, kept.seats - _taken(book, kept))
        return make_room(others, lambda more: book.places(want, missing, gone | more) >= missing)

    def _at(self, seconds: float) -> datetime:
        return self._labs.zero + timedelta(seconds=seconds)

    def _seconds(self, at: datetime) -> float:
        return (at - self._labs.zero).total_seconds()


def _taken(book: Book, kept: Reservation) -> int:
    """How many places the class has: in a replay all members' leases are of the split's own tier."""
    return sum(each.state.holds_devices and kept.group in each.groups for each in book.leases())
