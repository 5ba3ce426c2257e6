"""History goes after its time, a little at a time; what lives, and what is younger, stays."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from gpuspawner.broker.ledger import Ledger
from gpuspawner.broker.observe.failures import LoopFailures
from gpuspawner.broker.observe.metrics import Metrics
from gpuspawner.broker.observe.pruning import ROUND_ROWS, Pruning
from gpuspawner.core.model import Lease, LeaseState
from gpuspawner.core.want import Want

from tests.unit.broker.test_journal import FIRST

LOG = logging.getLogger("pruning")


async def fill(ledger: Ledger, times: Any, count: int) -> None:
    """Leases that ran for a minute and were closed, a day apart; the last one still runs."""
    for number in range(count):
        lease = Lease(
            f"{number:032x}", "hub", "anna", str(number), "gpu", LeaseState.RUNNING, Want(1), times.now(),
            times.now(), device_uuids=("GPU-1",), memory_bytes=1, container_id="c",
        )  # fmt: skip
        await ledger.save(lease, at=times.now())
        await ledger.record(replace(FIRST, at=times.now(), pid=number))
        if number == count - 1:
            return
        times.pass_seconds(60)
        await ledger.save(replace(lease, state=LeaseState.CLOSED, since=times.now()), at=times.now())
        times.pass_seconds(86400 - 60)


async def test_only_what_ended_long_ago_goes(ledger: Ledger, times: Any, query: Any) -> None:
    await fill(ledger, times, 10)
    old = replace((await ledger.living())[0], since=times.now() - timedelta(days=100))
    await ledger.save(old, at=times.now())  # it runs for a hundred days: it stays
    gone = await Pruning(ledger, 4.5, LOG, times.now).round()
    assert gone == 10  # the leases of five days and their ended processes
    assert [int(lease.server) for lease in await ledger.history()] == [8, 7, 6, 5]
    assert [lease.id for lease in await ledger.living()] == [old.id]
    assert [each.pid for each in await ledger.ended()] == [9, 8, 7, 6, 5]
    assert query("SELECT count(*) FROM awake") == query("SELECT count(*) FROM lease_devices") == [(5,)]
    assert await ledger.gpu_seconds("anna", times.now() - timedelta(days=99)) == 4 * 60.0
    assert await Pruning(ledger, 4.5, LOG, times.now).round() == 0


async def test_a_round_is_limited_and_so_is_each_step(
    ledger: Ledger, times: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that is wrong for an hour can't take the whole history."""
    monkeypatch.setattr("gpuspawner.broker.observe.pruning.STEP_ROWS", 2)
    monkeypatch.setattr("gpuspawner.broker.observe.pruning.ROUND_ROWS", 6)
    await fill(ledger, times, 10)
    times.set_clock(40 * 365 * 86400)
    assert await Pruning(ledger, 400, LOG, times.now).round() == 8  # two steps of two leases and two records
    assert len(await ledger.history()) == 5
    assert ROUND_ROWS == 2000


async def test_it_goes_on_after_a_fault(ledger: Ledger, times: Any, caplog: pytest.LogCaptureFixture) -> None:
    await ledger.close()
    failures = LoopFailures("pruning", Metrics(), LOG)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(Pruning(ledger, 400, LOG, times.now).run(failures), 0.1)
    assert caplog.messages[0].startswith(
        "Old history could not be pruned; the next round tries again: The ledger is"
    )
