"""Starts the servers of a lab session's members before it begins, some at a time, through the hub."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import Protocol

from ...core.errors import HubFault
from ...core.quota import Window
from ...core.session import LabSession, Meeting
from ...core.units import Clock, utc_now
from ..decide.when.sessions import meetings, prestarts
from .rulebook import Rulebook

ROUND_SECONDS = 5.0
_ANSWER_SECONDS = 20.0


class Hub(Protocol):
    """The requests to the hub."""

    async def members(self, group: str) -> list[str]:
        """The users of a group, by name. Raises HubFault."""
        ...

    async def start(self, user: str, tier: str) -> None:
        """Begin to start the user's default server, if it isn't running. Raises HubFault."""
        ...


class Prestart:
    """Follows the sessions; to be used from one event loop.

    `running` are the users whose default server holds a GPU and runs; `at_once` servers start at a time.
    """

    def __init__(
        self,
        rulebook: Rulebook,
        hub: Hub,
        running: Callable[[], Collection[str]],
        at_once: int,
        log: logging.Logger,
        clock: Clock = utc_now,
    ) -> None:
        self._rulebook = rulebook
        self._hub = hub
        self._running = running
        self._at_once = at_once
        self._log = log
        self._clock = clock
        self._begun: dict[Meeting, dict[str, datetime]] = {}

    async def run(self) -> None:
        """Rounds until cancelled."""
        while True:
            await asyncio.sleep(ROUND_SECONDS)
            try:
                await self.round()
            except Exception:  # the top of this loop
                self._log.exception("Starting servers for a lab session failed; the next round tries again")

    async def round(self) -> None:
        """Start the servers that are due. The hub's refusals are logged once; those users start by hand."""
        now = self._clock()
        self._begun = {meeting: users for meeting, users in self._begun.items() if meeting.end > now}
        for session in self._rulebook.rules.sessions.values():
            if session.prestart_seconds <= 0:
                continue
            ahead = now + timedelta(seconds=session.prestart_seconds + 1)
            for meeting in meetings(session, Window(now, ahead)):
                if meeting.start > now:
                    await self._start_members(session, meeting)

    async def _start_members(self, session: LabSession, meeting: Meeting) -> None:
        try:
            members = await self._hub.members(session.group)
        except HubFault as fault:
            self._log.warning("The members of group %r can't be read: %s", session.group, fault)
            return
        begun, now = self._begun.setdefault(meeting, {}), self._clock()
        due = prestarts(members[: session.seats], begun, self._running(), self._at_once, now)
        begun.update(dict.fromkeys(due, now))
        await asyncio.gather(*(self._start(session, user) for user in due))

    async def _start(self, session: LabSession, user: str) -> None:
        try:
            await self._hub.start(user, session.tier)
            self._log.info("Started a server for the lab session %r: user=%s", session.name, user)
        except HubFault as fault:
            self._log.warning("No start for the lab session %r: %s user=%s", session.name, fault, user)
