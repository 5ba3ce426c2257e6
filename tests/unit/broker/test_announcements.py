"""Messages to a class: in the members' labs at once, beside their own notices, and gone in time."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from gpuspawner.broker.leases.announcements import Announcements
from gpuspawner.broker.leases.memory_notice import sentence
from gpuspawner.broker.leases.rulebook import Rulebook
from gpuspawner.broker.ledger import Ledger
from gpuspawner.config.quotas import Known
from gpuspawner.core.decision import Announcement, DecisionKind
from gpuspawner.core.errors import LedgerFault
from gpuspawner.core.model import Lease

from tests.unit.lease_examples import RUNNING, WAITING, A, B, lease

ADA = replace(lease(A, RUNNING, "GPU-0"), groups=("cs1",))
BOB = replace(lease(B, RUNNING, "GPU-1"), groups=("cs2",))


class Written:
    """Folders that say what they were told to write."""

    def __init__(self, announcements: Announcements) -> None:
        self._announcements = announcements
        self.written: list[tuple[str, str]] = []
        self.full = False

    async def refresh(self, item: Lease) -> None:
        if self.full:
            raise LedgerFault("the disk is full")
        self.written.append((item.id[0], self._announcements.notice_of(item)))

    async def remove(self, lease_id: str) -> None: ...

    def taken(self) -> list[tuple[str, str]]:
        """What was written since the last look."""
        taken, self.written = self.written, []
        return taken


@pytest.fixture
async def rulebook(ledger: Ledger, times: Any) -> Rulebook:
    book = Rulebook(ledger, (), Known(()), clock=times.now)
    await book.load()
    return book


async def say(rulebook: Rulebook, times: Any, subject: str, text: str, minutes: float = 10) -> None:
    document = {"text": text, "until": (times.now() + timedelta(minutes=minutes)).isoformat()}
    await rulebook.decide(rulebook.decision(DecisionKind.MESSAGE, subject, document, "ines", ""))


async def test_a_class_reads_it_and_others_don_t(rulebook: Rulebook, times: Any) -> None:
    announcements = Announcements(rulebook, logging.getLogger(), times.now)
    folders, leases = Written(announcements), (ADA, BOB, replace(ADA, id="c" * 32, state=WAITING))
    await announcements.round(leases, folders)
    assert folders.taken() == [("a", ""), ("b", "")]  # the broker before may have died in the middle of one
    await announcements.round(leases, folders)
    assert folders.taken() == []
    await say(rulebook, times, "group:cs1", "Save your work.")
    await announcements.round(leases, folders)
    await announcements.round(leases, folders)
    assert folders.taken() == [("a", "Message from ines: Save your work.")]
    await say(rulebook, times, "everybody", "The machine restarts at 18:00.", minutes=5)
    await announcements.round(leases, folders)
    everybody = "Message from ines: The machine restarts at 18:00."
    assert folders.taken() == [("a", f"{everybody} Message from ines: Save your work."), ("b", everybody)]
    times.pass_seconds(5 * 60)
    await announcements.round(leases, folders)
    assert folders.taken() == [("a", "Message from ines: Save your work."), ("b", "")]
    times.pass_seconds(5 * 60)
    await announcements.round(leases, folders)
    assert folders.taken() == [("a", "")]


async def test_the_lease_s_own_notice_comes_first(rulebook: Rulebook, times: Any) -> None:
    announcements = Announcements(rulebook, logging.getLogger(), times.now)
    await say(rulebook, times, "group:cs1", "Save your work.")
    told = announcements.notice_of(replace(ADA, notice="This server ends at 12:00."))
    assert told == "This server ends at 12:00. Message from ines: Save your work."


async def test_a_full_memory_is_told_by_the_notebook_alone(rulebook: Rulebook, times: Any) -> None:
    announcements = Announcements(rulebook, logging.getLogger(), times.now)
    await say(rulebook, times, "group:cs1", "Save your work.")
    told = announcements.notice_of(replace(ADA, notice=sentence(8 << 30)))
    assert told == "Message from ines: Save your work."


async def test_a_full_disk_is_tried_again(rulebook: Rulebook, times: Any) -> None:
    announcements = Announcements(rulebook, logging.getLogger(), times.now)
    folders = Written(announcements)
    await say(rulebook, times, "group:cs1", "Save your work.")
    folders.full = True
    await announcements.round((ADA,), folders)
    folders.full = False
    await announcements.round((ADA,), folders)
    assert folders.taken() == [("a", "Message from ines: Save your work.")]


async def test_it_outlives_the_broker(rulebook: Rulebook, ledger: Ledger, times: Any) -> None:
    await say(rulebook, times, "group:cs1", "Save your work.")
    again = Rulebook(ledger, (), Known(()), clock=times.now)
    await again.load()
    until = times.now() + timedelta(minutes=10)
    told = Announcements(again, logging.getLogger(), times.now).of(("cs1", "other"))
    assert told == (Announcement("Save your work.", "ines", times.now(), until),)
