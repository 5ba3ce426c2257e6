"""Which images are on this machine, and which are pulled now, as the hub tells it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from ...core.errors import EngineFault
from ...protocol.pulls import ImageDocument, PullMessage, PullsMessage
from .failures import LoopFailures

ROUND_SECONDS = 60.0
PULL_SECONDS = 15.0
"""A process that pulls tells it every two seconds; what it told counts for this long."""
_MOST_SOURCES = 100

SizeOf = Callable[[str], Awaitable[int | None]]
"""The size of an image on this machine in bytes; None if it isn't there. Raises EngineFault."""


class ImageWatch:
    """One a broker, on its event loop. `references` are the images of the settings."""

    def __init__(
        self,
        references: Sequence[str],
        size_of: SizeOf,
        failures: LoopFailures,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._references = tuple(dict.fromkeys(references))
        self._size_of, self._failures, self._monotonic = size_of, failures, monotonic
        self._sizes: dict[str, int | None] = {}
        self._told: dict[str, tuple[float, PullsMessage]] = {}
        self._again = asyncio.Event()

    async def run(self) -> None:
        """Rounds until cancelled; also right after a pull has ended."""
        while True:
            try:
                await self.round()
                self._failures.over()
            except Exception as error:  # the top of this loop
                self._failures.failed("Which images are on this machine isn't known; trying again", error)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._again.wait(), ROUND_SECONDS)
            self._again.clear()

    async def round(self) -> None:
        """Looks for each image. If Docker doesn't answer, the last look stays."""
        for reference in self._references:
            try:
                self._sizes[reference] = await self._size_of(reference)
            except EngineFault:
                return  # the reconciliation says it

    def tell(self, told: PullsMessage) -> None:
        """All pulls of one process now."""
        before = {pull.image for pull in self._pulls().values()}
        self._told.pop(told.source, None)
        if told.pulls and len(self._told) < _MOST_SOURCES:
            self._told[told.source] = (self._monotonic() + PULL_SECONDS, told)
        if before - self._pulls().keys():
            self._again.set()

    def now(self) -> tuple[ImageDocument, ...]:
        """The images of the settings in their order, then others that are pulled."""
        pulls = self._pulls()
        named = dict.fromkeys([*self._references, *sorted(pulls)])
        return tuple(
            ImageDocument(
                image=name,
                here=None if name not in self._sizes else self._sizes[name] is not None,
                size_bytes=self._sizes.get(name),
                pull=pulls.get(name),
            )
            for name in named
        )

    def _pulls(self) -> dict[str, PullMessage]:
        """By image; where several processes pull the same one, what is told last."""
        now = self._monotonic()
        self._told = {source: told for source, told in self._told.items() if told[0] > now}
        return {pull.image: pull for _, told in self._told.values() for pull in told.pulls}
