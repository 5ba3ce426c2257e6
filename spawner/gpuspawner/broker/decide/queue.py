"""Who is next: strictly first come, first served among requests that compete for a device.

Two requests compete when some kind of device suits both. One that can't be served yet keeps every device
that suits it from all who came later; requests for other devices pass it by. No clock and no database here:
the order is the order of arrival, as numbered by the caller.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...core.want import Want
from .placement import Kind, Rooms, Share, place, suits, take


class Waiting(NamedTuple):
    """A place in the queue; a lower number came earlier."""

    number: int
    lease_id: str
    want: Want


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request stands: `position` counts from 1 among the `waiting` that compete with it."""

    position: int
    waiting: int


class Queue:
    """The waiting requests, one line for each want.

    Everybody in a line needs the same, so only its head has to be tried: the cost of planning grows with the
    number of different wants (about one a tier), not with the number of people who wait.
    """

    def __init__(self, kinds: Iterable[Kind] = ()) -> None:
        self._kinds: tuple[Kind, ...] = ()
        self._lines: dict[Want, list[Waiting]] = {}
        self._places: dict[str, Waiting] = {}
        self._rivals: dict[Want, tuple[Want, ...]] = {}
        self.set_kinds(kinds)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, lease_id: str) -> bool:
        return lease_id in self._places

    def set_kinds(self, kinds: Iterable[Kind]) -> None:
        """Say which kinds of devices there are: they decide who competes with whom."""
        self._kinds = tuple(dict.fromkeys(kinds))
        self._rivals.clear()

    def add(self, waiting: Waiting) -> None:
        """Put a request in its line. Raises ValueError if it is in the queue already."""
        if waiting.lease_id in self._places:
            raise ValueError(f"lease {waiting.lease_id} is in the queue already")
        if waiting.want not in self._lines:
            self._lines[waiting.want] = []
            self._rivals.clear()
        bisect.insort(self._lines[waiting.want], waiting)
        self._places[waiting.lease_id] = waiting

    def remove(self, lease_id: str) -> None:
        """Take a request out. Raises KeyError if it is not in the queue."""
        waiting = self._places.pop(lease_id)
        line = self._lines[waiting.want]
        del line[bisect.bisect_left(line, waiting)]
        if not line:
            del self._lines[waiting.want]
            self._rivals.clear()

    def lines(self) -> tuple[Sequence[Waiting], ...]:
        """The lines, oldest first in each."""
        return tuple(self._lines.values())

    def in_order(self) -> list[Waiting]:
        """Everybody, oldest first."""
        return sorted(self._places.values())

    def place_of(self, lease_id: str) -> Place | None:
        """Where a request stands, or None if it does not wait."""
        waiting = self._places.get(lease_id)
        if waiting is None:
            return None
        lines = [self._lines[want] for want in self._compete(waiting.want)]
        ahead = sum(bisect.bisect_left(line, waiting) for line in lines)
        return Place(ahead + 1, sum(map(len, lines)))

    def count(self, want: Want) -> int:
        """How many of the waiting compete with `want`, which need not be in the queue itself."""
        return sum(len(line) for other, line in self._lines.items() if competes(want, other, self._kinds))

    def _compete(self, want: Want) -> tuple[Want, ...]:
        if want not in self._rivals:
            self._rivals[want] = tuple(
                other for other in self._lines if other == want or competes(want, other, self._kinds)
            )
        return self._rivals[want]


def competes(one: Want, other: Want, kinds: Iterable[Kind]) -> bool:
    """Whether some kind of device suits both."""
    return any(suits(one, kind) and suits(other, kind) for kind in kinds)


def plan(
    lines: Iterable[Sequence[Waiting]], rooms: Rooms, skip: str | None = None
) -> dict[str, tuple[Share, ...]]:
    """Who gets what now, in the order of arrival: lease id → shares. `skip` is a lease id to leave out."""
    left = {kind: list(listed) for kind, listed in rooms.items() if listed}
    rest = [iter(line) for line in lines]
    heads: list[tuple[int, int, Waiting]] = []

    def push_next(line: int) -> None:
        for waiting in rest[line]:
            if waiting.lease_id != skip:
                heapq.heappush(heads, (waiting.number, line, waiting))
                return

    for line in range(len(rest)):
        push_next(line)
    placed: dict[str, tuple[Share, ...]] = {}
    while heads and left:
        _, line, waiting = heapq.heappop(heads)
        shares = place(waiting.want, left)
        if shares is None:
            # What this one waits for is not for those behind it; its own line needs the same and waits too.
            left = {kind: listed for kind, listed in left.items() if not suits(waiting.want, kind)}
            continue
        placed[waiting.lease_id] = shares
        take(left, shares)
        left = {kind: listed for kind, listed in left.items() if listed}
        push_next(line)
    return placed
