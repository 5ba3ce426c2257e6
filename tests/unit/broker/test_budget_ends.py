"""GPU-hours that run out where the server can sleep: asleep, and kept so until there are GPU-hours again."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from gpuspawner.broker.decide.place.sharing_rules import SharingRules
from gpuspawner.broker.decide.when.deadline import warns_of_end
from gpuspawner.broker.decide.when.gpu_use import GpuUse
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.leases.endings import EndingParts, Endings
from gpuspawner.broker.leases.gate import QuotaGate
from gpuspawner.broker.leases.queue_rules import queue_rules
from gpuspawner.broker.leases.rulebook import Rulebook
from gpuspawner.broker.ledger import Ledger
from gpuspawner.config.idle import IdleRules
from gpuspawner.config.quotas import Known
from gpuspawner.core.decision import DecisionKind
from gpuspawner.core.model import Device, GpuRequest, Lease, Mode, Tier
from gpuspawner.core.want import Want

GIB = 1 << 30
GPUS = (Device("GPU-1", "H100", 80 * GIB, index=0), Device("GPU-2", "H100", 80 * GIB, index=1))
SEATS = {"GPU-1": SharingRules("turns", Mode.TURNS, reserve_bytes=3 * GIB, seats=4)}
TURNS, WHOLE = Want(1, mode=Mode.TURNS, memory_bytes=24 * GIB), Want(1)
KNOWN = Known((Tier("turns", "In turns", want=TURNS), Tier("gpu", "One GPU", want=WHOLE)), None, "UTC")
QUOTAS: list[dict[str, Any]] = [{"group": "poor", "gpu_hours": 1}]
USED_UP = (
    "This server sleeps. You have used 1.0 of 1 GPU-hours this week; new ones from Monday 00:00 (UTC). "
    "Your variables are kept until it is stopped."
)


@dataclass
class Bench:
    """Rounds over servers in turns; the test says who is awake, and whose memory can't move."""

    times: Any
    path: str
    stuck: set[str] = field(default_factory=set)
    said: list[str] = field(default_factory=list)
    rested: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    ledger: Ledger = field(init=False)
    allocator: Allocator = field(init=False)
    rulebook: Rulebook = field(init=False)
    endings: Endings = field(init=False)

    async def start(self) -> None:
        """A new broker with this ledger."""
        self.ledger = self.times.make_ledger(self.path)
        await self.ledger.open()
        self.rulebook = Rulebook(self.ledger, QUOTAS, KNOWN, clock=self.times.now)
        await self.rulebook.load()
        gate = QuotaGate(self.rulebook, self.ledger, self.times.now)
        rules = queue_rules(gate, None, 86400.0)
        self.allocator = Allocator(self.ledger, clock=self.times.now, gate=gate, rules=rules)
        await self.allocator.load(GPUS, SEATS)
        parts = EndingParts(
            self.rulebook, gate, self.allocator, self, self.ledger, lambda lease: GpuUse(True), IdleRules(),
            clock=self.times.now, sleep=self.rest,
            can_sleep=lambda lease: lease.mode is Mode.TURNS and lease.id not in self.stuck,
        )  # fmt: skip
        self.endings = Endings(parts, logging.getLogger("test"))

    async def restart(self) -> None:
        await self.ledger.close()
        await self.start()

    async def rest(self, lease: Lease, reason: str) -> bool:
        self.rested.append(reason)
        await self.allocator.sleep(lease.id)
        return True

    async def tell(self, lease_id: str, sentence: str) -> None:
        await self.allocator.tell(lease_id, sentence)
        self.said.append(sentence)

    async def release(self, lease_id: str, reason: str) -> bool:
        self.ended.append(reason)
        await self.allocator.begin_release(lease_id, reason)
        await self.allocator.close(lease_id)
        return True

    async def run(self, number: int, tier: str = "turns") -> Lease:
        want = TURNS if tier == "turns" else WHOLE
        request = GpuRequest(f"{number:032x}", "hub", "ada", f"s{number}", tier, want, ("poor",))
        await self.allocator.acquire(request)
        return await self.allocator.set_running(request.lease_id, f"c{number}")

    async def minutes(self, minutes: float) -> list[str]:
        self.said.clear()
        for _ in range(round(minutes * 2)):
            self.times.pass_seconds(30)
            await self.endings.round()
        return list(self.said)

    def now(self, lease: Lease) -> Lease:
        found = self.allocator.lease(lease.id)
        assert found is not None
        return found


@pytest.fixture
async def bench(database: str, times: Any) -> AsyncIterator[Bench]:
    """Each test runs on SQLite and on PostgreSQL."""
    times.wall = times.wall.replace(year=2026, month=11, day=26, hour=8)
    bench = Bench(times, database)
    await bench.start()
    yield bench
    await bench.ledger.close()


async def used_up(bench: Bench) -> Lease:
    """A server in turns that computed for an hour."""
    lease = await bench.run(1)
    await bench.allocator.wake(lease.id)
    await bench.minutes(61)
    return bench.now(lease)


async def test_it_is_warned_of_put_to_sleep_and_kept_asleep(bench: Bench) -> None:
    lease = await bench.run(1)
    await bench.allocator.wake(lease.id)
    said = await bench.minutes(61)
    assert said == [
        "This server is put to sleep after 15 more minutes on a GPU, on Thursday 09:00 (UTC) at the "
        "earliest: your GPU-hours are used up then. Save your work.",
        "This server is put to sleep after 5 more minutes on a GPU, on Thursday 09:00 (UTC) at the "
        "earliest: your GPU-hours are used up then. Save your work.",
        USED_UP,
    ]
    assert all(warns_of_end(sentence) for sentence in said[:2])
    assert bench.rested == ["gpu_hours: This server was put to sleep: your GPU-hours were used up."]
    kept = bench.now(lease)
    assert (kept.state.value, kept.kept_asleep, kept.notice) == ("asleep", USED_UP, USED_UP)
    assert await bench.minutes(600) == []  # it stays so, and nothing more is said
    assert bench.now(lease) == kept
    assert bench.ended == []
    assert await bench.ledger.gpu_seconds("ada", bench.times.now().replace(day=1)) <= 3600 + 60


async def test_the_next_broker_keeps_it_asleep_and_says_nothing_new(bench: Bench) -> None:
    kept = await used_up(bench)
    await bench.restart()
    assert bench.now(kept) == kept
    assert await bench.minutes(5) == []
    assert bench.now(kept) == kept


@pytest.mark.parametrize("how", ["week", "grant", "quota"])
async def test_with_gpu_hours_again_it_may_wake(bench: Bench, how: str) -> None:
    kept = await used_up(bench)
    if how == "week":
        bench.times.pass_seconds(4 * 86400)
    else:
        kind = {"grant": DecisionKind.GRANT, "quota": DecisionKind.QUOTA}[how]
        document = {"grant": {"gpu_seconds": 600.0}, "quota": {"gpu_hours": 3}}[how]
        change = bench.rulebook.decision(kind, "group:poor", document, "kim", "exam")
        await bench.rulebook.decide(change)
    assert await bench.minutes(0.5) == [""]
    free = bench.now(kept)
    assert (free.kept_asleep, free.notice) == ("", "")
    await bench.allocator.wake(kept.id)
    said = await bench.minutes(9.5)
    if how != "grant":
        assert said == []
        return
    # Ten more minutes: it is warned again, and sleeps five minutes after the last warning at the soonest.
    assert [sentence.split(", on")[0] for sentence in said[:2]] == [
        "This server is put to sleep after 10 more minutes on a GPU",
        "This server is put to sleep after 5 more minutes on a GPU",
    ]
    await bench.minutes(1)
    assert bench.now(kept).kept_asleep.startswith("This server sleeps. You have used 1.2 of 1.16667")


async def test_another_notice_stays_when_it_may_wake(bench: Bench) -> None:
    kept = await used_up(bench)
    await bench.allocator.tell(kept.id, "The class ends at noon.")
    bench.times.pass_seconds(4 * 86400)
    assert await bench.minutes(0.5) == []
    assert (bench.now(kept).kept_asleep, bench.now(kept).notice) == ("", "The class ends at noon.")


async def test_of_two_servers_the_one_in_turns_sleeps_and_the_other_ends(bench: Bench) -> None:
    turns, whole = await bench.run(1), await bench.run(2, "gpu")
    said = await bench.minutes(61)
    assert sorted({sentence.split(" in ")[0].split(" after ")[0] for sentence in said}) == [
        "This server ends",
        "This server is put to sleep",
        USED_UP,
    ]
    assert [reason.split(":")[0] for reason in bench.ended] == ["gpu_hours"]
    assert bench.allocator.lease(whole.id) is None
    assert bench.now(turns).kept_asleep == USED_UP


async def test_who_sleeps_uses_nothing_and_is_not_put_to_sleep(bench: Bench) -> None:
    lease = await bench.run(1)
    assert await bench.minutes(180) == []  # the hour is not used
    assert bench.now(lease).kept_asleep == ""


async def test_memory_that_can_not_move_ends_the_server_after_its_own_warning(bench: Bench) -> None:
    kept = await used_up(bench)
    bench.stuck.add(kept.id)  # found when its memory was to be moved
    said = await bench.minutes(1)
    assert said[0] == ""
    assert said[1].startswith("This server ends in 5 minutes, on ")
    assert bench.ended == []
    await bench.minutes(5.5)
    assert bench.ended == ["gpu_hours: This server was ended: your GPU-hours were used up."]


async def test_a_group_that_can_not_be_read_changes_nothing(bench: Bench) -> None:
    kept = await used_up(bench)
    await bench.rulebook.note_properties({"poor": {"gpu_hours": -1}})
    assert await bench.minutes(2) == []
    assert bench.now(kept) == kept
