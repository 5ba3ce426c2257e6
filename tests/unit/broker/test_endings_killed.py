"""A broker that is killed around any commit still warns, then ends a server or puts it to sleep in time.

The clock is the test's; allocator, rulebook, rounds and ledger are the broker's own. The kill walks over
every commit from the server's start to its end, before and after it was written, on SQLite and PostgreSQL.
Real processes that are killed: tests/docker/test_crash_points_endings.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from gpuspawner.broker.decide.place.sharing_rules import SharingRules
from gpuspawner.broker.decide.when.gpu_use import GpuUse
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.leases.endings import EndingParts, Endings
from gpuspawner.broker.leases.gate import QuotaGate
from gpuspawner.broker.leases.queue_rules import queue_rules
from gpuspawner.broker.leases.rulebook import Rulebook
from gpuspawner.broker.ledger import Ledger
from gpuspawner.config.idle import IdleRules
from gpuspawner.config.quotas import Known
from gpuspawner.core.model import GpuRequest, Lease, LeaseState, Mode, Tier
from gpuspawner.core.want import Want

from tests.unit.lease_examples import GPU0

WANTS = {"gpu": Want(1), "turns": Want(1, mode=Mode.TURNS, memory_bytes=24 << 30)}
KNOWN = Known(tuple(Tier(name, name, want=want) for name, want in WANTS.items()), None, "UTC")
SEATS = {GPU0.uuid: SharingRules("turns", Mode.TURNS, reserve_bytes=3 << 30, seats=4)}
QUOTAS = [{"group": "short", "session_hours": 1}, {"group": "poor", "gpu_hours": 1}]
LEASE = f"{1:032x}"
ROUND_SECONDS = 20.0
DOWN_SECONDS = 2.0
"""From the kill to the next broker, which its keeper starts."""


class Killed(BaseException):
    """The process is gone: nothing after this runs."""


class MortalLedger(Ledger):
    """Kills its process around the commit that `strike` says, counted over all brokers."""

    strike: Callable[[], str]

    def commit(self, change: Any) -> int:
        writes = change.leases or change.end_warnings or change.withdrawn
        when = self.strike() if writes else ""
        if when == "before":
            raise Killed
        pruned = super().commit(change)
        if when == "after":
            raise Killed
        return pruned


@dataclass
class Life:
    """One server from its start to its end, over as many brokers as it takes."""

    times: Any
    path: str
    group: str
    strike_at: int
    when: str
    tier: str = "gpu"
    commits: int = 0
    warned: list[tuple[datetime, str]] = field(default_factory=list)
    ended_at: datetime | None = None
    reason: str = ""
    ledger: Ledger = field(init=False)
    allocator: Allocator = field(init=False)
    endings: Endings = field(init=False)

    def strike(self) -> str:
        self.commits += 1
        return self.when if self.commits == self.strike_at else ""

    async def start_broker(self) -> None:
        """A new process: it knows what the ledger has, and nothing else."""
        ledger = self.times.make_ledger(self.path, MortalLedger)
        ledger.strike = self.strike
        self.ledger = ledger
        await ledger.open()
        rulebook = Rulebook(ledger, QUOTAS, KNOWN, clock=self.times.now)
        await rulebook.load()
        gate = QuotaGate(rulebook, ledger, self.times.now)
        rules = queue_rules(gate, None, 86400.0)
        self.allocator = Allocator(ledger, clock=self.times.now, gate=gate, rules=rules)
        await self.allocator.load([GPU0], SEATS if self.tier == "turns" else {})
        parts = EndingParts(
            rulebook=rulebook,
            gate=gate,
            allocator=self.allocator,
            service=self,
            ledger=ledger,
            gpu_use=lambda lease: GpuUse(True, self.times.now()),
            idle=IdleRules(),
            clock=self.times.now,
            sleep=self.sleep,
            can_sleep=lambda lease: lease.mode is Mode.TURNS,
        )
        self.endings = Endings(parts, logging.getLogger("test"))
        lease = self.allocator.lease(LEASE)
        if lease is not None and lease.state is LeaseState.RELEASING:
            self.ended_at, self.reason = lease.since, lease.reason
            await self.allocator.close(LEASE)  # as reconciliation does: no container has the label

    async def tell(self, lease_id: str, sentence: str) -> None:
        if await self.allocator.tell(lease_id, sentence) is not None and sentence:
            self.warned.append((self.times.now(), sentence))

    async def sleep(self, lease: Lease, reason: str) -> bool:
        await self.allocator.sleep(lease.id)
        return True

    async def release(self, lease_id: str, reason: str) -> bool:
        await self.allocator.begin_release(lease_id, reason)
        self.ended_at, self.reason = self.times.now(), reason
        await self.allocator.close(lease_id)
        return True

    async def step(self) -> None:
        """What happens next: the start, or one round."""
        lease = self.allocator.lease(LEASE)
        if lease is None and self.ended_at is None:
            request = GpuRequest(LEASE, "hub", "ada", "", self.tier, WANTS[self.tier], (self.group,))
            lease = await self.allocator.acquire(request)
        if lease is not None and lease.state is LeaseState.RESERVED:
            lease = await self.allocator.set_running(LEASE, "c1")
        if lease is not None and lease.state is LeaseState.ASLEEP and not lease.kept_asleep:
            await self.allocator.wake(LEASE)  # it computes whenever it may
        elif lease is not None and lease.state is LeaseState.RUNNING and lease.kept_asleep:
            await self.allocator.sleep(LEASE)  # as the keeper of its pool does
        await self.endings.round()

    async def run(self, hours: float = 2.0) -> None:
        """Until the lease is closed, or so long."""
        if not hasattr(self, "ledger"):
            await self.start_broker()
        for _ in range(int(hours * 3600 / ROUND_SECONDS)):
            try:
                await self.step()
            except Killed:
                await self.ledger.close()
                self.times.pass_seconds(DOWN_SECONDS)
                await self.start_broker()
            if self.ended_at is not None and not self.allocator.leases():
                break
            self.times.pass_seconds(ROUND_SECONDS)


ENDS = 9
"""One more than a server has that is stopped: reserved, running, two warnings, each then recorded as given,
releasing, closed."""
UNRECORDED = {(5, "after"), (6, "before")}
"""Killed between the last warning and its record: it is given again, and moves the end."""


@pytest.mark.parametrize("group", ["short", "poor"])
@pytest.mark.parametrize("strike_at", range(1, ENDS + 1))
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_killed_broker_s_successor_warns_and_ends(
    database: str, times: Any, group: str, strike_at: int, when: str
) -> None:
    times.wall = times.wall.replace(year=2026, month=11, day=26, hour=8)
    life = Life(times, database, group, strike_at, when)
    began = times.now()
    await life.run()
    assert life.ended_at is not None
    ends, cause = {"short": (3600.0, "session_limit"), "poor": (3600.0, "gpu_hours")}[group]
    lasted = (life.ended_at - began).total_seconds()
    later = 300.0 if (strike_at, when) in UNRECORDED else 0.0
    assert ends - 1 <= lasted <= ends + later + 3 * ROUND_SECONDS + DOWN_SECONDS
    assert life.reason.startswith(cause)
    ahead = [(life.ended_at - at).total_seconds() for at, _ in life.warned]
    assert any(840 <= each <= 960 + 300 for each in ahead), ahead
    assert any(300 <= each <= 420 for each in ahead), ahead  # never without five minutes' notice
    charged = await life.ledger.intervals(began - timedelta(days=1), "hub", "ada")
    running = sum(each.seconds for each in charged)
    assert abs(running - lasted) <= ROUND_SECONDS + DOWN_SECONDS + 0.001 * lasted
    assert life.allocator.leases() == ()
    await life.ledger.close()


async def test_the_walk_meets_every_commit(database: str, times: Any) -> None:
    """The walk above goes one beyond."""
    times.wall = times.wall.replace(year=2026, month=11, day=26, hour=8)
    life = Life(times, database, "short", 0, "")
    await life.run()
    assert life.commits == ENDS - 1
    assert [sentence.split(",")[0] for _, sentence in life.warned] == [
        "This server ends in 15 minutes",
        "This server ends in 5 minutes",
    ]
    await life.ledger.close()


@pytest.mark.parametrize("group", ["short", "poor"])
async def test_brokers_that_are_killed_each_minute_move_no_end(database: str, times: Any, group: str) -> None:
    """Each of them lives for two rounds; warned is twice, and the end is the one that was told."""
    times.wall = times.wall.replace(year=2026, month=11, day=26, hour=8)
    life = Life(times, database, group, 0, "")
    began = times.now()
    for _ in range(120):
        await life.run(2.1 * ROUND_SECONDS / 3600)
        if life.ended_at is not None:
            break
        await life.ledger.close()
        times.pass_seconds(DOWN_SECONDS)
        await life.start_broker()
    assert life.ended_at is not None
    assert 3600 - 1 <= (life.ended_at - began).total_seconds() <= 3600 + 3 * ROUND_SECONDS
    assert [sentence.split(",")[0] for _, sentence in life.warned] == [
        "This server ends in 15 minutes",
        "This server ends in 5 minutes",
    ]
    await life.ledger.close()


SLEEPS = 13
"""One more than a server in turns has: reserved, its container runs, awake, two warnings, each then recorded
as given, kept asleep, asleep, its warnings forgotten; and with the new week: may wake, awake."""
UNRECORDED_SLEEPS = {(6, "after"), (7, "before")}


@pytest.mark.parametrize("strike_at", range(1, SLEEPS + 1))
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_killed_broker_s_successor_puts_to_sleep_and_lets_wake(
    database: str, times: Any, strike_at: int, when: str
) -> None:
    times.wall = times.wall.replace(year=2026, month=11, day=29, hour=20)  # a Sunday
    life = Life(times, database, "poor", strike_at, when, "turns")
    began = times.now()
    await life.run(1.25)
    kept = life.allocator.lease(LEASE)
    assert kept is not None
    assert (kept.state, life.ended_at) == (LeaseState.ASLEEP, None)
    assert kept.kept_asleep.startswith("This server sleeps. You have used 1.")
    assert kept.notice == kept.kept_asleep
    ahead = [(kept.since - at).total_seconds() for at, _ in life.warned]
    assert any(300 <= each <= 420 for each in ahead), ahead  # never without five minutes' notice
    used = sum(each.seconds for each in await life.ledger.intervals(began, "hub", "ada"))
    later = 300.0 if (strike_at, when) in UNRECORDED_SLEEPS else 0.0
    assert 3600 - 1 <= used <= 3600 + later + 3 * ROUND_SECONDS + DOWN_SECONDS
    times.pass_seconds(2.7 * 3600)
    await life.run(0.3)  # past midnight: a new week
    woken = life.allocator.lease(LEASE)
    assert woken is not None
    assert (woken.state, woken.kept_asleep, woken.notice) == (LeaseState.RUNNING, "", "")
    await life.ledger.close()


async def test_the_walk_of_a_sleep_meets_every_commit(database: str, times: Any) -> None:
    times.wall = times.wall.replace(year=2026, month=11, day=29, hour=20)
    life = Life(times, database, "poor", 0, "", "turns")
    await life.run(1.2)
    times.pass_seconds(2.7 * 3600)
    await life.run(0.3)
    assert life.commits == SLEEPS - 1
    await life.ledger.close()
