"""The steps of one start, sent to every browser that shows its progress page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from html import escape
from typing import Any


class Progress:
    """Collects events; each follower gets all of them, also those from before it connected."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._changed = asyncio.Event()
        self.ended = False

    def say(self, percent: int, message: str, advice: str = "") -> None:
        """Adds an event in the format of JupyterHub's progress page. The same sentence isn't repeated.

        `advice` is text for people who read the page; programs get only the message.
        """
        event: dict[str, Any] = {"progress": percent, "message": message}
        if advice:
            event["html_message"] = f"<strong>{escape(message)}</strong><br>{escape(advice)}"
        if not self._events or self._events[-1] != event:
            self._events.append(event)
            self._wake()

    def end(self) -> None:
        """Ends the stream: every follower stops after the last event."""
        self.ended = True
        self._wake()

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        """Yields all events from the first one until the end."""
        sent = 0
        while True:
            changed = self._changed
            while sent < len(self._events):
                sent += 1
                yield dict(self._events[sent - 1])
            if self.ended:
                return
            if not changed.is_set():
                await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
