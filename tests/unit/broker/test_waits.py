"""What estimates of waits have learnt, through a restart of the broker: real allocator and ledger."""

from __future__ import annotations

from typing import Any

from gpuspawner.broker.decide.line.estimate import KEPT_ERRORS
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.ledger import Ledger
from gpuspawner.broker.ledger.wait_errors import KEPT
from gpuspawner.core.errors import LedgerFault
from gpuspawner.core.model import GpuRequest, Lease
from gpuspawner.core.want import Want

from tests.unit.lease_examples import GPU0

LESSONS = 40


def request(number: int) -> GpuRequest:
    return GpuRequest(f"{number:032x}", "hub", f"user-{number}", "", "gpu", Want(1))


async def broker(times: Any, database: str, kind: type[Ledger] = Ledger) -> tuple[Allocator, Ledger]:
    ledger = times.make_ledger(database, kind)
    await ledger.open()
    allocator = Allocator(ledger, clock=times.now)
    await allocator.load([GPU0])
    return allocator, ledger


async def live(allocator: Allocator, times: Any, number: int) -> Lease:
    """One runs, the next waits, and gets its GPU when the first has ended, after 50 to 70 minutes."""
    waiting = await allocator.acquire(request(number + 1))
    await allocator.waits.look()
    times.pass_seconds(3000 + number * 457 % 1200)
    await allocator.begin_release(f"{number:032x}", "stopped")
    await allocator.close(f"{number:032x}")
    return await allocator.set_running(waiting.id, f"c{number + 1}")


async def test_the_next_broker_says_what_this_one_would(database: str, times: Any) -> None:
    allocator, ledger = await broker(times, database)
    await allocator.acquire(request(1))
    await allocator.set_running(request(1).lease_id, "c1")
    for number in range(1, LESSONS):
        await live(allocator, times, number)
    waiting = await allocator.acquire(request(LESSONS + 1))
    await allocator.waits.look()
    said = allocator.waits.of(waiting.id)
    assert said is not None
    # The range is learnt: two and a half sides is what a broker says that has seen nothing.
    assert said.latest_seconds < said.middle_seconds + 2.4 * said.after_seconds
    assert len(await ledger.wait_errors()) > 25
    await ledger.close()
    allocator, ledger = await broker(times, database)
    await allocator.waits.look()
    assert allocator.waits.of(waiting.id) == said
    await ledger.close()


async def test_what_can_t_be_recorded_now_is_recorded_by_the_next_look(database: str, times: Any) -> None:
    class Full(Ledger):
        is_full = False

        async def add_wait_errors(self, sides: Any) -> None:
            if self.is_full:
                raise LedgerFault("The disk is full")
            await super().add_wait_errors(sides)

    allocator, ledger = await broker(times, database, Full)
    assert isinstance(ledger, Full)
    await allocator.acquire(request(1))
    await allocator.set_running(request(1).lease_id, "c1")
    for number in range(1, 8):
        ledger.is_full = number == 6
        await live(allocator, times, number)
        if number == 6:
            await allocator.waits.look()
            before = await ledger.wait_errors()
    ledger.is_full = False
    await allocator.waits.look()
    after = await ledger.wait_errors()
    assert (after[: len(before)], len(after)) == (before, len(before) + 3)
    await ledger.close()


async def test_each_broker_keeps_its_newest(database: str, times: Any) -> None:
    ledger, other = times.make_ledger(database, owner="one"), times.make_ledger(database, owner="two")
    await ledger.open()
    await other.open()
    await other.add_wait_errors([0.5])
    for begin in range(0, KEPT + 20, 20):
        await ledger.add_wait_errors([float(each) for each in range(begin, begin + 20)])
    assert await ledger.wait_errors() == tuple(float(each) for each in range(20, KEPT + 20))
    assert await other.wait_errors() == (0.5,)
    await ledger.close()
    await other.close()


def test_as_many_are_kept_as_are_used() -> None:
    assert KEPT == KEPT_ERRORS


async def test_a_broker_without_fair_share_learns_from_the_past_too(database: str, times: Any) -> None:
    allocator, ledger = await broker(times, database)
    await allocator.acquire(request(1))
    await allocator.set_running(request(1).lease_id, "c1")
    for number in range(1, 6):
        await live(allocator, times, number)
    await ledger.close()
    allocator, ledger = await broker(times, database)
    waiting = await allocator.acquire(request(7))
    await allocator.waits.look()
    assert allocator.waits.of(waiting.id) is not None
    await ledger.close()
