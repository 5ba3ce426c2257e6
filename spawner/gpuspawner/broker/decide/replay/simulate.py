"""Replays a period with the live code (book, queue, placement, quotas) on a virtual clock. Pure.

A *visit* is somebody's wish for a server with a GPU at some moment, for some time. The simulation does with
it what the allocator does with a request: it is refused, it waits, it holds devices, it ends. The result
is an *outcome*; `Summary` counts the outcomes of a whole replay.
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache

from ....core.errors import Refusal
from ....core.model import Device, Lease, LeaseState, Tier
from ....core.want import Want
from ..book import Book, QueueRules
from ..place.sharing_rules import SharingRules

Admit = Callable[[Lease, Book, float], Refusal | None]
"""The refusal that a request meets, asked before it joins the queue: the place of quotas."""


@dataclass(frozen=True, slots=True)
class Visit:
    """A wish for a server of `tier` at `at_seconds` (since 1970), that would last `lasts_seconds`.

    The session ends earlier where its tier or group has a limit, and at `until_seconds`, the end of a class.
    `gives_up_seconds` is how long the user (or the queue's time) waits; None: without end. `busy_fraction` of
    the time the GPU computes.
    """

    at_seconds: float
    user: str
    tier: Tier
    lasts_seconds: float
    gives_up_seconds: float | None = None
    busy_fraction: float = 1.0
    until_seconds: float | None = None
    server: str = ""
    groups: tuple[str, ...] = ()


@dataclass(slots=True)
class Outcome:
    """What became of a visit: `refused` is the reason why it was never served, `message` what its user reads;
    `parts` is what it held of the GPUs, `node` their machine."""

    visit: Visit
    lease_id: str
    began_seconds: float | None = None
    ended_seconds: float | None = None
    refused: str = ""
    message: str = ""
    parts: float = 0.0
    node: str = ""

    @property
    def wait_seconds(self) -> float | None:
        """From the wish to the server; None if it never began."""
        return None if self.began_seconds is None else self.began_seconds - self.visit.at_seconds

    @property
    def device_seconds(self) -> float:
        """What is charged for it: time multiplied by the part of the devices that it held."""
        if self.began_seconds is None or self.ended_seconds is None:
            return 0.0
        return self.parts * (self.ended_seconds - self.began_seconds)


@dataclass(frozen=True, slots=True)
class SimulatedSite:
    """Devices, how they are shared, and the rules: what the live broker has, without the machine.

    `moments` are times at which the rules change by themselves, such as the begin of a lab session. `again`
    is asked after each outcome whether the same user comes back.
    """

    devices: Sequence[Device]
    terms: Mapping[str, SharingRules]
    rules: QueueRules = field(default_factory=QueueRules)
    admit: Admit = lambda lease, book, now_seconds: None
    lasts_at_most: Callable[[Lease, float], float] = lambda lease, now_seconds: math.inf
    """How many seconds a lease that begins now may last, beside the longest session."""
    moments: Sequence[float] = ()
    again: Callable[[Outcome], Visit | None] = lambda outcome: None
    look: Callable[[Book, Lease, float], None] = lambda book, lease, now_seconds: None
    """Called when a request begins to wait, and with each lease that begins or ends."""
    want: Callable[[Lease], Want] = lambda lease: lease.want
    """What a request needs at the moment at which it comes."""
    leave: Callable[[Book, float], Sequence[str]] = lambda book, now_seconds: ()
    """Which leases have to end at one of the `moments`."""


_GIVE_UP, _END, _TICK, _ARRIVE = range(4)
"""The order of what happens at the same moment: who gives up now gets nothing that becomes free now."""


class Simulation:
    """One replay."""

    def __init__(self, site: SimulatedSite) -> None:
        self._site = site
        self._book = Book(site.devices, site.terms, site.rules)
        self._events: list[tuple[float, int, int, Visit | str | None]] = []
        self._number = 0
        self._outcomes: dict[str, Outcome] = {}
        self._born = 0
        """The number in the id of the last lease."""

    @classmethod
    def resumed(
        cls, site: SimulatedSite, book: Book, outcomes: Iterable[Outcome], ends: Mapping[str, float]
    ) -> Simulation:
        """A replay that goes on with this book, which it changes.

        `outcomes` are those of its living leases, `ends` when those end that hold devices, by lease id.
        """
        made = cls(site)
        made._book = book
        made._outcomes = {each.lease_id: each for each in outcomes}
        made._born = max((int(lease_id, 16) for lease_id in made._outcomes), default=0)
        for lease_id, at in ends.items():
            made._push(at, _END, lease_id)
        return made

    def run(self, visits: Iterable[Visit], until_seconds: float | None = None) -> list[Outcome]:
        """The outcomes of all visits, in the order of arrival.

        At `until_seconds` the replay stops: what runs then is counted up to there, what waits has no begin.
        """
        for visit in visits:
            self._push(visit.at_seconds, _ARRIVE, visit)
        for moment in self._site.moments:
            self._push(moment, _TICK, None)
        while self._events and (until_seconds is None or self._events[0][0] <= until_seconds):
            at, kind, _, subject = heapq.heappop(self._events)
            if isinstance(subject, Visit):
                self._arrive(subject, at)
            elif subject is None:
                self._pass_moment(at)
            elif kind == _END:
                self._end(subject, at)
            else:
                self._give_up(subject, at)
        for outcome in self._outcomes.values():
            if outcome.began_seconds is not None and outcome.ended_seconds is None:
                outcome.ended_seconds = until_seconds
        return list(self._outcomes.values())

    def _push(self, at: float, kind: int, subject: Visit | str | None) -> None:
        self._number += 1
        heapq.heappush(self._events, (at, kind, self._number, subject))

    def _arrive(self, visit: Visit, at: float) -> None:
        self._born += 1
        lease = _lease(visit, f"{self._born:032x}", moment(at))
        lease = replace(lease, want=self._site.want(lease))
        outcome = self._outcomes[lease.id] = Outcome(visit, lease.id)
        want = lease.want
        if self._book.unservable(want):
            outcome.refused = "no_capacity"
        elif (refusal := self._site.admit(lease, self._book, at)) is not None:
            outcome.refused, outcome.message = refusal.reason, refusal.message
        if outcome.refused:
            self._come_back(outcome, at)
            return
        placed = self._book.placed(lease.since, newcomer=lease)
        if all(each.id != lease.id for each in placed):
            self._book.enter(lease)
            self._site.look(self._book, lease, at)
            if visit.gives_up_seconds is not None:
                self._push(at + visit.gives_up_seconds, _GIVE_UP, lease.id)
        self._begin(placed, at)

    def _pass_moment(self, at: float) -> None:
        for lease_id in self._site.leave(self._book, at):
            self._end(lease_id, at)
        self._begin(self._book.placed(moment(at)), at)

    def _begin(self, placed: Iterable[Lease], at: float) -> None:
        for lease in placed:
            self._book.enter(lease)
            outcome = self._outcomes[lease.id]
            outcome.began_seconds = at
            outcome.parts, outcome.node = lease.gpu_fraction, lease.node
            limit, until = self._site.rules.claim(lease).session_seconds, outcome.visit.until_seconds
            most = self._site.lasts_at_most(lease, at)
            lasts = min(outcome.visit.lasts_seconds, math.inf if limit is None else limit, most)
            self._push(min(at + lasts, math.inf if until is None else max(at, until)), _END, lease.id)
            self._site.look(self._book, lease, at)

    def _end(self, lease_id: str, at: float) -> None:
        lease = self._book.lease(lease_id)
        if lease is None:  # it had to leave before
            return
        # Between releasing and closed no time passes here, so that the first of them is left out.
        now, outcome = moment(at), self._outcomes[lease_id]
        placed = self._book.placed(now, freed=lease)
        closed = replace(lease, state=LeaseState.CLOSED, since=now)
        self._book.enter(closed)
        outcome.ended_seconds = at
        self._site.look(self._book, closed, at)
        self._begin(placed, at)
        self._come_back(outcome, at)

    def _give_up(self, lease_id: str, at: float) -> None:
        lease = self._book.lease(lease_id)
        if lease is None or lease.state is not LeaseState.WAITING:
            return
        placed = self._book.placed(moment(at), without=lease_id)
        self._book.enter(replace(lease, state=LeaseState.CLOSED, since=moment(at)))
        outcome = self._outcomes[lease_id]
        outcome.refused = "queue_timeout"
        self._begin(placed, at)
        self._come_back(outcome, at)

    def _come_back(self, outcome: Outcome, at: float) -> None:
        visit = self._site.again(outcome)
        if visit is not None:
            self._push(max(at, visit.at_seconds), _ARRIVE, visit)


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole replay in numbers; waits in seconds, None where nobody was served."""

    visits: int
    served: int
    waited: int
    median_wait_seconds: float | None
    p95_wait_seconds: float | None
    held_fraction: float
    busy_fraction: float
    refused: Mapping[str, int]


def summarize(outcomes: Sequence[Outcome], device_seconds: float) -> Summary:
    """The numbers of a replay; `device_seconds` is what the devices could have given in that time."""
    waits = sorted(each.wait_seconds for each in outcomes if each.wait_seconds is not None)
    held = sum(each.device_seconds for each in outcomes)
    busy = sum(each.device_seconds * each.visit.busy_fraction for each in outcomes)
    return Summary(
        visits=len(outcomes),
        served=len(waits),
        waited=sum(wait > 0 for wait in waits),
        median_wait_seconds=statistics.median(waits) if waits else None,
        p95_wait_seconds=waits[min(len(waits) - 1, int(0.95 * len(waits)))] if waits else None,
        held_fraction=held / device_seconds if device_seconds else 0.0,
        busy_fraction=busy / device_seconds if device_seconds else 0.0,
        refused=dict(Counter(each.refused for each in outcomes if each.refused)),
    )


@dataclass(frozen=True, slots=True)
class MachineSummary:
    """One machine of several in a replay: `served` are the visits that had GPUs there."""

    name: str
    gpus: int
    served: int
    held_fraction: float
    busy_fraction: float


def summarize_machines(
    outcomes: Sequence[Outcome], devices: Sequence[Device], span_seconds: float
) -> tuple[MachineSummary, ...]:
    """Each machine's part of a replay, by name; nothing where there is only one."""
    counts = Counter(each.node for each in devices)
    if len(counts) < 2:
        return ()
    found = []
    for name, gpus in sorted(counts.items()):
        there = [each for each in outcomes if each.node == name]
        whole = summarize(there, span_seconds * gpus)
        found.append(MachineSummary(name, gpus, whole.served, whole.held_fraction, whole.busy_fraction))
    return tuple(found)


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness: 1 where all got the same, 1/n where one got everything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


@lru_cache(maxsize=64)
def moment(at_seconds: float) -> datetime:
    """The time as the book takes it."""
    return datetime.fromtimestamp(at_seconds, UTC)


def _lease(visit: Visit, lease_id: str, now: datetime) -> Lease:
    return Lease(
        id=lease_id,
        hub="simulated",
        user=visit.user,
        server=visit.server,
        tier=visit.tier.name,
        groups=visit.groups,
        state=LeaseState.WAITING,
        want=visit.tier.want,
        created_at=now,
        since=now,
    )
