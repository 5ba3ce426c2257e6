"""Rounds over running servers: warnings, ends, extensions, lab sessions, idle GPUs; real allocator and "
"ledger."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.decide.line.backfill import SessionHold
from gpuspawner.broker.decide.line.queue import Claim
from gpuspawner.broker.decide.when.deadline import Cause, Deadline
from gpuspawner.broker.decide.when.gpu_use import GpuUse, gpu_use
from gpuspawner.broker.leases import endings as module
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.leases.endings import EndingParts, Endings, Sleep, cannot_sleep
from gpuspawner.broker.leases.gate import QuotaGate
from gpuspawner.broker.leases.queue_rules import queue_rules
from gpuspawner.broker.leases.rule_service import RuleService
from gpuspawner.broker.leases.rulebook import Rulebook
from gpuspawner.broker.ledger.end_warnings import EndWarning
from gpuspawner.broker.ledger.sessions import PastSession
from gpuspawner.config.idle import IdleRules
from gpuspawner.config.quotas import Known
from gpuspawner.core.decision import Decision, DecisionKind, Drain
from gpuspawner.core.errors import (
    LeaseConflict,
    LedgerFault,
    NotAllowed,
    QuotaGpuHours,
    SessionReserved,
    SessionUnfit,
)
from gpuspawner.core.model import DeviceHealth, GpuRequest, Lease, LeaseState, Tier
from gpuspawner.core.session import EndAction
from gpuspawner.core.want import Want
from gpuspawner.node.api import Usage
from gpuspawner.node.inventory import NvmlInventory
from gpuspawner.node.processes import Process
from gpuspawner.node.usage import UsageMonitor, UsageSettings

from tests.nvml import scripted
from tests.nvml.scripted import Gpu, Script
from tests.soon import SOON_SECONDS
from tests.unit.lease_examples import GPU0, GPU1
from tests.unit.lease_examples import lease as example

DEVICES = {device.uuid: device for device in (GPU0, GPU1)}
KNOWN = Known((Tier("cpu", "CPU"), Tier("gpu", "One GPU", want=Want(1))), None, "Europe/Berlin")
QUOTAS: list[dict[str, Any]] = [
    {"group": "short", "session_hours": 1, "extend_hours": 0.5},
    {"group": "poor", "gpu_hours": 2},
    {"group": "kept", "minimum_hours": 1.5},
    {"group": "daily", "gpu_hours": 23.5, "period": "day"},
]

LAB = {
    "name": "cs231n", "group": "class", "tier": "gpu", "seats": 1, "first": "2026-11-26",
    "begins": "10:00", "length_seconds": 7200,
}  # fmt: skip


@dataclass
class Bench:
    """What a round works with; it is the service itself: it tells, and ends without Docker."""

    times: Any
    ledger: Any
    allocator: Allocator
    rulebook: Rulebook
    rules: RuleService
    gate: QuotaGate
    said: list[tuple[str, str]] = field(default_factory=list)
    usage: dict[str, Usage] = field(default_factory=dict)
    read: Callable[[], Awaitable[object]] | None = None
    endings: Endings = field(init=False)

    async def tell(self, lease_id: str, sentence: str) -> None:
        if await self.allocator.tell(lease_id, sentence) is not None:
            self.said.append((lease_id[-1], sentence))

    async def release(self, lease_id: str, reason: str) -> bool:
        self.said.append((lease_id[-1], reason))
        await self.allocator.begin_release(lease_id, reason)
        await self.allocator.close(lease_id)
        return True

    async def run(self, number: int, *groups: str, user: str = "ada") -> Lease:
        """A lease that runs, or waits where no device is free."""
        request = GpuRequest(f"{number:032x}", "hub", user, f"s{number}", "gpu", Want(1), groups)
        lease = await self.allocator.acquire(request)
        if lease.state is LeaseState.RESERVED:
            return await self.allocator.set_running(lease.id, f"c{number}")
        return lease

    def restart(self, idle: IdleRules | None = None) -> None:
        """The broker starts: it remembers what the ledger keeps, notices too, and nothing of its rounds."""
        self.endings = Endings(
            EndingParts(
                rulebook=self.rulebook,
                gate=self.gate,
                allocator=self.allocator,
                service=self,
                ledger=self.ledger,
                gpu_use=lambda lease: gpu_use(lease, DEVICES, self.usage, self.times.now()),
                idle=idle or IdleRules(),
                timezone="Europe/Berlin",
                clock=self.times.now,
            ),
            logging.getLogger("test"),
        )

    def notice(self, number: int) -> str:
        """What the user of the lease reads now."""
        lease = self.allocator.lease(f"{number:032x}")
        return "" if lease is None else lease.notice

    async def minutes(
        self,
        minutes: float,
        *,
        kernels: Iterable[int] = (),
        busy: bool = False,
        active_at: datetime | None = None,
    ) -> list[tuple[str, str]]:
        """Time passes with a round each half minute; what was said meanwhile."""
        self.said.clear()
        for _ in range(round(minutes * 2)):
            self.times.pass_seconds(30)
            if self.read is not None:
                await self.read()
            for number in kernels:
                self.endings.note_kernels(f"{number:032x}", busy, active_at)
            await self.endings.round()
        return list(self.said)


@pytest.fixture
def path(database: str) -> str:
    """Where the ledger is: each test runs on SQLite and on PostgreSQL."""
    return database


@pytest.fixture
async def bench(path: str, times: Any) -> AsyncIterator[Bench]:
    times.wall = times.wall.replace(year=2026, month=11, day=26, hour=8)  # a Thursday, 9 o'clock in Berlin
    ledger = times.make_ledger(path)
    await ledger.open()
    rulebook = Rulebook(ledger, QUOTAS, KNOWN, clock=times.now)
    gate = QuotaGate(rulebook, ledger, times.now)
    rules = queue_rules(gate, None, 86400.0)
    allocator = Allocator(ledger, clock=times.now, gate=gate, rules=rules)
    await allocator.load([GPU0, GPU1])
    gate.floor = allocator
    service = RuleService(rulebook, gate, allocator, ledger, times.now)
    found = Bench(times, ledger, allocator, rulebook, service, gate)
    found.restart()
    yield found
    await ledger.close()


async def test_a_session_ends_after_both_warnings(bench: Bench) -> None:
    await bench.run(1, "short")
    assert await bench.minutes(44.5) == []
    why = "the longest time that your quota allows is over then. Save your work."
    assert await bench.minutes(15.5) == [
        ("1", f"This server ends in 15 minutes, on Thursday 10:00 (Europe/Berlin): {why}"),
        ("1", f"This server ends in 5 minutes, on Thursday 10:00 (Europe/Berlin): {why}"),
        ("1", "session_limit: This server was ended: the longest time that your quota allows was over."),
    ]
    assert bench.allocator.leases() == ()


async def test_an_extension_takes_the_warning_back_and_outlives_a_restart(bench: Bench) -> None:
    lease = await bench.run(1, "short")
    await bench.minutes(50)
    assert await bench.rules.extend(lease.id, 3600, "ada") == 1800
    assert await bench.minutes(1) == [("1", "")]
    with pytest.raises(NotAllowed, match="Your quota allows no further extension"):
        await bench.rules.extend(lease.id, 60, lease.user)
    with pytest.raises(NotAllowed, match=f"The quota of {lease.user} allows no further extension"):
        await bench.rules.extend(lease.id, 60, "ines")
    await bench.rulebook.load()
    assert [said[0:2] for said in await bench.minutes(39.5)][-1][1].startswith("session_limit: ")
    with pytest.raises(LeaseConflict):
        await bench.rules.extend(lease.id, 60, "ada")


async def test_nobody_extends_while_others_wait_or_without_an_end(bench: Bench) -> None:
    short, free = await bench.run(1, "short"), await bench.run(2, user="bob")
    with pytest.raises(NotAllowed, match="This server has no end"):
        await bench.rules.extend(free.id, 60, "bob")
    await bench.run(3, user="eve")
    with pytest.raises(NotAllowed, match="1 other waits for such a GPU"):
        await bench.rules.extend(short.id, 60, "ada")


async def test_why_a_session_can_t_be_extended_is_the_reason_that_applies(bench: Bench) -> None:
    short, free = await bench.run(1, "short"), await bench.run(2, user="bob")
    why = bench.rules.why_not_extended
    assert (why(short.id), why(free.id)) == ("", "")
    waits = await bench.run(3, user="eve")
    assert why(short.id) == "You can't extend it now: 1 other waits for such a GPU."
    await bench.release(waits.id, "left")
    await bench.rules.extend(short.id, 1790, "ada")  # what is left is less than a minute
    assert why(short.id) == "You can't extend it further: your quota allows 0.5 hours in all."
    await bench.rules.change_quota("group:short", {"extend_hours": 0}, "noether", "")
    assert why(short.id) == "Your quota doesn't let you extend it."


async def test_gpu_hours_that_run_out_end_all_servers_of_the_user(bench: Bench) -> None:
    await bench.run(1, "poor")
    await bench.run(2, "poor")
    said = await bench.minutes(61)
    assert [(number, sentence.split(",")[0].split(":")[0]) for number, sentence in said] == [
        ("1", "This server ends in 15 minutes"),
        ("2", "This server ends in 15 minutes"),
        ("1", "This server ends in 5 minutes"),
        ("2", "This server ends in 5 minutes"),
        ("1", "gpu_hours"),
        ("2", "gpu_hours"),
    ]
    (spent,) = (await bench.rules.standing("hub", "ada", ["poor"])).spent
    assert spent.used_gpu_seconds == pytest.approx(2 * 3600, abs=60)


async def test_a_day_of_25_hours_has_the_gpu_hours_of_a_day(bench: Bench) -> None:
    """On 25 October 2026 the clocks in Berlin go back; ada's server runs from midnight on."""
    bench.times.wall = bench.times.wall.replace(month=10, day=24, hour=22)
    await bench.run(1, "daily")
    bench.times.pass_seconds(23 * 3600)
    said = await bench.minutes(31)
    why = "(Europe/Berlin): your GPU-hours are used up then. Save your work."
    assert said == [
        ("1", f"This server ends in 15 minutes, on Sunday 22:30 {why}"),
        ("1", f"This server ends in 5 minutes, on Sunday 22:30 {why}"),
        ("1", "gpu_hours: This server was ended: your GPU-hours were used up."),
    ]
    sentence = r"You have used 23\.5 of 23\.5 GPU-hours today; new ones from Monday 00:00 \(Europe/Berlin\)"
    with pytest.raises(QuotaGpuHours, match=sentence):
        await bench.run(2, "daily")
    bench.times.pass_seconds(3600 + 1800)  # midnight: 25 hours after the one before
    assert (await bench.run(3, "daily")).state is LeaseState.RUNNING


async def test_in_a_day_of_23_hours_23_and_a_half_are_enough(bench: Bench) -> None:
    """On 28 March 2027 the clocks in Berlin go forward; the next day has its own GPU-hours."""
    bench.times.wall = bench.times.wall.replace(year=2027, month=3, day=27, hour=23)
    await bench.run(1, "daily")
    bench.times.pass_seconds(22.7 * 3600)
    assert await bench.minutes(60) == []
    bench.times.pass_seconds(3600)
    (spent,) = (await bench.rules.standing("hub", "ada", ["daily"])).spent
    assert spent.used_gpu_seconds == pytest.approx(1.7 * 3600, abs=31)


async def test_a_session_over_a_change_of_the_clocks_is_as_long_as_its_limit(bench: Bench) -> None:
    """From half past two to half past two, an hour later."""
    bench.times.wall = bench.times.wall.replace(month=10, day=25, hour=0, minute=30)
    await bench.run(1, "short")
    assert await bench.minutes(44.5) == []
    said = await bench.minutes(15.5)
    assert said[0][1].startswith("This server ends in 15 minutes, on Sunday 02:30 (Europe/Berlin)")
    assert said[-1][1].startswith("session_limit: ")


async def test_a_grant_in_time_takes_the_warning_back(bench: Bench) -> None:
    await bench.run(1, "poor")
    assert len(await bench.minutes(106)) == 1
    await bench.rules.grant("user:ada", 5, "noether", "deadline")
    assert await bench.minutes(20) == [("1", "")]


async def test_who_waits_leaves_the_queue_when_the_hours_are_used_up(bench: Bench) -> None:
    await bench.run(1, "poor")
    await bench.run(2, user="bob")
    waiting = await bench.run(3, "poor")
    assert waiting.state is LeaseState.WAITING
    await bench.minutes(121)
    ended = await bench.ledger.find(waiting.id)
    assert ended.state is LeaseState.CLOSED
    assert ended.reason.startswith(
        "quota_gpu_hours: You have used 2.0 of 2 GPU-hours this week; new ones from"
    )


async def test_a_lab_session_moves_out_who_came_last(bench: Bench) -> None:
    await bench.rules.save_session({**LAB, "lead_seconds": 0}, "noether", "")
    await bench.run(1)
    bench.times.pass_seconds(60)
    await bench.run(2, user="bob")
    said = await bench.minutes(59)
    assert [(number, sentence.split(":")[0]) for number, sentence in said] == [
        ("2", "This server ends in 15 minutes, on Thursday 10"),
        ("2", "This server ends in 5 minutes, on Thursday 10"),
        ("2", "lab_session"),
    ]
    assert [lease.user for lease in bench.allocator.leases()] == ["ada"]


async def test_a_session_that_doesn_t_fit_names_the_gpus_that_don_t_count(bench: Bench) -> None:
    """Drained, out of service; only where places are missing, not where the dates are wrong."""
    three = {**LAB, "seats": 3}

    async def refusal(document: dict[str, Any] = three) -> str:
        with pytest.raises(SessionUnfit) as caught:
            await bench.rules.save_session(document, "noether", "")
        return caught.value.message

    why = (
        "The session 'cs231n' needs 3 places of the tier 'One GPU' on Thursday 10:00 (Europe/Berlin), and "
        "{}, or choose another time or tier."
    )
    assert await refusal() == why.format("2 fit: ask for 2")
    await bench.allocator.set_drained({GPU1.uuid: Drain(bench.times.now(), "root", "")})
    one = why.format("1 fits: ask for 1")
    assert await refusal() == f"{one} GPU 1 is drained now: it doesn't count, but may be back by then."
    await bench.allocator.set_health(DeviceHealth(GPU0.uuid, False, "XID 79"))
    both = "GPU 0 is out of service and GPU 1 is drained now: they don't count, but may be back by then."
    assert (await refusal()).endswith(f"none fits: choose another time or tier. {both}")
    assert "drained" not in await refusal({**three, "first": "2025-11-26"})


async def test_a_lab_session_moves_out_nobody_within_their_minimum(bench: Bench) -> None:
    """Bob came last and may keep his GPU for 90 minutes, so ada goes, who came first."""
    await bench.rules.save_session({**LAB, "lead_seconds": 0}, "noether", "")
    await bench.run(1)
    bench.times.pass_seconds(60)
    await bench.run(2, "kept", user="bob")
    said = await bench.minutes(59)
    assert [(number, sentence.split(":")[0]) for number, sentence in said][-1] == ("1", "lab_session")
    assert {number for number, _ in said} == {"1"}
    assert [lease.user for lease in bench.allocator.leases()] == ["bob"]


async def test_where_all_are_within_their_minimum_the_first_goes_once_it_is_over(bench: Bench) -> None:
    """Both came at 9:05 and may stay until 10:35; the class begins at 10:00, its place is kept until 11."""
    await bench.rules.save_session({**LAB, "lead_seconds": 0, "grace_seconds": 3600}, "noether", "")
    bench.times.pass_seconds(300)
    await bench.run(1, "kept")
    await bench.run(2, "kept", user="bob")
    assert await bench.minutes(89.5) == []
    said = [(number, sentence.split(":")[0]) for number, sentence in await bench.minutes(11)]
    assert len({number for number, _ in said}) == 1
    assert said[-1][1] == "lab_session"
    assert len(bench.allocator.leases()) == 1


async def test_an_idle_gpu_stays_within_its_minimum(bench: Bench) -> None:
    """Idle for more than an hour, and eve waits: ada keeps her GPU until her 90 minutes are over."""
    bench.usage.update({GPU0.uuid: Usage(0, 0.0), GPU1.uuid: Usage(0, 90.0)})
    await bench.run(1, "kept")
    await bench.run(2, user="bob")
    await bench.run(3, user="eve")
    said = await bench.minutes(89.5, kernels=[1, 2])
    assert [sentence.split(". ")[1].split(":")[0:2] for _, sentence in said] == [
        ["It will be stopped if somebody waits for it on Thursday 10", "30 (Europe/Berlin) or later"]
    ] * 2
    ((number, reason),) = await bench.minutes(0.5, kernels=[1, 2])
    assert (number, reason.split(":")[0]) == ("1", "idle")


async def test_members_who_have_their_places_already_move_out_nobody(bench: Bench) -> None:
    await bench.rules.save_session(LAB, "noether", "")
    await bench.run(1, "class")
    await bench.run(2, user="bob")
    assert await bench.minutes(70) == []


async def test_an_idle_gpu_is_given_back_only_when_somebody_waits(bench: Bench) -> None:
    bench.usage.update({GPU0.uuid: Usage(0, 0.0), GPU1.uuid: Usage(0, 90.0)})
    await bench.run(1)
    await bench.run(2, user="bob")
    said = await bench.minutes(90, kernels=[1, 2])
    assert [(number, sentence.split(" minutes")[0]) for number, sentence in said] == [
        ("1", "For 15"),
        ("1", "For 55"),
    ]
    await bench.run(3, user="eve")
    ((number, reason),) = await bench.minutes(0.5, kernels=[1, 2])
    assert (number, reason) == (
        "1", "idle: This server was stopped because its GPU was not used for 90 minutes.",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("percent", "kernels", "busy"), [(5.0, [1], False), (0.0, [1], True), (0.0, [], False)]
)
async def test_what_computes_or_is_not_known_is_not_idle(
    bench: Bench, percent: float, kernels: list[int], busy: bool
) -> None:
    """A process outside of the kernels, a silent cell, and a hub that says nothing."""
    bench.usage[GPU0.uuid] = Usage(0, percent)
    await bench.run(1)
    assert await bench.minutes(70, kernels=kernels, busy=busy) == []


class Processes:
    """Pid n belongs to the container of lease n."""

    def look_all(self, pids: Iterable[int]) -> dict[int, Process]:
        return {pid: Process(pid, 1, "python3", (f"c{pid}",)) for pid in pids}

    def cpu_seconds(self, process: Process) -> float | None:
        return 0.0

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def nvml(tmp_path: Path) -> Iterator[tuple[Script, NvmlInventory]]:
    """The bench's two GPUs as NVML has them."""
    with scripted.loaded(tmp_path / "nvml") as script:
        script.gpus = [Gpu(GPU0.uuid), Gpu(GPU1.uuid)]
        script.write()
        inventory = NvmlInventory()
        yield script, inventory
        inventory.close()


async def test_a_silent_computation_is_not_idle_and_a_forgotten_40_gb_are(
    bench: Bench, nvml: tuple[Script, NvmlInventory]
) -> None:
    """One GPU each, both kernels idle: a process outside of them computes five minutes of each fourteen.

    On the forgotten one's GPU computes somebody else.
    """
    script, inventory = nvml
    containers = frozenset({"c1", "c2"})
    monitor = UsageMonitor(inventory, logging.getLogger("test"), UsageSettings(5, bench.times.now, Processes))
    monitor.watch(DEVICES, containers)

    async def read() -> None:
        await monitor.round()
        bench.usage = monitor.now()

    bench.read = read
    await bench.run(1)
    await bench.run(2, user="bob")
    await bench.run(3, user="eve")
    script.process(2, 40 << 30, gpu=1)
    script.use(77, gpu=1)
    said: list[tuple[str, str]] = []
    for _ in range(5):
        line = script.use(1)
        said += await bench.minutes(5, kernels=[1, 2])
        script.drop(line)
        said += await bench.minutes(9, kernels=[1, 2])
    assert [(number, sentence.split(" minutes")[0]) for number, sentence in said] == [
        ("2", "For 15"),
        ("2", "For 55"),
        ("2", "idle: This server was stopped because its GPU was not used for 60"),
    ]
    await monitor.stop()


async def test_used_again_the_warning_is_taken_back_and_others_notices_stay(bench: Bench) -> None:
    bench.usage[GPU0.uuid] = Usage(0, 0.0)
    lease = await bench.run(1)
    assert len(await bench.minutes(16, kernels=[1])) == 1
    bench.usage[GPU0.uuid] = Usage(0, 50.0)
    assert await bench.minutes(1, kernels=[1]) == [("1", "")]
    bench.usage[GPU0.uuid] = Usage(0, 0.0)
    await bench.minutes(16, kernels=[1])
    await bench.allocator.tell(lease.id, "Your GPU is hot.")
    bench.usage[GPU0.uuid] = Usage(0, 50.0)
    assert await bench.minutes(1, kernels=[1]) == []
    now = bench.allocator.lease(lease.id)
    assert now is not None
    assert now.notice == "Your GPU is hot."
    assert now.since + timedelta(minutes=33) <= bench.times.now()


QUICK = IdleRules(60, 120, 420, only_when_waiting=False)
NOT_MEASURED = "(whether its GPU was used can't be measured here)"


def quick(minutes: int, at: str) -> str:
    """The warning with the rules QUICK on a simulated GPU."""
    time = "1 minute" if minutes == 1 else f"{minutes} minutes"
    return (
        f"For {time} no notebook of this server has computed anything {NOT_MEASURED}. It will be "
        f"stopped on Thursday {at} (Europe/Berlin): run a cell to keep it, or save your work and stop it."
    )


async def test_after_a_restart_the_old_warning_goes_and_users_are_warned_again(bench: Bench) -> None:
    """Simulated GPUs: the kernels alone tell. What an earlier broker promised, this one doesn't keep."""
    bench.usage[GPU0.uuid] = Usage(0, None)
    bench.restart(QUICK)
    await bench.run(1)
    nine = bench.times.now()
    said = await bench.minutes(2, kernels=[1], active_at=nine)
    assert said == [("1", quick(1, "09:07")), ("1", quick(2, "09:07"))]
    bench.times.pass_seconds(180)
    bench.restart(QUICK)
    assert await bench.minutes(0.5) == [("1", "")]  # before the hub's first report
    said = await bench.minutes(6, kernels=[1], active_at=nine)
    assert said == [
        ("1", quick(6, "09:07")),
        ("1", quick(6, "09:11")),
        ("1", "idle: This server was stopped because no notebook of it computed anything for 12 minutes."),
    ]


async def test_after_a_restart_a_user_who_computes_reads_no_old_warning(bench: Bench) -> None:
    bench.usage[GPU0.uuid] = Usage(0, None)
    bench.restart(QUICK)
    await bench.run(1)
    await bench.minutes(2, kernels=[1], active_at=bench.times.now())
    bench.restart(QUICK)
    assert await bench.minutes(1, kernels=[1], busy=True) == [("1", "")]
    assert await bench.minutes(5, kernels=[1], busy=True) == []


async def test_after_a_restart_what_was_told_of_an_end_is_told_and_others_notices_stay(bench: Bench) -> None:
    """One session is within its last quarter of an hour, one was extended, one has a notice of its own."""
    bench.restart(QUICK)
    await bench.run(1, "short")
    await bench.run(2, "short", user="bob")
    await bench.minutes(50)
    told = bench.notice(1)
    assert [each.warnings for each in await bench.ledger.end_warnings()] == [1, 1]
    await bench.rules.extend(f"{2:032x}", 1800, "bob")
    bench.restart(QUICK)
    assert await bench.minutes(0.5) == [("2", "")]
    assert [each.lease_id[-1] for each in await bench.ledger.end_warnings()] == ["1"]
    await bench.allocator.tell(f"{2:032x}", "Your GPU is hot.")
    bench.restart(QUICK)
    assert await bench.minutes(0.5) == []
    assert [bench.notice(number) for number in (1, 2)] == [told, "Your GPU is hot."]


async def test_no_number_of_restarts_moves_an_end_that_was_told(bench: Bench) -> None:
    """Each round is the first of another broker; both warnings are given once."""
    await bench.run(1, "short")
    await bench.minutes(44.5)
    said: list[tuple[str, str]] = []
    for _ in range(31):
        bench.restart()
        said += await bench.minutes(0.5)
    assert [sentence.split(",")[0].split(":")[0] for _, sentence in said] == [
        "This server ends in 15 minutes",
        "This server ends in 5 minutes",
        "session_limit",
    ]
    assert bench.allocator.leases() == ()


async def test_an_end_that_passed_while_no_broker_ran_needs_no_other_warning(bench: Bench) -> None:
    """Both were warned twice; but one of them had a warning that said less, and gets five minutes more."""
    await bench.run(1, "short")
    await bench.minutes(3)
    await bench.run(2, "short", user="bob")
    await bench.minutes(53)
    bench.times.pass_seconds(1800)
    bench.restart()
    said = await bench.minutes(6)
    assert [(number, sentence.split(",")[0].split(":")[0]) for number, sentence in said] == [
        ("1", "session_limit"),
        ("2", "This server ends in 5 minutes"),
        ("2", "session_limit"),
    ]


async def test_a_warning_that_was_not_recorded_is_recorded_later_and_not_given_twice(bench: Bench) -> None:
    """The ledger's disk is full after the notice was written."""
    await bench.run(1, "short")
    await bench.minutes(44.5)
    note = bench.ledger.note_end_warnings

    async def full(*given: object, withdrawn: object = ()) -> None:
        raise LedgerFault("the disk is full")

    bench.ledger.note_end_warnings = full
    with pytest.raises(LedgerFault):
        await bench.minutes(0.5)
    assert [sentence.split(",")[0] for _, sentence in bench.said] == ["This server ends in 15 minutes"]
    bench.ledger.note_end_warnings = note
    assert await bench.minutes(0.5) == []
    assert [each.warnings for each in await bench.ledger.end_warnings()] == [1]


async def test_warnings_of_what_has_ended_are_forgotten_and_other_brokers_keep_theirs(
    bench: Bench, path: str
) -> None:
    other = bench.times.make_ledger(path, owner="another")
    await other.open()
    theirs = EndWarning("f" * 32, 2, bench.times.now(), "This server ends in 5 minutes")
    await other.note_end_warnings(theirs)
    await bench.run(1, "short")
    await bench.minutes(1)
    await bench.run(2, "short", user="bob")
    await bench.minutes(59.5)
    assert [lease.user for lease in bench.allocator.leases()] == ["bob"]
    bench.times.pass_seconds(60)
    await bench.run(3, "short", user="eve")
    await bench.minutes(50)
    assert [(each.lease_id[-1], each.warnings) for each in await bench.ledger.end_warnings()] == [("3", 1)]
    assert await other.end_warnings() == (theirs,)
    await other.close()


async def test_used_again_a_warning_of_the_sessions_end_comes_back(bench: Bench) -> None:
    """The warning of idleness had taken its place."""
    bench.usage[GPU0.uuid] = Usage(0, 0.0)
    bench.restart(QUICK)
    await bench.run(1, "short")
    end = (await bench.minutes(46, kernels=[1], busy=True))[-1]
    idle = (await bench.minutes(2, kernels=[1]))[0]
    assert [end[1].split(",")[0], idle[1].split(" server")[0]] == [
        "This server ends in 15 minutes",
        "For 1 minute this",
    ]
    assert await bench.minutes(0.5, kernels=[1], busy=True) == [end]


async def test_a_warning_that_could_not_be_given_or_removed_is_tried_again(bench: Bench) -> None:
    """The ledger's disk is full for one round."""
    bench.usage[GPU0.uuid] = Usage(0, None)
    bench.restart(QUICK)
    await bench.run(1)
    nine, tell = bench.times.now(), bench.allocator.tell

    async def full(lease_id: str, sentence: str) -> None:
        raise LedgerFault("the disk is full")

    async def fails(busy: bool) -> None:
        bench.allocator.tell = full  # type: ignore[method-assign, assignment]
        with pytest.raises(LedgerFault):
            await bench.minutes(0.5, kernels=[1], busy=busy, active_at=nine)
        bench.allocator.tell = tell  # type: ignore[method-assign]

    await bench.minutes(0.5, kernels=[1], active_at=nine)
    await fails(busy=False)
    assert await bench.minutes(0.5, kernels=[1], active_at=nine) == [("1", quick(2, "09:07"))]
    await fails(busy=True)
    assert await bench.minutes(0.5, kernels=[1], busy=True) == [("1", "")]


async def test_who_starts_in_the_lead_of_a_session_is_told_its_end_or_refused(bench: Bench) -> None:
    await bench.rules.save_session({**LAB, "seats": 2}, "noether", "")
    bench.times.pass_seconds(600)  # 9:10 in Berlin; kept from 9:00 on
    lease = await bench.run(1)
    when = "This server ends on Thursday 10:00 (Europe/Berlin)"
    sentence = f"{when}, when the lab session 'cs231n' needs its GPU."
    assert await bench.minutes(1) == [("1", sentence)]
    said = await bench.minutes(49)
    assert [(number, each.split(":")[0]) for number, each in said] == [
        ("1", "This server ends in 15 minutes, on Thursday 10"),
        ("1", "This server ends in 5 minutes, on Thursday 10"),
        ("1", "lab_session"),
    ]
    assert bench.allocator.lease(lease.id) is None
    with pytest.raises(SessionReserved, match="The lab session 'cs231n' has these GPUs from 10:00 to 12:00"):
        await bench.run(2)
    members = [await bench.run(number, "class", user=f"m{number}") for number in (3, 4)]
    assert [lease.state for lease in members] == [LeaseState.RUNNING] * 2


async def test_who_waited_until_a_class_was_over_is_not_ended_for_it(bench: Bench) -> None:
    """Somebody who would have had to end for it waits behind a request for two GPUs, and begins after it."""
    await bench.rules.save_session(LAB, "noether", "")
    bench.times.pass_seconds(600)  # 9:10 in Berlin; kept from 9:00 on
    await bench.run(1)
    pair = await bench.allocator.acquire(GpuRequest(f"{2:032x}", "hub", "eve", "", "gpu", Want(2)))
    waits = await bench.run(3, user="bob")
    assert [pair.state, waits.state] == [LeaseState.WAITING] * 2
    assert bench.gate.cap_of(waits.id) is not None
    bench.times.pass_seconds(3 * 3600)
    await bench.allocator.begin_release(pair.id, "cancelled")
    lease = await bench.allocator.set_running(waits.id, "c3")
    assert bench.gate.claim_of(lease) == Claim()
    assert await bench.minutes(2) == []


async def test_a_session_that_ends_before_is_not_touched_and_unused_places_go_back(bench: Bench) -> None:
    await bench.rules.save_session({**LAB, "seats": 2, "begins": "11:30"}, "noether", "")
    bench.times.pass_seconds(100 * 60)  # 10:40; kept from 10:30 on, and 'short' may run an hour
    with_lab = await bench.run(1, "short")
    assert bench.rules.rulebook.rules.sessions["cs231n"].grace_seconds == 900
    assert (await bench.minutes(1))[0][1].startswith("This server ends on Thursday 11:30")
    await bench.release(with_lab.id, "stopped")
    bench.times.pass_seconds(65 * 60)  # 11:46: the grace is over, and nobody came
    assert (await bench.run(2)).state is LeaseState.RUNNING
    assert await bench.minutes(1) == []


async def test_what_the_queue_is_told_of_quotas_and_sessions(bench: Bench) -> None:
    """Plain values: the queue knows nothing of quotas."""
    change = {"priority": 5, "weight": 2, "guaranteed_devices": 1, "session_hours": 2}
    await bench.rules.change_quota("group:phd", change, "noether", "")
    await bench.rules.change_quota("group:class", {"weight": 3}, "noether", "")
    lease = await bench.run(1, "phd", "class")
    assert bench.rules.rulebook.allowance("ada", ["phd", "class"]).priority == 5
    assert bench.gate.claim_of(lease) == Claim("phd", 5, 2.0, 1.0, 7200.0)
    assert bench.gate.claim_of(await bench.run(2, user="bob")) == Claim("", 0, 1.0, 0.0, None)
    assert bench.gate.holds(bench.times.now()) == []
    await bench.rules.save_session(LAB, "noether", "")
    bench.times.pass_seconds(600)
    assert bench.gate.claim_of(lease) == Claim("class", 5, 3.0, 0.0, 7200.0)
    start = bench.times.now().replace(hour=9, minute=0).timestamp()
    kept = SessionHold("class", Want(1), 1, start - 3600, start, start + 7200, start + 900, True)
    assert bench.gate.holds(bench.times.now()) == [kept]
    bench.times.pass_seconds(65 * 60)
    assert bench.gate.holds(bench.times.now()) == []  # a quarter of an hour after the beginning


async def test_a_place_that_comes_free_in_the_lead_is_for_the_class(bench: Bench) -> None:
    """Two GPUs, a class that needs both: whoever waits doesn't get the one that is given back before."""
    await bench.rules.save_session({**LAB, "seats": 2, "lead_seconds": 3000}, "noether", "")
    await bench.run(1)  # at nine in Berlin; kept from ten past nine on
    early = await bench.run(2, user="eve")
    waits = await bench.run(3, user="bob")
    await bench.minutes(20)
    await bench.release(early.id, "stopped")
    await bench.minutes(5)
    assert [(lease.user, lease.state) for lease in bench.allocator.leases()] == [
        ("ada", LeaseState.RUNNING),
        ("bob", LeaseState.WAITING),
    ]
    said = await bench.minutes(36)
    assert said[-1][1].startswith("lab_session: ")
    members = [await bench.run(number, "class", user=f"m{number}") for number in (4, 5)]
    assert [lease.state for lease in members] == [LeaseState.RUNNING] * 2
    still = bench.allocator.lease(waits.id)
    assert still is not None
    assert still.state is LeaseState.WAITING


async def test_a_server_whose_gpu_can_t_be_measured_and_never_had_a_kernel_is_idle_from_its_start(
    bench: Bench,
) -> None:
    """As on MIG instances and simulated GPUs."""
    bench.endings = replace_use(bench, GpuUse(False))
    for number, user in enumerate(("ada", "bob", "eve"), 1):
        await bench.run(number, user=user)
    said = [each for each in await bench.minutes(62, kernels=[1]) if each[0] == "1"]
    assert [sentence.split(" minutes")[0] for _, sentence in said] == [
        "For 15",
        "For 55",
        "idle: This server was stopped because no notebook of it computed anything for 60",
    ]
    assert bench.notice(2) == ""  # the hub says nothing of its kernels: not taken for idle


async def test_what_kernels_did_stays_known_when_they_are_gone(bench: Bench) -> None:
    bench.endings = replace_use(bench, GpuUse(False))
    lease = await bench.run(1)
    await bench.minutes(30, kernels=[1], busy=True)
    worked_until = bench.times.now()
    await bench.minutes(10, kernels=[1])  # they were shut down: nothing is busy, and no time is told
    assert bench.endings.idle_since(lease) == worked_until


@pytest.mark.parametrize("can", [True, False])
async def test_where_a_mode_can_sleep_that_is_done_in_place_of_the_stop(bench: Bench, can: bool) -> None:
    """The seam for turns: one function."""
    asleep: list[tuple[str, str]] = []

    async def sleep(lease: Lease, reason: str) -> bool:
        asleep.append((lease.id[-1], reason.split(":")[0]))
        return can

    bench.usage[GPU0.uuid] = Usage(0, 0.0)
    bench.endings = replace_use(
        bench, GpuUse(True), sleep, IdleRules(60, 120, 420, EndAction.SLEEP, only_when_waiting=False)
    )
    await bench.run(1)
    await bench.minutes(7.5, kernels=[1])
    assert asleep == [("1", "idle")]
    assert len(bench.allocator.leases()) == (1 if can else 0)


def replace_use(
    bench: Bench, use: GpuUse, sleep: Sleep = cannot_sleep, idle: IdleRules | None = None
) -> Endings:
    """Rounds of a broker whose node says that of every lease."""
    bench.restart()
    parts = EndingParts(
        rulebook=bench.rulebook,
        gate=bench.gate,
        allocator=bench.allocator,
        service=bench,
        ledger=bench.ledger,
        gpu_use=lambda lease: use,
        idle=idle or IdleRules(),
        timezone="Europe/Berlin",
        clock=bench.times.now,
        sleep=sleep,
        can_sleep=lambda lease: sleep is not cannot_sleep,
    )
    return Endings(parts, logging.getLogger("test"))


async def test_after_a_change_the_next_round_comes_soon(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An extension is on the page within seconds, not after a whole interval."""
    monkeypatch.setattr(module, "GATHER_SECONDS", 0.01)
    lease = await bench.run(1, "short")
    await bench.endings.round()
    before = bench.endings.deadline_of(lease.id)
    assert before is not None
    loop = asyncio.create_task(bench.endings.run())
    try:
        await asyncio.sleep(0.05)
        await bench.rules.extend(lease.id, 1800.0, "ada")
        async with asyncio.timeout(SOON_SECONDS):
            while bench.endings.deadline_of(lease.id) == before:
                await asyncio.sleep(0.01)
    finally:
        loop.cancel()
    after = bench.endings.deadline_of(lease.id)
    assert after is not None
    assert after.at - before.at == timedelta(minutes=30)


async def beyond(bench: Bench) -> None:
    """Ada's second server and bob's first are beyond a quota that is changed, and end for it."""
    await bench.run(1, "class")
    bench.times.pass_seconds(60)
    await bench.run(2, "class")
    change = "group:class", {"devices": 1}, "noether", "another class"
    assert await bench.rules.change_quota(*change) == ()
    assert await bench.minutes(30) == []  # nobody was told to end
    told = await bench.rules.change_quota(*change, end_servers=True)
    assert [lease.id[-1] for lease in told] == ["2"]


async def test_a_running_server_beyond_a_changed_quota_ends_if_that_is_said(bench: Bench) -> None:
    await beyond(bench)
    bench.restart()  # what was decided is in the ledger
    await bench.rulebook.load()
    at = "on Thursday 09:46 (Europe/Berlin): your quota was changed. Save your work."
    assert await bench.minutes(16) == [
        ("2", f"This server ends in 14 minutes, {at}"),
        ("2", f"This server ends in 5 minutes, {at}"),
        ("2", "quota_changed: This server was ended: your quota was changed."),
    ]
    assert [lease.id[-1] for lease in bench.allocator.leases()] == ["1"]


async def test_an_end_that_a_quota_puts_into_the_past_is_everywhere_the_one_that_was_told(
    bench: Bench,
) -> None:
    """What pages and the API read, and what a forecast reckons with: five minutes after the notice."""
    ada = await bench.run(1)
    await bench.run(2, user="bob")
    waits = await bench.run(3, user="eve")
    began, ended = bench.times.now() - timedelta(hours=9), bench.times.now() - timedelta(hours=1)
    past = example("d" * 32, LeaseState.CLOSED)
    bench.allocator.waits.learn_past([PastSession(past, began, ended, 28800.0)] * 3)
    await bench.minutes(9)
    await bench.rules.change_quota("user:ada", {"session_hours": 0.01}, "noether", "")
    why = "the longest time that your quota allows is over then. Save your work."
    assert await bench.minutes(0.5) == [
        ("1", f"This server ends in 5 minutes, on Thursday 09:14 (Europe/Berlin): {why}")
    ]
    at = bench.times.now() + timedelta(minutes=5)
    for _ in range(2):
        deadline = bench.endings.deadline_of(ada.id)
        assert deadline == Deadline(at, Cause.SESSION_LIMIT)
        await bench.allocator.waits.look()
        likely = bench.allocator.waits.of(waits.id)
        assert likely is not None
        assert abs(likely.middle_seconds - at.timestamp()) < 1
        bench.restart()  # the next broker says the same
        await bench.minutes(0.5)
    assert [lease for lease, _ in await bench.minutes(3.5)] == []
    assert [lease for lease, _ in await bench.minutes(0.5)] == ["1"]


@pytest.mark.parametrize("by", ["change", "stop"])
async def test_who_is_allowed_again_stays(bench: Bench, by: str) -> None:
    await beyond(bench)
    assert len(await bench.minutes(12)) == 2
    if by == "change":
        await bench.rules.change_quota("user:ada", {"devices": 2}, "noether", "")
    else:
        await bench.release(f"{1:032x}", "stopped by its user")
    await bench.minutes(30)
    assert "2" in [lease.id[-1] for lease in bench.allocator.leases()]
    assert bench.notice(2) == ""


async def test_each_change_says_anew_who_ends(bench: Bench) -> None:
    """Lifted, then lowered without saying that anybody ends."""
    await beyond(bench)
    await bench.rules.change_quota("group:class", {"devices": 2}, "noether", "")
    await bench.rules.change_quota("group:class", {"devices": 0}, "noether", "")
    assert await bench.minutes(60) == []
    assert len(bench.allocator.leases()) == 2


async def test_who_ends_for_a_quota_keeps_the_minimum_and_others_are_not_meant(bench: Bench) -> None:
    """Eve is in another group; ada may keep a GPU for 90 minutes."""
    await bench.run(1, "kept")
    await bench.run(2, "class", user="eve")
    await bench.rules.change_quota("everybody", {"devices": 0}, "noether", "")
    nothing = "group:kept", {"weight": 1}, "noether", ""
    assert len(await bench.rules.change_quota(*nothing, end_servers=True)) == 1
    assert await bench.minutes(74.5) == []
    said = await bench.minutes(16)
    assert [(number, sentence.split(",")[0].split(":")[0]) for number, sentence in said] == [
        ("1", "This server ends in 15 minutes"),
        ("1", "This server ends in 5 minutes"),
        ("1", "quota_changed"),
    ]
    assert [lease.user for lease in bench.allocator.leases()] == ["eve"]
    assert await bench.rules.change_quota(*nothing, end_servers=True) == ()


async def test_a_change_and_whom_it_ends_are_one_commit(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would end is said before, and nothing is recorded by that."""
    first, _ = [await bench.run(number, "class") for number in (1, 2)]
    change = "group:class", {"devices": 1}
    assert [lease.id[-1] for lease in bench.rules.would_end(*change)] == ["2"]
    assert bench.rules.would_end("group:other", {"devices": 0}) == ()
    before = await bench.ledger.decisions()
    commits: list[list[tuple[DecisionKind, str]]] = []
    decide = bench.ledger.decide

    async def counted(*items: Decision) -> None:
        commits.append([(item.kind, item.subject[-11:]) for item in items])
        await decide(*items)

    monkeypatch.setattr(bench.ledger, "decide", counted)
    await bench.rules.change_quota(*change, "noether", "", end_servers=True)
    assert commits == [[(DecisionKind.QUOTA, "group:class"), (DecisionKind.END, f"{2:011}")]]
    assert len(await bench.ledger.decisions()) == len(before) + 2
    assert bench.rulebook.rules.to_end.keys() == {f"{2:032x}"}
    assert bench.allocator.lease(first.id) == first


async def test_who_gets_a_gpu_while_the_change_is_recorded_ends_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ada's second server began between the look at the servers and the commit."""
    await bench.run(1, "class")
    decide = bench.ledger.decide

    async def slow(*items: Decision) -> None:
        monkeypatch.setattr(bench.ledger, "decide", decide)
        await bench.run(2, "class")
        await decide(*items)

    monkeypatch.setattr(bench.ledger, "decide", slow)
    change = "group:class", {"devices": 1}, "noether", ""
    told = await bench.rules.change_quota(*change, end_servers=True)
    assert [lease.id[-1] for lease in told] == ["2"]
    assert bench.rulebook.rules.to_end.keys() == {f"{2:032x}"}
