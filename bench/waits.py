"""How good the estimated waits are: the told range against what then happened, beside an oracle.

    python bench/waits.py [--weeks 4] [--seeds 1 2 3] [--oracle 30]

A simulated university: 200 students on 8 GPUs, most sessions in the afternoon, a class on Mondays at ten,
more demand than GPUs on weekdays. Requests are looked at as they join the queue: the broker has seen only
the past. "told" is the part that reads a range and not "unknown", "inside" the part of these whose true start
lay in it, the width is the median of the range divided by the true wait.

The oracle knows what nobody can: the distribution of the sessions' lengths and of who comes when. It goes on
from the same moments with the live code a hundred times; its range is the middle 80 % of these. Nobody's
range that is right in 80 % of the cases can be much narrower.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from gpuspawner.broker.decide.book import Book, QueueRules
from gpuspawner.broker.decide.line.estimate import Estimate, Estimator
from gpuspawner.broker.decide.line.fairshare import FairShare
from gpuspawner.broker.decide.line.queue import Claim
from gpuspawner.broker.decide.replay.simulate import Outcome, SimulatedSite, Simulation, Visit
from gpuspawner.core.model import Device, Lease, LeaseState, Tier
from gpuspawner.core.want import Want
from rich.console import Console
from rich.table import Table

HOUR, WEEK = 3600.0, 7 * 86400.0
GPU = Tier("gpu", "One GPU", want=Want(1))
TWO = Tier("two", "Two GPUs", want=Want(2))
GPUS = [Device(f"GPU-{number}", "H100 80GB", 80 << 30, index=number) for number in range(8)]


@dataclass(frozen=True)
class University:
    """Who comes when and for how long. `limit_seconds`: most sessions last until their limit (classes)."""

    name: str
    fair: bool
    students: int = 200
    limit_seconds: float = 4 * HOUR
    to_the_limit: float = 0.0
    """The part of the sessions that use their whole time."""
    for_two: float = 0.0
    """The part of the visits, beside the class, that need two GPUs."""

    def lasts(self, draw: random.Random) -> float:
        """How long a session lasts."""
        if draw.random() < self.to_the_limit:
            return self.limit_seconds
        return min(self.limit_seconds, draw.lognormvariate(0.2, 0.6) * HOUR)

    def week(self, number: int, draw: random.Random) -> list[Visit]:
        """The visits of one week."""
        visits = []
        for user in range(self.students):
            for _ in range(draw.randint(2, 6)):
                at = number * WEEK + draw.randrange(5) * 86400 + draw.gauss(14, 2.5) * HOUR
                tier = TWO if self.for_two and draw.random() < self.for_two else GPU
                visits.append(Visit(max(0.0, at), f"user-{user}", tier, self.lasts(draw)))
        visits += [
            Visit(number * WEEK + 10 * HOUR + draw.uniform(0, 600), f"user-{user}", GPU, 1.5 * HOUR)
            for user in range(40)
        ]
        return visits

    def rules(self) -> QueueRules:
        """The queue's rules."""
        claim = Claim(session_seconds=self.limit_seconds)
        return QueueRules(lambda lease: claim, FairShare() if self.fair else None)


@dataclass
class Watcher:
    """Asks for an estimate as every n-th request joins the queue, and compares it with what happens."""

    every: int
    estimator: Estimator = field(default_factory=Estimator)
    told: list[tuple[float, float, Estimate]] = field(default_factory=list)
    """When it was asked, when it began, and what was said."""
    states: dict[str, tuple[float, Book]] = field(default_factory=dict)
    """The queue as it was then, for the oracle: by lease id."""
    began: dict[str, float] = field(default_factory=dict)
    """When those of `states` really began."""
    keep_from: float = WEEK
    asked: int = 0

    def __post_init__(self) -> None:
        self._said: dict[str, tuple[float, Estimate]] = {}
        self._running: dict[str, float] = {}

    def look(self, book: Book, lease: Lease, now: float) -> None:
        """A request begins to wait, a lease begins or ends."""
        came = lease.state is LeaseState.RESERVED and lease.created_at == lease.since
        if lease.state is LeaseState.WAITING or came:
            self.estimator.arrived(book.arrival(lease))
        if lease.state is LeaseState.WAITING:
            self._ask(book, lease, now)
        elif lease.state is LeaseState.RESERVED:
            self._running[lease.id] = now
            if lease.id in self.states:
                self.began[lease.id] = now
            if lease.id in self._said:
                asked, estimate = self._said.pop(lease.id)
                self.told.append((asked, now, estimate))
                self.estimator.learn(estimate, now)
        elif lease.id in self._running:
            began = self._running.pop(lease.id)
            self.estimator.lengths.add(lease.tier, now - began, lease.user, began)

    def _ask(self, book: Book, lease: Lease, now: float) -> None:
        self.asked += 1
        if self.asked % self.every:
            return
        estimate = self.estimator.estimate(book.line(), now, only=[lease.id])[lease.id]
        if estimate is not None:
            self._said[lease.id] = now, estimate
        if now >= self.keep_from and self.asked % (5 * self.every) == 0:
            self.states[lease.id] = now, copy.deepcopy(book)


@dataclass
class Oracle:
    """Goes on from a moment with the live code; lengths and newcomers as they are really distributed."""

    university: University
    draw: random.Random

    def begins(self, lease_id: str, book: Book, now: float) -> float:
        """When the lease begins in one future."""
        book = copy.deepcopy(book)
        outcomes, ends = [], {}
        for lease in book.leases():
            began = lease.since.timestamp() if lease.state.holds_devices else None
            visit = Visit(lease.created_at.timestamp(), lease.user, GPU, self.university.lasts(self.draw))
            outcomes.append(Outcome(visit, lease.id, began))
            if began is not None:
                ends[lease.id] = began + self._lasts(now - began)
        week = int(now // WEEK)
        coming = [each for n in (week, week + 1) for each in self.university.week(n, self.draw)]
        future = Simulation.resumed(SimulatedSite(GPUS, {}, self.university.rules()), book, outcomes, ends)
        visits = [each for each in coming if each.at_seconds > now]
        mine = next(each for each in outcomes if each.lease_id == lease_id)
        until = now
        while mine.began_seconds is None:
            until += HOUR
            future.run(visits, until)
            visits = []
        return mine.began_seconds

    def _lasts(self, age: float) -> float:
        while (lasts := self.university.lasts(self.draw)) <= age < self.university.limit_seconds:
            pass
        return lasts


def watch(university: University, weeks: int, seed: int, every: int) -> Watcher:
    """The simulated weeks, looked at."""
    draw, watcher = random.Random(seed), Watcher(every)
    site = SimulatedSite(GPUS, {}, university.rules(), look=watcher.look)
    visits = [each for number in range(weeks) for each in university.week(number, draw)]
    Simulation(site).run(visits)
    return watcher


def quality(told: Iterable[tuple[float, float, Estimate]]) -> tuple[float, float, float]:
    """The part that was told a range, the part of these inside, and the median width in parts of the wait."""
    all_told = list(told)
    known = [each for each in all_told if each[2].known]
    inside = [each.earliest_seconds <= began <= each.latest_seconds for _, began, each in known]
    widths = [
        (each.latest_seconds - each.earliest_seconds) / max(1.0, began - asked)
        for asked, began, each in known
    ]
    return len(known) / len(all_told), statistics.mean(inside), statistics.median(widths)


def oracle(university: University, watcher: Watcher, most: int, futures: int) -> tuple[float, float]:
    """The part of true starts in the middle 80 % of an oracle's futures, and the median width."""
    draw = random.Random(most)
    knows, inside, widths = Oracle(university, draw), [], []
    for lease_id in draw.sample(sorted(watcher.states), min(most, len(watcher.states))):
        now, book = watcher.states[lease_id]
        truth = watcher.began[lease_id]
        starts = sorted(knows.begins(lease_id, book, now) for _ in range(futures))
        low, high = starts[futures // 10], starts[-1 - futures // 10]
        inside.append(low <= truth <= high)
        widths.append((high - low) / max(1.0, truth - now))
    return statistics.mean(inside), statistics.median(widths)


UNIVERSITIES = (
    University("by arrival", fair=False),
    University("fair share", fair=True),
    University("fair share, 9 of 10 use their whole hour", True, 320, HOUR, 0.9),
    University("by arrival, every tenth asks for two GPUs", False, 150, for_two=0.1),
    University("fair share, every tenth asks for two GPUs", True, 150, for_two=0.1),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weeks", type=int, default=4, help="simulated weeks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one simulation for each")
    parser.add_argument("--every", type=int, default=10, help="every n-th request is looked at")
    parser.add_argument("--oracle", type=int, default=30, help="moments for the oracle; 0: none")
    parser.add_argument("--only", default="", help="only the universities with this in their name")
    parser.add_argument("--futures", type=int, default=100, help="futures of the oracle at each moment")
    settings = parser.parse_args()
    for university in UNIVERSITIES:
        if settings.only not in university.name:
            continue
        table = Table(title=university.name, title_justify="left")
        for name in ("seed", "looked at", "told", "inside", "width", "oracle inside", "oracle width"):
            table.add_column(name, justify="right")
        for seed in settings.seeds:
            watcher = watch(university, settings.weeks, seed, settings.every)
            told, inside, width = quality(watcher.told)
            cells = [f"{told:.2f}", f"{inside:.2f}", f"{width:.2f}"]
            if settings.oracle and seed == settings.seeds[0]:
                known = oracle(university, watcher, settings.oracle, settings.futures)
                cells += [f"{each:.2f}" for each in known]
            table.add_row(str(seed), str(len(watcher.told)), *cells)
        table.add_row("wanted", "", "", "≥ 0.80", "≤ 0.50")
        Console(width=110).print(table)


if __name__ == "__main__":
    main()
