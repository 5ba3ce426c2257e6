"""Who gets a GPU: the queue beside first come, first served, in a simulated week and term, and what it costs.

    python bench/policy.py [--weeks 15] [--rounds 2000] [--folder DIR]

Fairness: 200 students want more than 8 GPUs can give, each with their own length of session. Jain's
index is over the device-hours that each got; the slowdown is an equal split divided by what the worst-off
student got. Weights: three groups that always want more, over a term; the error is the largest difference
from a group's entitlement, in percent of it. Cost: enqueue and release with 10,000 users, 1,000 that wait and
100 sessions; times are CPU times, so that other programs on the machine don't count. The whole broker:
the same with its allocator, the quota of each user asked, and a ledger that is on disk before the answer, by
CPU time (all threads) and by the clock; with `--folder /dev/shm` there is no disk. Other programs count
in the clock's times, whatever `nice` says, where Linux gives each session its part of the processors
(`kernel.sched_autogroup_enabled`): `chrt -f 10 python bench/policy.py` runs before all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from gpuspawner.broker.decide.book import Book, QueueRules
from gpuspawner.broker.decide.line.backfill import SessionHold
from gpuspawner.broker.decide.line.fairshare import FairShare
from gpuspawner.broker.decide.line.queue import Claim
from gpuspawner.broker.decide.replay.simulate import Outcome, SimulatedSite, Simulation, Visit, jain, moment
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.leases.gate import QuotaGate
from gpuspawner.broker.leases.queue_rules import queue_rules
from gpuspawner.broker.leases.rulebook import Rulebook
from gpuspawner.broker.ledger import Ledger
from gpuspawner.config.quotas import Known
from gpuspawner.core.decision import DecisionKind
from gpuspawner.core.model import Device, GpuRequest, Lease, LeaseState, Tier
from gpuspawner.core.want import Want
from rich.console import Console
from rich.table import Table

HOUR, WEEK = 3600.0, 7 * 86400.0
GPU = Tier("gpu", "One GPU", want=Want(1))
WEIGHTS = {"bachelor": 1.0, "master": 2.0, "phd": 3.0}
Policy = Callable[[Callable[[Lease], Claim]], QueueRules]


def first_come(claim: Callable[[Lease], Claim]) -> QueueRules:
    """First come, first served."""
    return QueueRules()


def fair_share(claim: Callable[[Lease], Claim]) -> QueueRules:
    """What the broker does."""
    return QueueRules(claim=claim, fair=FairShare(), patience_seconds=7 * 86400.0)


def fleet(count: int) -> list[Device]:
    """GPUs of one model."""
    return [Device(f"GPU-{number}", "H100 80GB", 80 << 30, index=number) for number in range(count)]


@dataclass
class Students:
    """People who come back some time after each session: each with a mean length of session of its own."""

    count: int
    seed: int = 1
    pause_seconds: float = HOUR

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        self._means = {f"student-{n}": self._draw.uniform(0.5, 1.5) * HOUR for n in range(self.count)}

    def first(self) -> list[Visit]:
        """The first visit of each, within the first hour."""
        return [self._visit(user, self._draw.uniform(0, HOUR)) for user in self._means]

    def again(self, outcome: Outcome) -> Visit | None:
        """The next visit of the same student."""
        ended = outcome.ended_seconds or outcome.visit.at_seconds
        return self._visit(outcome.visit.user, ended + self._draw.expovariate(1 / self.pause_seconds))

    def _visit(self, user: str, at: float) -> Visit:
        return Visit(at, user, GPU, self._means[user] * self._draw.uniform(0.7, 1.3))


def fairness(policy: Policy, students: int = 200, gpus: int = 8, seed: int = 1) -> tuple[float, float]:
    """Jain's index and the worst slowdown of a week."""
    people = Students(students, seed)
    site = SimulatedSite(fleet(gpus), {}, policy(lambda lease: Claim(session_seconds=3 * HOUR)))
    outcomes = Simulation(replace(site, again=people.again)).run(people.first(), WEEK)
    got: dict[str, float] = {each.visit.user: 0.0 for each in outcomes}
    for each in outcomes:
        got[each.visit.user] += each.device_seconds
    return jain(list(got.values())), sum(got.values()) / len(got) / max(1e-9, min(got.values()))


def weighted(policy: Policy, weeks: int, seed: int = 1) -> tuple[float, float]:
    """The largest error of a group's share over a term, in percent, and how long the replay took."""
    people = Students(200, seed)
    names = list(WEIGHTS)
    group_of = {f"student-{n}": names[n % 3] for n in range(200)}

    def claim(lease: Lease) -> Claim:
        group = group_of[lease.user]
        return Claim(group, weight=WEIGHTS[group], session_seconds=3 * HOUR)

    began = time.thread_time()
    site = SimulatedSite(fleet(8), {}, policy(claim), again=people.again)
    outcomes = Simulation(site).run(people.first(), weeks * WEEK)
    took = time.thread_time() - began
    got: defaultdict[str, float] = defaultdict(float)
    for each in outcomes:
        got[group_of[each.visit.user]] += each.device_seconds
    total, weights = sum(got.values()), sum(WEIGHTS.values())
    errors = [abs(got[group] / total / (weight / weights) - 1) * 100 for group, weight in WEIGHTS.items()]
    return max(errors), took


class Crowd:
    """10,000 users, 1,000 of them waiting, 100 GPUs in use, 100 lab sessions in the calendar."""

    def __init__(self, policy: Policy) -> None:
        self._draw = random.Random(1)
        self._groups = {f"user-{n}": f"group-{n % 100}" for n in range(10_000)}
        labs = [
            SessionHold(f"group-{n}", Want(1), 2, n * HOUR, n * HOUR + HOUR, n * HOUR + 3 * HOUR)
            for n in range(100)
        ]
        rules = policy(self._claim)
        if rules.fair is not None:
            fair = rules.fair
            rules = replace(rules, sessions=lambda now: [each for each in labs if each.applies(now)])
            for user, group in self._groups.items():
                fair.add_past(user, group, 1, 0, self._draw.uniform(0, 100 * HOUR))
        self.book = Book(fleet(100), {}, rules)
        self.at = 10 * HOUR
        self._number = 0
        self._running: list[str] = []
        while self.book.waiting_count < 1000:
            self.enqueue()

    def _claim(self, lease: Lease) -> Claim:
        weight = 1.0 + len(lease.user) % 3
        return Claim(self._groups[lease.user], weight=weight, session_seconds=4 * HOUR)

    def enqueue(self) -> None:
        """Somebody asks for a GPU, one in ten for two."""
        self._number += 1
        now = moment(self.at)
        user = f"user-{self._draw.randrange(10_000)}"
        want = Want(1 if self._number % 10 else 2)
        new = Lease(f"{self._number:032x}", "hub", user, "", "gpu", LeaseState.WAITING, want, now, now)
        placed = {each.id: each for each in self.book.placed(now, newcomer=new)}
        self._enter([placed.pop(new.id, new), *placed.values()])

    def release(self) -> None:
        """Somebody's session ends."""
        ending = self.book.lease(self._running.pop(self._draw.randrange(len(self._running))))
        assert ending is not None
        now = moment(self.at)
        releasing = replace(ending, state=LeaseState.RELEASING, since=now)
        self.book.enter(releasing)
        placed = self.book.placed(now, freed=ending)
        self.book.enter(replace(releasing, state=LeaseState.CLOSED))
        self._enter(placed)

    def _enter(self, leases: list[Lease]) -> None:
        for lease in leases:
            self.book.enter(lease)
            if lease.state.holds_devices:
                self._running.append(lease.id)


def costs(policy: Policy, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of enqueue and of release."""
    crowd = Crowd(policy)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        crowd.at += 60.0
        for list_, work in zip(times, (crowd.enqueue, crowd.release), strict=True):
            began = time.thread_time()
            work()
            list_.append((time.thread_time() - began) * 1e3)
    return times


class Broker:
    """The whole broker in the same state; `quotas` False: first come, first served, and nobody is limited."""

    def __init__(self, folder: Path, quotas: bool) -> None:
        self._ledger = Ledger(f"sqlite:///{folder}/{'quotas' if quotas else 'plain'}.sqlite")
        self._draw = random.Random(1)
        self._number = 0
        self._running: list[str] = []
        self.times: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        """Milliseconds of the processor and of the clock, by step."""
        if not quotas:
            self._rulebook, self.allocator = None, Allocator(self._ledger)
            return
        entries: list[dict[str, Any]] = [{"devices": 2, "gpu_hours": 100}]
        entries += [{"group": f"group-{n}", "weight": 1 + n % 3} for n in range(100)]
        entries += [{"user": f"user-{n}", "gpu_hours": 20, "session_hours": 4} for n in range(10_000)]
        self._rulebook = Rulebook(self._ledger, entries, Known((GPU,), None, "UTC"))
        gate = QuotaGate(self._rulebook, self._ledger)
        rules = queue_rules(gate, FairShare(), 86400.0)
        self.allocator = Allocator(self._ledger, gate=gate, rules=rules)
        gate.floor = self.allocator

    async def open(self) -> None:
        """100 who hold a GPU and 1,000 who wait; each user had one for an hour before; 100 lab sessions."""
        await self._ledger.open()
        now = datetime.now(UTC)
        devices = fleet(100)
        past = [self._lease(n, devices[0], now) for n in range(10_000)]
        await self._ledger.save(*past, at=now - timedelta(days=1))
        closed = [replace(each, state=LeaseState.CLOSED) for each in past]
        await self._ledger.save(*closed, at=now - timedelta(hours=23))
        living = [self._lease(n, devices[n] if n < 100 else None, now) for n in range(1100)]
        await self._ledger.save(*living, at=now)
        if self._rulebook is not None:
            await self._rulebook.load()
            for number in range(100):
                await self._add_session(number, now)
        await self.allocator.load(devices)
        self._running = [each.id for each in self.allocator.leases() if each.state.holds_devices]
        gc.freeze()  # as the broker does

    async def round(self) -> None:
        """Somebody asks for a GPU, somebody's session ends, and the next in line gets theirs."""
        user = 1100 + self._number % 8900
        self._number += 1
        groups = (f"group-{user % 100}",)
        asked = GpuRequest(f"{self._number:032x}", "hub", f"user-{user}", "", "gpu", Want(1), groups)
        await self._timed("acquire", self.allocator.acquire(asked))
        ending = self._running.pop(self._draw.randrange(len(self._running)))
        await self._timed("begin_release", self.allocator.begin_release(ending, "stopped"))
        await self._timed("close", self.allocator.close(ending))
        for lease in self.allocator.leases():
            if lease.state is LeaseState.RESERVED:
                await self.allocator.set_running(lease.id, lease.id)
                self._running.append(lease.id)

    async def close(self) -> None:
        """Let the ledger go."""
        await self._ledger.close()

    async def _timed(self, step: str, work: Awaitable[object]) -> None:
        processor, clock = time.process_time(), time.perf_counter()
        await work
        took = time.process_time() - processor, time.perf_counter() - clock
        self.times[step].append((took[0] * 1e3, took[1] * 1e3))

    async def _add_session(self, number: int, now: datetime) -> None:
        assert self._rulebook is not None
        begins = now + timedelta(hours=number % 50 - 1, minutes=30)  # none of them about to begin
        session = {
            "name": f"lab-{number}", "group": f"group-{number}", "tier": "gpu", "seats": 2, "timezone": "UTC",
            "first": begins.date().isoformat(), "begins": f"{begins:%H:%M}", "length_seconds": 7200,
            "rule": "FREQ=WEEKLY",
        }  # fmt: skip
        decision = self._rulebook.decision(DecisionKind.SESSION, f"lab-{number}", session, "bench", "")
        await self._rulebook.decide(decision)

    def _lease(self, number: int, device: Device | None, now: datetime) -> Lease:
        self._number += 1
        lease = Lease(
            f"{self._number:032x}", "hub", f"user-{number}", "", "gpu", LeaseState.WAITING, Want(1), now, now,
            groups=(f"group-{number % 100}",),
        )  # fmt: skip
        if device is None:
            return lease
        return replace(
            lease,
            state=LeaseState.RUNNING,
            device_uuids=(device.uuid,),
            device_fractions=(1.0,),
            memory_bytes=device.memory_bytes,
        )


async def broker_costs(folder: Path, quotas: bool, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds of each step, of the processor and of the clock."""
    broker = Broker(folder, quotas)
    await broker.open()
    for _ in range(rounds):
        await broker.round()
    await broker.close()
    return broker.times


def percentile(times: list[float], percent: int) -> float:
    """The value that `percent` of the times do not exceed."""
    return statistics.quantiles(times, n=100, method="inclusive")[percent - 1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weeks", type=int, default=15, help="length of the term")
    parser.add_argument("--rounds", type=int, default=2000, help="requests whose cost is measured")
    parser.add_argument(
        "--folder", type=Path, help="where the ledger lies; the default is the temporary folder"
    )
    settings = parser.parse_args()
    table = Table(title="200 students on 8 GPUs, simulated")
    for name in ("", "first come, first served", "fair share", "wanted"):
        table.add_column(name, justify="left" if not name else "right")
    both = (first_come, fair_share)
    fair = [fairness(policy) for policy in both]
    table.add_row("Jain's index over a week", *(f"{index:.4f}" for index, _ in fair), "≥ 0.99")
    table.add_row("worst slowdown against an equal split", *(f"{slow:.2f}" for _, slow in fair), "≤ 1.2")
    terms = [weighted(policy, settings.weeks) for policy in both]
    table.add_row("largest error of a group's share", *(f"{error:.2f} %" for error, _ in terms), "≤ 2 %")
    table.add_row(f"replay of {settings.weeks} weeks", *(f"{took:.1f} s" for _, took in terms), "≤ 10 s")
    found = [costs(policy, settings.rounds) for policy in both]
    for row, name in enumerate(("enqueue", "release")):
        cells = [f"{percentile(times[row], 50):.2f} / {percentile(times[row], 99):.2f} ms" for times in found]
        table.add_row(f"{name}, p50 / p99", *cells, "p99 ≤ 5 ms")
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        whole = [
            asyncio.run(broker_costs(Path(folder), quotas, settings.rounds // 2)) for quotas in (False, True)
        ]
    for step in whole[0]:
        for clock, name in enumerate(("processor", "clock")):
            columns = [[each[clock] for each in times[step]] for times in whole]
            cells = [f"{percentile(each, 50):.2f} / {percentile(each, 99):.2f} ms" for each in columns]
            table.add_row(f"broker: {step}, {name}, p50 / p99", *cells, "p99 ≤ 5 ms")
    Console().print(table)


if __name__ == "__main__":
    main()
