"""How often one sender may change something: a token bucket for each. Pure but for the injected clock."""

from __future__ import annotations

import time
from collections.abc import Callable

BURST = 30
"""So many changes at once, enough for a class that is extended one by one."""
PER_SECOND = 0.5
"""And then one every two seconds."""
MOST_SENDERS = 10_000


class WriteLimits:
    """One a service. A sender who waits gets their tokens back, up to `burst`."""

    def __init__(
        self,
        burst: int = BURST,
        per_second: float = PER_SECOND,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst, self._per_second, self._monotonic = burst, per_second, monotonic
        self._buckets: dict[str, tuple[float, float]] = {}
        """For each sender: tokens, and when they were counted. Full buckets are not kept."""

    def __len__(self) -> int:
        return len(self._buckets)

    def wait_seconds(self, sender: str) -> float:
        """0 if the sender may write now, which takes a token; else the seconds until they may."""
        now = self._monotonic()
        left = self._left(sender, now)
        if left < 1:
            return (1 - left) / self._per_second
        self._buckets[sender] = (left - 1, now)
        if len(self._buckets) > MOST_SENDERS:
            self._forget_full(now)
        return 0.0

    def _left(self, sender: str, now: float) -> float:
        tokens, at = self._buckets.get(sender, (float(self._burst), now))
        return min(float(self._burst), tokens + (now - at) * self._per_second)

    def _forget_full(self, now: float) -> None:
        full = [sender for sender in self._buckets if self._left(sender, now) >= self._burst]
        for sender in full:
            del self._buckets[sender]
