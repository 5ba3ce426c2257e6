"""The meetings of lab sessions around now, computed ahead of time because expanding the rules is slow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from ...core.session import LabSession
from ..decide.when.sessions import Reservation, reservations
from .rulebook import Rulebook

_LASTS = timedelta(hours=12)
"""How far ahead a session is expanded."""
_AHEAD = timedelta(hours=2)
"""The most that `near` is asked ahead."""
_RENEWED = timedelta(hours=6)
"""A session that is known for less than this is expanded again, a few at a time."""
_MOST_AT_ONCE = 10


@dataclass(frozen=True, slots=True)
class _Expanded:
    """What is kept for one session, between two moments."""

    session: LabSession
    since: datetime
    until: datetime
    found: tuple[Reservation, ...]


class KeptPlaces:
    """What is kept for lab sessions, from the current rulebook.

    `near` is asked under the allocator's lock: it expands only a session that is new or was changed. The
    others are expanded by `renew`, which the rounds of the endings call.
    """

    def __init__(self, rulebook: Rulebook) -> None:
        self._rulebook = rulebook
        self._of: Mapping[str, LabSession] = {}
        self._expanded: dict[str, _Expanded] = {}
        self._since: datetime | None = None
        self._until: datetime | None = None
        self._found: list[Reservation] = []

    def near(self, now: datetime, ahead: timedelta = timedelta()) -> list[Reservation]:
        """Meetings that are not over, for which places are kept now or within `ahead` (at most two hours)."""
        return [each for each in self.coming(now) if each.keep_from <= now + ahead]

    def coming(self, now: datetime) -> list[Reservation]:
        """All meetings that are not over, as far ahead as is known: two hours at least, twelve at most."""
        known = self._since is not None and self._until is not None and self._since <= now < self._until
        if not known or self._of is not self._rulebook.rules.sessions:
            self._collect(now)
        return [each for each in self._found if now < each.meeting.end]

    def renew(self, now: datetime) -> None:
        """Expand some of the sessions again that are known for the shortest time."""
        ending = [each for each in self._expanded.values() if each.until < now + _RENEWED]
        for each in sorted(ending, key=lambda each: each.until)[:_MOST_AT_ONCE]:
            session = self._rulebook.rules.sessions.get(each.session.name)
            if session is not None:
                self._expand(session, now)
        if ending:
            self._collect(now)

    def _collect(self, now: datetime) -> None:
        """Put together what is known of all sessions, and expand those of which it is not enough."""
        self._of = self._rulebook.rules.sessions
        self._expanded = {name: each for name, each in self._expanded.items() if name in self._of}
        for session in self._of.values():
            known = self._expanded.get(session.name)
            if known is None or known.session != session or not known.since <= now < known.until - _AHEAD:
                self._expand(session, now)
        parts = self._expanded.values()
        self._since = max((each.since for each in parts), default=now)
        self._until = min((each.until for each in parts), default=now + _LASTS) - _AHEAD
        found = [each for part in parts for each in part.found if now < each.meeting.end]
        self._found = sorted(found, key=lambda each: (each.keep_from, each.meeting))

    def _expand(self, session: LabSession, now: datetime) -> None:
        until = now + _LASTS
        self._expanded[session.name] = _Expanded(
            session, now, until, tuple(reservations([session], now, until))
        )
