"""Messages to a class or to everybody: in the notebooks of those who have a GPU, until their time is over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from ...core.decision import Announcement
from ...core.errors import GpuSpawnerError
from ...core.model import Lease, LeaseState
from ...core.quota import EVERYBODY, Subject, SubjectKind
from ...core.units import Clock, utc_now
from .folders import Folders
from .memory_notice import is_memory_notice
from .rulebook import Rulebook

LOOK_SECONDS = 5.0
"""Within this time after its end a message is gone; a new one is shown at once."""


def messages_for(
    groups: Iterable[str], messages: Mapping[Subject, Announcement], now: datetime
) -> tuple[Announcement, ...]:
    """What a member of these groups is told at that time, the newest first."""
    subjects = (EVERYBODY, *(Subject(SubjectKind.GROUP, group) for group in groups))
    found = (messages.get(subject) for subject in subjects)
    told = [each for each in found if each is not None and each.since <= now < each.until]
    return tuple(sorted(told, key=lambda each: each.since, reverse=True))


class Announcements:
    """The messages in force, from the rulebook; one a broker, on its event loop."""

    def __init__(self, rulebook: Rulebook, log: logging.Logger, clock: Clock = utc_now) -> None:
        self._rulebook = rulebook
        self._log = log
        self._clock = clock
        self._shown: dict[str, str | None] = {}
        self._changed = asyncio.Event()
        rulebook.on_change.append(self._changed.set)

    def of(self, groups: Iterable[str]) -> tuple[Announcement, ...]:
        """What a member of these groups is told now, the newest first."""
        return messages_for(groups, self._rulebook.rules.messages, self._clock())

    def notice_of(self, lease: Lease) -> str:
        """What the lease's user reads in the lab: the lease's own notice first, then the messages.

        Not that its memory was full: the lab's kernels see that themselves, and say which program was ended.
        """
        own = "" if is_memory_notice(lease.notice) else lease.notice
        return " ".join(filter(None, (own, self._text(lease))))

    async def run(self, leases: Callable[[], Iterable[Lease]], folders: Folders) -> None:
        """Writes new messages into the labs, and removes old ones, until cancelled."""
        while True:
            try:
                await self.round(leases(), folders)
            except Exception:  # the top of this loop
                self._log.exception("A message to a class could not be shown; retrying")
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()

    async def round(self, leases: Iterable[Lease], folders: Folders) -> None:
        """Writes the folder of each lease whose messages have changed since the last round.

        At its first round also of each lease: the broker before may have died between a notice's commit and
        the folder.
        """
        living = [lease for lease in leases if lease.state in _WITH_FOLDER]
        self._shown = {lease.id: self._shown.get(lease.id) for lease in living}
        for lease in living:
            text = self._text(lease)
            if text == self._shown[lease.id]:
                continue
            try:
                await folders.refresh(lease)
                self._shown[lease.id] = text
            except GpuSpawnerError as error:
                self._log.warning("A message can't be shown yet, retrying: %s lease=%s", error, lease.id)

    def _text(self, lease: Lease) -> str:
        return " ".join(f"Message from {each.author}: {each.text}" for each in self.of(lease.groups))


_WITH_FOLDER = frozenset({LeaseState.RUNNING, LeaseState.ASLEEP})
"""A reserved lease's folder is written, messages included, before its container starts."""
