"""Answers that somebody waits for: a thread that computes gives way to them.

Python runs one thread at a time. While estimates were computed, the event loop and the ledger's thread had to
ask for each of some sixty turns that an answer needs, and it took 15 ms in place of 5.
"""

from __future__ import annotations

import time
from collections.abc import Callable

YOUNG_SECONDS = 0.05
"""An answer that takes longer waits for something else, as for Docker: nobody gives way to it any more."""
_NAP_SECONDS = 0.001
_TURN_SECONDS, _PAUSE_SECONDS = 0.0005, 0.0003
"""So long a thread computes without a pause, and so long is the pause. Without pauses it took 5 ms until the
loop had processor and interpreter to read a request that came meanwhile."""


class Hurry:
    """One a broker. `begin` and `end` are for the event loop."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._answers = 0
        self._latest_at = 0.0

    def begin(self) -> None:
        """Somebody waits for an answer."""
        self._answers += 1
        self._latest_at = self._monotonic()

    def end(self) -> None:
        """They have it, or have gone."""
        self._answers -= 1

    def way(self, most_seconds: float, sleep: Callable[[float], None] = time.sleep) -> Callable[[], None]:
        """What a thread calls again and again while it computes: it sleeps as long as there are such answers,
        but no longer than `most_seconds` in all, and now and then for a moment."""
        left_seconds, slept_at = most_seconds, self._monotonic()

        def give_way() -> None:
            nonlocal left_seconds, slept_at
            if self._monotonic() - slept_at >= _TURN_SECONDS:
                sleep(_PAUSE_SECONDS)
                slept_at = self._monotonic()
            while self._answers and left_seconds > 0 and self._monotonic() - self._latest_at < YOUNG_SECONDS:
                sleep(_NAP_SECONDS)
                left_seconds -= _NAP_SECONDS
                slept_at = self._monotonic()

        return give_way
