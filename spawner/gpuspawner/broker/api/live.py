"""What changed since a page last heard of it: one look at the broker for all open pages.

While at least one page is open, the broker is looked at once a second, and the status document is built if
something changed. Pages wait for `Live.news`; each works out only then what is new for its own viewer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from .visible import BrokerView, Document

LOOK_SECONDS = 1.0
MOST_PAGES = 20
"""So many pages of one viewer are kept up to date."""
READINGS = frozenset(
    {
        "used_bytes", "utilization_percent", "busy_percent", "temperature_celsius", "power_watts",
        "power_limit_watts",
    }
)  # fmt: skip
"""Keys whose values change all the time; they make a new `readings`, not a new `status`."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a page has heard of: the numbers of the last status and of the last readings."""

    status: int = 0
    readings: int = 0


class Live:
    """One a broker, on its event loop.

    `messages` is equal as long as nobody is told anything else; pages show messages beside the status.
    """

    def __init__(
        self,
        broker: BrokerView,
        log: logging.Logger,
        look_seconds: float | None = None,
        messages: Callable[[], object] = lambda: None,
    ) -> None:
        self._broker, self._messages = broker, messages
        self._told: object = None
        self._log = log
        self._look_seconds = LOOK_SECONDS if look_seconds is None else look_seconds
        self._pages: Counter[str] = Counter()
        self._looking: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self._stamp: object = None
        self._structure: Any = None
        self.document: Document = {}
        """The whole status document of the last look; only for pages inside `watching`."""
        self.tiers: Document = {}
        """The tiers of that time."""
        self.seen = Seen()

    @property
    def pages(self) -> int:
        """How many pages are open."""
        return self._pages.total()

    def may_watch(self, viewer: str) -> bool:
        """Whether this viewer may open another page."""
        return self._pages[viewer] < MOST_PAGES

    @asynccontextmanager
    async def watching(self, viewer: str) -> AsyncIterator[None]:
        """While a page of this viewer is open; the first page starts the looks, the last one ends them."""
        self._pages[viewer] += 1
        try:
            if self._looking is None:
                self._look()
                self._looking = asyncio.create_task(self._run(), name="live")
            yield
        finally:
            self._pages[viewer] -= 1
            self._pages += Counter()  # forgets those with none
            if not self._pages and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    async def news(self, seen: Seen, timeout_seconds: float) -> Seen:
        """The present numbers, as soon as one differs from `seen`, or after the time."""
        try:
            async with asyncio.timeout(timeout_seconds), self._changed:
                await self._changed.wait_for(lambda: self.seen != seen)
        except TimeoutError:
            pass
        return self.seen

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._look_seconds)
            try:
                before = self.seen
                self._look()
            except Exception:  # the top of this loop
                self._log.exception("The pages can't be updated; retrying")
                continue
            if self.seen != before:
                async with self._changed:
                    self._changed.notify_all()

    def _look(self) -> None:
        stamp, told = self._broker.stamp(), self._messages()
        if stamp == self._stamp and told == self._told:
            return
        document = self._broker.status()
        structure = _structure(document)
        if structure != self._structure or told != self._told:
            self.tiers = self._broker.tiers()
            self.seen = Seen(self.seen.status + 1, self.seen.readings + 1)
        elif document != self.document:
            self.seen = Seen(self.seen.status, self.seen.readings + 1)
        self.document, self._structure, self._stamp, self._told = document, structure, stamp, told


def _structure(document: Document) -> Document:
    """The document without its readings."""
    return {
        key: [{name: each[name] for name in each if name not in READINGS} for each in value]
        if key in ("devices", "leases")
        else value
        for key, value in document.items()
    }
