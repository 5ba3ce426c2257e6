"""Removes containers in the background, one at a time for each name. Starts and stops wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Removals:
    """The removals in the background: one task for each container name.

    A start waits for the removal of its own name; a stop waits for it too.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Starts `work`, after a running removal of the same name."""
        earlier = self._tasks.get(name)

        async def run() -> None:
            if earlier is not None:
                await asyncio.wait([earlier])
            await work

        task = asyncio.create_task(run(), name=f"remove {name}")
        self._tasks[name] = task
        task.add_done_callback(lambda done: self._forget(name, done))

    def pending(self, name: str) -> bool:
        """Whether something of this name is still being removed."""
        return name in self._tasks

    async def wait(self, name: str) -> None:
        """Waits until no removal of this name is running. Cancelling this doesn't stop the removal."""
        while (task := self._tasks.get(name)) is not None:
            await asyncio.wait([task])
            await asyncio.sleep(0)  # lets the done callback run

    async def cancel(self) -> None:
        """Cancels all removals; their containers stay."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, name: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(name) is task:
            del self._tasks[name]
