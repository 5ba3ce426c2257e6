"""The meetings of lab sessions around now, computed once an hour because expanding the rules is slow."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from ...core.session import LabSession
from ..decide.when.sessions import Reservation, reservations
from .rulebook import Rulebook

_AHEAD = timedelta(hours=2)
_LASTS = timedelta(hours=1)


class KeptPlaces:
    """What is kept for lab sessions, from the current rulebook."""

    def __init__(self, rulebook: Rulebook) -> None:
        self._rulebook = rulebook
        self._of: Mapping[str, LabSession] = {}
        self._from: datetime | None = None
        self._found: list[Reservation] = []

    def near(self, now: datetime, ahead: timedelta = timedelta()) -> list[Reservation]:
        """Meetings that are not over, for which places are kept now or within `ahead` (at most two hours)."""
        sessions = self._rulebook.rules.sessions
        known = self._from is not None and self._from <= now < self._from + _LASTS
        if not known or self._of is not sessions:
            self._of, self._from = sessions, now
            self._found = reservations(sessions.values(), now, now + _LASTS + _AHEAD)
        return [each for each in self._found if each.keep_from <= now + ahead and now < each.meeting.end]
