"""Who gets a GPU: the queue beside first come, first served, in a simulated week and term, and what it costs.

    python bench/policy.py [--weeks 15] [--rounds 2000]

Fairness: 200 students want more than 8 GPUs can give, each with their own length of session. Jain's
index is over the device-hours that each got; the slowdown is an equal split divided by what the worst-off
student got. Weights: three groups that always want more, over a term; the error is the largest difference
from a group's entitlement, in percent of it. Cost: enqueue and release with 10,000 users, 1,000 that wait and
100 sessions; times are CPU times, so that other programs on the machine don't count.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

from gpuspawner.broker.decide.backfill import SessionHold
from gpuspawner.broker.decide.book import Book, QueueRules
from gpuspawner.broker.decide.fairshare import FairShare
from gpuspawner.broker.decide.queue import Claim
from gpuspawner.broker.decide.simulate import Outcome, SimulatedSite, Simulation, Visit, jain, moment
from gpuspawner.core.model import Device, Lease, LeaseState, Tier
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
        placed = self.book.placed(now, freed=self.book.shares(ending))
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


def percentile(times: list[float], percent: int) -> float:
    """The value that `percent` of the times do not exceed."""
    return statistics.quantiles(times, n=100, method="inclusive")[percent - 1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weeks", type=int, default=15, help="length of the term")
    parser.add_argument("--rounds", type=int, default=2000, help="requests whose cost is measured")
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
    Console().print(table)


if __name__ == "__main__":
    main()
