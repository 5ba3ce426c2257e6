"""Why ranges of waits are as wide as they are: the same futures with what the broker can't know.

    python bench/wait_causes.py [--weeks 2] [--seeds 1 2 3] [--only "fair share, every tenth"]

Beside the broker's own futures, each looked-at request gets futures whose sessions' lengths, whose newcomers,
or both come from the distributions that the simulated university really has (bench/waits.py). "Holds" is the
part of the true starts in the middle 80 % of the futures. "Width for 80 %" is the median width, in parts of
the true wait, of ranges that are widened (or narrowed) by common factors, chosen afterwards, until they hold
80 %: with both, no broker can do with less in these futures.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

from gpuspawner.broker.decide.book import Book
from gpuspawner.broker.decide.line.estimate import Estimator
from gpuspawner.broker.decide.line.future import Arrival, Future, Lasts, Line
from gpuspawner.broker.decide.line.lengths import Drawn
from gpuspawner.broker.decide.replay.simulate import SimulatedSite, Simulation, moment
from gpuspawner.core.model import Lease, LeaseState
from rich.console import Console
from rich.table import Table
from waits import GPUS, UNIVERSITIES, WEEK, University, Watcher

FUTURES = 32
KNOWS = {
    "the broker": (False, False),
    "lengths": (True, False),
    "newcomers": (False, True),
    "both": (True, True),
}
"""What is taken from the true distributions: lengths, newcomers."""
_LEAST_SIDE = 0.04
"""As of the estimates: a side is at least this part of the wait."""


class Truth:
    """The university's distributions, as the parts of a future."""

    def __init__(self, university: University, seed: int) -> None:
        self._university = university
        self._draw = random.Random(seed)

    def lasts(self, drawn: Drawn, age_seconds: float, left_seconds: float | None) -> float | None:
        """As `Lasts`."""
        limit = self._university.limit_seconds
        while (lasts := self._university.lasts(self._draw)) <= age_seconds < limit:
            pass
        still = max(0.0, lasts - age_seconds)
        return still if left_seconds is None else min(still, max(0.0, left_seconds))

    def newcomers(self, book: Book, now: float) -> Iterator[Arrival]:
        """Those of this week and the next who come after now."""
        week = int(now // WEEK)
        visits = [each for n in (week, week + 1) for each in self._university.week(n, self._draw)]
        for visit in sorted(visits, key=lambda each: each.at_seconds):
            if visit.at_seconds > now:
                at, tier = moment(visit.at_seconds), visit.tier
                yield book.arrival(
                    Lease("new", "hub", visit.user, "", tier.name, LeaseState.WAITING, tier.want, at, at)
                )


@dataclass
class Look:
    """One request: when it was looked at, when it began, and its begins in the futures, by what they know."""

    at_seconds: float
    starts: dict[str, list[float]]
    began_seconds: float | None = None


@dataclass
class Curious(Watcher):
    """Looks at requests as `Watcher` does, with each kind of future."""

    truth: Truth | None = None
    looks: dict[str, Look] = field(default_factory=dict)

    def look(self, book: Book, lease: Lease, now: float) -> None:
        """A request begins to wait, a lease begins or ends."""
        if lease.state is LeaseState.RESERVED and lease.id in self.looks:
            self.looks[lease.id].began_seconds = now
        super().look(book, lease, now)

    def _ask(self, book: Book, lease: Lease, now: float) -> None:
        self.asked += 1
        if self.asked % self.every:
            return
        starts = {}
        for name, (lengths, newcomers) in KNOWS.items():
            futures = (self._start(book, lease.id, now, lengths, newcomers) for _ in range(FUTURES))
            starts[name] = sorted(each for each in futures if each is not None)
        if all(len(each) == FUTURES for each in starts.values()):
            self.looks[lease.id] = Look(now, starts)

    def _start(self, book: Book, lease_id: str, now: float, lengths: bool, newcomers: bool) -> float | None:
        assert self.truth is not None
        line = book.line()
        lasts = self.truth.lasts if lengths else _lengths(self.estimator, line)
        come: Iterator[Arrival] = iter(())
        if line.may_pass:
            come = self.truth.newcomers(book, now) if newcomers else self.estimator.newcomers(now)
        begin = Future(line, come, lasts, now).run({lease_id}).get(lease_id)
        return None if begin is None else begin.at_seconds


def _lengths(estimator: Estimator, line: Line) -> Lasts:
    return estimator.session_lengths({*line.tiers.values(), *(each.tier for each in line.sessions)})


@dataclass(frozen=True)
class Sides:
    """The middle of a request's futures, how far they spread on both sides, and what happened, in seconds."""

    at: float
    middle: float
    before: float
    after: float
    began: float

    @property
    def error(self) -> float:
        """How far the begin is from the middle, in sides."""
        late = self.began - self.middle
        return late / (self.after if late > 0 else self.before)

    def width(self, low: float, high: float) -> float:
        """Of the range with these edges, in sides, in parts of the wait."""
        first = self.middle + low * (self.before if low < 0 else self.after)
        last = self.middle + high * (self.after if high > 0 else self.before)
        return (max(self.at, last) - max(self.at, first)) / max(1.0, self.began - self.at)


def sides_of(look: Look, name: str) -> Sides:
    """The middle 80 % of the futures."""
    assert look.began_seconds is not None
    starts = look.starts[name]
    middle, aside = statistics.median(starts), len(starts) // 10
    least = max(30.0, _LEAST_SIDE * (middle - look.at_seconds))
    before, after = middle - starts[aside], starts[-1 - aside] - middle
    return Sides(look.at_seconds, middle, max(least, before), max(least, after), look.began_seconds)


def for_80_percent(found: list[Sides]) -> float:
    """The median width with the narrowest common edges that hold 80 % of the begins."""
    errors = sorted(each.error for each in found)
    inside = int(0.8 * len(errors)) + 1
    low, high = min(
        ((errors[n], errors[n + inside - 1]) for n in range(len(errors) - inside + 1)),
        key=lambda edges: edges[1] - edges[0],
    )
    return statistics.median(each.width(low, high) for each in found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weeks", type=int, default=2, help="simulated weeks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one simulation for each")
    parser.add_argument("--every", type=int, default=10, help="every n-th request is looked at")
    parser.add_argument("--only", default="", help="only the universities with this in their name")
    settings = parser.parse_args()
    for university in UNIVERSITIES:
        if settings.only not in university.name:
            continue
        table = Table("seed", "requests", "true are", "holds", "width for 80 %", title=university.name)
        for seed in settings.seeds:
            draw, watcher = random.Random(seed), Curious(settings.every, truth=Truth(university, -seed))
            visits = [each for number in range(settings.weeks) for each in university.week(number, draw)]
            Simulation(SimulatedSite(GPUS, {}, university.rules(), look=watcher.look)).run(visits)
            looks = [each for each in watcher.looks.values() if each.began_seconds is not None]
            for name in KNOWS:
                found = [sides_of(each, name) for each in looks]
                holds = statistics.mean(-1 <= each.error <= 1 for each in found)
                table.add_row(
                    str(seed), str(len(found)), name, f"{holds:.2f}", f"{for_80_percent(found):.2f}"
                )
        Console(width=110).print(table)


if __name__ == "__main__":
    main()
