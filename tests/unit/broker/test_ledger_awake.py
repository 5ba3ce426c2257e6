"""GPU-seconds are the sum of the awake intervals, through crashes, reboots and clocks that are set."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from gpuspawner.broker.ledger import Ledger, read_steady
from gpuspawner.core.errors import LedgerFault
from gpuspawner.core.model import LeaseState
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.soon import SOON_SECONDS
from tests.unit.lease_examples import NOON, PAIR, PAIR_RUNNING


@pytest.fixture
def path(database: str) -> str:
    """Where the ledger is: each test runs on SQLite and on PostgreSQL."""
    return database


# Awake seconds.


async def test_gpu_seconds_of_one_lease(ledger: Ledger, times: Any) -> None:
    await ledger.save(PAIR, at=times.wall)
    times.pass_seconds(100)
    assert await ledger.gpu_seconds("ada", NOON) == 0.0  # reserved is not awake
    await ledger.save(PAIR_RUNNING, at=times.wall)
    times.pass_seconds(60)
    assert await ledger.gpu_seconds("ada", NOON) == 120.0  # two devices, counted to now
    # still the same interval
    await ledger.save(replace(PAIR_RUNNING, notice="Save your work"), at=times.wall)
    await ledger.save(replace(PAIR_RUNNING, state=LeaseState.ASLEEP), at=times.wall)
    times.pass_seconds(1000)
    await ledger.save(PAIR_RUNNING, at=times.wall)
    times.pass_seconds(5)
    await ledger.save(replace(PAIR_RUNNING, state=LeaseState.RELEASING), at=times.wall)
    times.pass_seconds(1000)
    await ledger.save(replace(PAIR_RUNNING, state=LeaseState.CLOSED), at=times.wall)
    assert await ledger.gpu_seconds("ada", NOON) == 130.0
    assert await ledger.gpu_seconds("bob", NOON) == 0.0
    assert await ledger.gpu_seconds("ada", NOON + timedelta(seconds=130)) == 70.0  # the last 30 s, and 5 s
    assert await ledger.gpu_seconds("ada", times.wall) == 0.0


async def test_a_clock_that_is_set_charges_and_forgives_nothing(ledger: Ledger, times: Any) -> None:
    for jump_seconds in (7200.0, -7200.0):
        lease = replace(PAIR_RUNNING, id=("f" if jump_seconds < 0 else "e") * 32, user=f"user{jump_seconds}")
        since = times.wall - timedelta(days=1)
        await ledger.save(lease, at=times.wall)
        times.pass_seconds(30)
        times.set_clock(jump_seconds)
        assert await ledger.gpu_seconds(lease.user, since) == 60.0
        times.pass_seconds(30)
        await ledger.save(replace(lease, state=LeaseState.RELEASING), at=times.wall)
        assert await ledger.gpu_seconds(lease.user, since) == 120.0


async def test_a_stop_that_was_noticed_late_is_charged_to_when_it_was(ledger: Ledger, times: Any) -> None:
    await ledger.save(PAIR_RUNNING, at=times.wall)
    times.pass_seconds(600)
    ended = replace(PAIR_RUNNING, state=LeaseState.RELEASING)
    await ledger.save(ended, at=times.wall, ago_seconds=590)
    assert await ledger.gpu_seconds("ada", NOON) == 20.0
    late = replace(PAIR_RUNNING, id="2" * 32, user="bob")
    await ledger.save(late, at=times.wall)
    await ledger.save(
        replace(late, state=LeaseState.RELEASING), at=times.wall, ago_seconds=50
    )  # before it began
    assert await ledger.gpu_seconds("bob", NOON) == 0.0


async def test_a_broker_that_was_killed_charges_through(path: str, times: Any) -> None:
    first = times.make_ledger(path)
    await first.open()
    await first.save(PAIR_RUNNING, at=times.wall)
    await first.close()
    times.pass_seconds(300)  # the container ran on
    second = times.make_ledger(path)
    await second.open()
    assert await second.gpu_seconds("ada", NOON) == 600.0
    await second.save(replace(PAIR_RUNNING, state=LeaseState.RELEASING), at=times.wall)
    assert await second.gpu_seconds("ada", NOON) == 600.0
    await second.close()


async def test_a_reboot_ends_what_was_awake_where_it_was_last_seen(path: str, times: Any) -> None:
    first = times.make_ledger(path)
    await first.open()
    await first.save(PAIR_RUNNING, at=times.wall)
    times.pass_seconds(60)
    await first.beat()
    times.pass_seconds(20)
    await first.close()
    times.reboot(down_seconds=14_400)
    second = times.make_ledger(path)
    await second.open()
    assert await second.gpu_seconds("ada", NOON) == 120.0  # to the last beat: the night is not charged
    await second.save(replace(PAIR_RUNNING, state=LeaseState.RELEASING), at=times.wall)
    assert await second.gpu_seconds("ada", NOON) == 120.0
    await second.close()


async def test_beats_come_by_themselves(path: str, times: Any, query: Any) -> None:
    ledger = times.make_ledger(path, beat_seconds=0.01)
    await ledger.open()
    await ledger.save(PAIR_RUNNING, at=times.wall)
    times.pass_seconds(60)
    async with asyncio.timeout(SOON_SECONDS):
        while not query("SELECT * FROM awake WHERE seconds = 60"):
            await asyncio.sleep(0.01)
    await ledger.close()


steps = st.lists(
    st.tuples(
        st.sampled_from([*LeaseState, "clock", "reopen", "beat"]),
        st.integers(0, 1),
        st.integers(0, 1000),
        st.integers(-5000, 5000),
    ),
    max_size=12,
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_charged_is_the_sum_of_the_awake_intervals(
    fresh: Callable[[], str], steps: list[tuple[LeaseState | str, int, int, int]], new_times: Any
) -> None:
    """Against a naive sum, through restarts of the broker and clocks that are set."""

    async def check() -> None:
        times = new_times()
        path = fresh()
        ledger = times.make_ledger(path)
        await ledger.open()
        awake = [False, False]
        charged = [0.0, 0.0]
        for what, who, seconds, jump in steps:
            if what == "clock":
                times.set_clock(jump)
            elif what == "reopen":
                await ledger.close()
                ledger = times.make_ledger(path)
                await ledger.open()
            elif what == "beat":
                await ledger.beat()
            else:
                state = LeaseState(what)
                lease = replace(PAIR, id=str(who) * 32, user=f"user-{who}", state=state)
                await ledger.save(lease, at=times.wall)
                awake[who] = state is LeaseState.RUNNING
            times.pass_seconds(seconds)
            for each in (0, 1):
                charged[each] += 2 * seconds * awake[each]
                found = await ledger.gpu_seconds(f"user-{each}", datetime(2000, 1, 1, tzinfo=UTC))
                assert found == pytest.approx(charged[each])
        await ledger.close()

    asyncio.run(check())


def test_the_steady_clock_goes_forward_within_a_boot() -> None:
    one, other = read_steady(), read_steady()
    assert one.boot_id == other.boot_id
    assert 0 < one.seconds <= other.seconds


# Parts of a GPU.


async def test_a_part_of_a_gpu_is_charged_as_a_part(ledger: Ledger, times: Any) -> None:
    slice_ = replace(PAIR_RUNNING, device_uuids=("GPU-a",), device_fractions=(1 / 8,))
    both = replace(PAIR_RUNNING, id="2" * 32, device_fractions=(0.5, 1 / 3))  # several devices add up
    await ledger.save(slice_, both, at=times.wall)
    times.pass_seconds(240)
    assert await ledger.gpu_seconds("ada", NOON) == 240 / 8 + 240 * (0.5 + 1 / 3)
    await ledger.save(replace(slice_, state=LeaseState.RELEASING), at=times.wall)
    times.pass_seconds(60)
    assert await ledger.gpu_seconds("ada", NOON) == 240 / 8 + 300 * (0.5 + 1 / 3)


async def test_a_part_that_becomes_known_later_holds_for_the_whole_interval(
    ledger: Ledger, times: Any
) -> None:
    """As of a slice that runs while the ledger is upgraded."""
    running = replace(PAIR_RUNNING, device_uuids=("GPU-a",))
    await ledger.save(running, at=times.wall)
    times.pass_seconds(100)
    assert await ledger.gpu_seconds("ada", NOON) == 100.0
    await ledger.save(replace(running, device_fractions=(0.25,)), at=times.wall)
    times.pass_seconds(100)
    assert await ledger.gpu_seconds("ada", NOON) == 50.0


# Several brokers with one database.


async def two_brokers(path: str, times: Any) -> tuple[Ledger, Ledger]:
    one, other = times.make_ledger(path, owner="one"), times.make_ledger(path, owner="other")
    await one.open()
    await other.open()
    return one, other


async def test_another_brokers_lease_cannot_be_changed(path: str, times: Any) -> None:
    one, other = await two_brokers(path, times)
    await one.save(PAIR_RUNNING, at=times.wall)
    assert (await one.living(), await other.living()) == ((PAIR_RUNNING,), ())
    assert await other.find(PAIR.id) == PAIR_RUNNING  # an id is used once, whoever asks
    assert (await one.owned_elsewhere(PAIR.id), await other.owned_elsewhere(PAIR.id)) == (False, True)
    assert not await one.owned_elsewhere("9" * 32)
    mine = replace(PAIR, id="2" * 32)
    closed = replace(PAIR_RUNNING, state=LeaseState.CLOSED)
    with pytest.raises(LedgerFault, match=f"Lease {PAIR.id} belongs to another broker"):
        await other.save(mine, closed, at=times.wall)
    await other.save(at=times.wall, erase=[PAIR.id])
    assert (await one.living(), await other.living()) == ((PAIR_RUNNING,), ())
    await other.save(PAIR_RUNNING, at=times.wall, take_over=True)
    assert (await one.living(), await other.living()) == ((), (PAIR_RUNNING,))
    await one.close()
    await other.close()


async def test_a_reboot_ends_the_intervals_of_its_own_machine_only(path: str, times: Any) -> None:
    one, other = await two_brokers(path, times)
    await one.save(PAIR_RUNNING, at=times.wall)
    await other.save(replace(PAIR_RUNNING, id="2" * 32, user="bob"), at=times.wall)
    times.pass_seconds(60)
    await one.beat()
    assert await other.gpu_seconds("ada", NOON) == 120.0
    await one.close()
    boot = times.steady
    times.reboot(down_seconds=600)  # the first machine
    one = times.make_ledger(path, owner="one")
    await one.open()
    assert one.uncharged == {PAIR.id}
    assert await one.gpu_seconds("ada", NOON) == 120.0
    assert await one.gpu_seconds("bob", NOON) == 0.0  # his machine has not said yet that he is awake
    times.steady = boot._replace(seconds=boot.seconds + 600)  # the other machine runs on
    await other.beat()
    await other.save(
        replace(PAIR_RUNNING, id="2" * 32, user="bob", state=LeaseState.RELEASING), at=times.wall
    )
    assert await one.gpu_seconds("bob", NOON) == 1320.0
    await one.close()
    await other.close()
