"""GPU-seconds in a period against a naive model: kills of the broker, set clocks, slices, daylight saving."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import pytest
from gpuspawner.broker.decide.allow.budget import spend
from gpuspawner.broker.decide.allow.report import By, make_report
from gpuspawner.broker.decide.place.sharing_rules import SharingRules
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.core.model import GpuRequest, Mode
from gpuspawner.core.quota import Budget, Period, PeriodKind, Window
from gpuspawner.core.want import Want
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.lease_examples import GPU0, GPU1

TERM = Period(PeriodKind.TERM, "Europe/Berlin", first=date(2026, 10, 12), last=date(2027, 2, 12))
SLICED = {GPU1.uuid: SharingRules("class", Mode.SLICE, slices=8)}
WHOLE, EIGHTH = Want(1), Want(1, mode=Mode.SLICE)

steps = st.lists(
    st.tuples(
        st.sampled_from(["whole", "slice", "stop", "stop", "kill", "clock", "pass"]),
        st.integers(0, 2 * 86400),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_a_term_s_gpu_seconds_are_the_sum_of_what_was_held(
    fresh: Callable[[], str], new_times: Any, drawn: list[tuple[str, int]]
) -> None:
    asyncio.run(walk(fresh(), new_times(), drawn))


async def walk(path: str, times: Any, drawn: list[tuple[str, int]]) -> None:
    """Steps of one user; every minute that passes is counted by hand for what runs then."""
    times.wall = datetime(2026, 10, 20, 22, 0, tzinfo=UTC)  # the clocks change five days later
    ledger = times.make_ledger(path)
    await ledger.open()
    allocator = Allocator(ledger, clock=times.now)
    await allocator.load([GPU0, GPU1], SLICED)
    running: dict[str, float] = {}
    counted, by_hand = 0, 0.0
    for what, seconds in drawn:
        times.pass_seconds(seconds)
        by_hand += seconds * sum(running.values())
        if what in ("whole", "slice") and not (what == "whole" and 1.0 in running.values()):
            counted += 1
            want = WHOLE if what == "whole" else EIGHTH
            request = GpuRequest(f"{counted:032x}", "hub", "ada", f"s{counted}", what, want, ("a", "b"))
            lease = await allocator.acquire(request)
            if lease.device_uuids:
                running[lease.id] = 1.0 if what == "whole" else 0.125
                await allocator.set_running(lease.id, f"c{counted}")
        elif what == "stop" and running:
            lease_id, _ = running.popitem()
            await allocator.begin_release(lease_id, "stopped")
            await allocator.close(lease_id)
        elif what == "clock":
            times.set_clock(3600 if seconds % 2 else -3600)
        elif what == "kill":  # nothing is released: a new broker opens what the old one wrote
            await ledger.close()
            ledger = times.make_ledger(path)
            await ledger.open()
            allocator = Allocator(ledger, clock=times.now)
            await allocator.load([GPU0, GPU1], SLICED)
    term = Window(datetime(2026, 10, 1, tzinfo=UTC), datetime(2027, 2, 12, 23, tzinfo=UTC))
    charged = await ledger.charged(term.start)
    intervals = await ledger.intervals(term.start, "hub", "ada")
    assert intervals == tuple(each.interval for each in charged)
    spent = spend(Budget(1.0, TERM), intervals, [], times.now())
    assert spent.used_gpu_seconds == pytest.approx(by_hand, rel=1e-3, abs=1.0)
    for by in (By.USER, By.DAY, By.TIER):
        lines = make_report(charged, by, term, "Europe/Berlin").lines
        assert sum(line.gpu_seconds for line in lines) == pytest.approx(by_hand, rel=1e-3, abs=1.0)
    groups = make_report(charged, By.GROUP, term, "Europe/Berlin").lines
    assert [line.name for line in groups] == (["a", "b"] if by_hand else [])
    assert await ledger.intervals(term.start, "hub", "bob") == ()
    await ledger.close()
