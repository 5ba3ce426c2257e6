"""Which images a machine has: asked now and then, and soon after a lab has started, which may pull one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from ...core.errors import Fault

ROUND_SECONDS = 60.0
"""An image that an admin loads or removes is known after this time; with many machines it takes longer."""
GATHER_SECONDS = 5.0
"""A whole class may start at once: its labs are one reason to look."""


@dataclass(frozen=True, slots=True)
class ImageParts:
    """What it uses. `read` asks the machine's Docker and may raise a Fault; `note` takes the ids of what it
    has; `is_needed`: whether there is another machine to choose instead."""

    read: Callable[[], Awaitable[frozenset[str]]]
    note: Callable[[frozenset[str]], None]
    is_needed: Callable[[], bool]
    stretch: Callable[[], float] = lambda: 1.0


class MachineImages:
    """One a machine, on the broker's event loop."""

    def __init__(self, parts: ImageParts) -> None:
        self._parts = parts
        self._soon = asyncio.Event()

    def look_soon(self) -> None:
        """The machine may have another image now."""
        self._soon.set()

    async def run(self) -> None:
        """Looks until cancelled. While the machine can't be asked, it counts as having no image."""
        while True:
            await self.look()
            await asyncio.sleep(GATHER_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(ROUND_SECONDS * self._parts.stretch()):
                    await self._soon.wait()

    async def look(self) -> None:
        """Asks once."""
        self._soon.clear()
        if not self._parts.is_needed():
            return
        try:
            found = await self._parts.read()
        except Fault:  # also of an agent of an earlier release, which has no answer
            found = frozenset()
        self._parts.note(found)
