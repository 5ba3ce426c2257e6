"""What the guard did is shown at once and kept, also when the ledger fails for a while."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.ledger import EndedProcess, Ledger
from gpuspawner.broker.observe.journal import Journal
from gpuspawner.core.errors import LedgerFault

LOG = logging.getLogger("journal")
FIRST = EndedProcess(
    datetime(2026, 1, 1, 12, 30, tzinfo=UTC), "memory", "a" * 32, "hub", "anna", "", "c" * 64, "GPU-1", 7,
    "python3", 9 << 30, 8 << 30, 2.1, "Your process was ended.",
)  # fmt: skip
SECOND = replace(FIRST, offence="no_lease", lease_id=None, user="", quota_bytes=None, pid=8)
THIRD = replace(FIRST, pid=9)


async def test_it_is_there_after_a_restart(path: Path, times: Any) -> None:
    ledger = times.make_ledger(path)
    await ledger.open()
    journal = Journal(ledger, LOG)
    await journal.load()
    assert journal.recent() == ()
    await journal.add(FIRST)
    await journal.add(SECOND)
    assert journal.recent() == (SECOND, FIRST)
    await ledger.close()
    ledger = times.make_ledger(path)
    await ledger.open()
    again = Journal(ledger, LOG)
    await again.load()
    assert again.recent() == (SECOND, FIRST)
    assert await ledger.ended(1) == (SECOND,)
    await ledger.close()


async def test_what_could_not_be_written_is_written_with_the_next(
    path: Path, times: Any, faulty_ledger: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = times.make_ledger(path, faulty_ledger)
    await ledger.open()
    journal = Journal(ledger, LOG)
    ledger.fault = "before"
    await journal.add(FIRST)
    assert (journal.recent(), await ledger.ended()) == ((FIRST,), ())
    assert caplog.messages == ["An ended process could not be recorded yet, retrying: the disk is full"]
    await journal.add(SECOND)
    await journal.add(THIRD)
    assert await ledger.ended() == (THIRD, SECOND, FIRST) == journal.recent()
    await ledger.close()


async def test_a_closed_ledger_is_a_fault(ledger: Ledger) -> None:
    await ledger.close()
    with pytest.raises(LedgerFault):
        await ledger.record(FIRST)
