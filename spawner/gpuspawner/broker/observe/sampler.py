"""The one sampler for all pages: what each lease uses now and used in the last hour.

The node reads NVML at its own interval, for the guard and for idle servers too. The sampler only looks at
what it read last, so that a hundred open pages cost NVML nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ...core.paced import paced
from .failures import LoopFailures
from .use import Use

SAMPLE_SECONDS = 5.0
"""As often as the node reads."""
STEP_SECONDS = 60.0
"""One point of the curve: the most memory, and the mean of busy, in this time."""
POINTS = 60
"""The curve shows an hour."""

ReadUses = Callable[[], Iterable[Mapping[str, Use]]]
"""What each lease that holds devices uses now, by lease id, from memory; of one machine after the other."""

_AT_ONCE = 10
"""So many machines are read before the loop may do something else."""


@dataclass(frozen=True, slots=True)
class Point:
    """One step of a curve. None: nothing was known in that time."""

    memory_bytes: int | None
    busy_percent: float | None


class Curve:
    """The last hour of one lease, in steps."""

    def __init__(self) -> None:
        self._points: deque[Point] = deque(maxlen=POINTS)
        self._step: list[Use] = []

    def add(self, use: Use) -> None:
        """Adds a sample; every `STEP_SECONDS` they become a point."""
        self._step.append(use)
        if len(self._step) >= STEP_SECONDS / SAMPLE_SECONDS:
            self._points.append(_point(self._step))
            self._step.clear()

    def points(self) -> tuple[Point, ...]:
        """The oldest first."""
        return tuple(self._points)


class Sampler:
    """One a broker, on its event loop."""

    def __init__(self, read: ReadUses) -> None:
        self._read = read
        self._curves: dict[str, Curve] = {}
        self.latest: Mapping[str, Use] = {}
        self.count = 0
        """Goes up with each sample that differs from the one before."""

    async def run(self, failures: LoopFailures) -> None:
        """Samples until cancelled."""
        while True:
            try:
                await self.sample()
                failures.over()
            except Exception as error:  # the top of this loop
                failures.failed("The use of leases can't be sampled; trying again", error)
            await asyncio.sleep(SAMPLE_SECONDS)

    async def sample(self) -> None:
        """Takes one sample; forgets leases that hold nothing any more.

        Of a hundred machines it takes a while.
        """
        uses: dict[str, Use] = {}
        async for part in paced(self._read(), _AT_ONCE):
            uses |= part
        for lease_id in self._curves.keys() - uses.keys():
            del self._curves[lease_id]
        for lease_id, use in uses.items():
            self._curves.setdefault(lease_id, Curve()).add(use)
        if uses != self.latest:
            self.count += 1
        self.latest = uses

    def curve(self, lease_id: str) -> tuple[Point, ...]:
        """The last hour of the lease, the oldest point first; empty for an unknown lease."""
        curve = self._curves.get(lease_id)
        return () if curve is None else curve.points()


def _point(samples: list[Use]) -> Point:
    memory = [each.memory_bytes for each in samples if each.memory_bytes is not None]
    busy = [each.busy_percent for each in samples if each.busy_percent is not None]
    return Point(max(memory, default=None), sum(busy) / len(busy) if busy else None)
