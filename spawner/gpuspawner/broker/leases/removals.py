"""Removing and stopping containers in the background: one call in flight for each container, with back-off.

A container whose process hangs in the kernel (state D, as on a broken GPU) can't be removed: Docker answers
after ten seconds, with an error. Nobody else may wait for that, and the call must not be repeated all the
time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass

from ...core.errors import GpuSpawnerError
from ...node.engine import Container
from .logline import container_context

FIRST_PAUSE_SECONDS = 1.0
"""After the first failed call for a container; each further failure doubles it."""
LONGEST_PAUSE_SECONDS = 60.0
FORGET_SECONDS = 600.0
"""A failure older than this no longer counts: the container is gone, or a new attempt is due anyway."""

Call = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Failure:
    """The latest failure for one container; times are seconds of the monotonic clock."""

    failed_at: float
    pause_seconds: float

    def holds_back(self, now: float) -> bool:
        return now < self.failed_at + self.pause_seconds


class Removals:
    """The calls that end containers. All methods run on one event loop.

    `on_end` is called with the container when its call has succeeded.
    """

    def __init__(
        self,
        on_end: Callable[[Container], None],
        log: logging.Logger,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._on_end = on_end
        self._log = log
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, _Failure] = {}

    def busy(self) -> Collection[str]:
        """Ids of the containers for which `begin` would do nothing now: in flight, or failed a moment ago."""
        now = self._monotonic()
        late = [each for each, failure in self._failures.items() if now > failure.failed_at + FORGET_SECONDS]
        for container_id in late:
            del self._failures[container_id]
        held = {each for each, failure in self._failures.items() if failure.holds_back(now)}
        return held | self._tasks.keys()

    def begin(self, container: Container, call: Call) -> bool:
        """Start `call(container.id)` in the background; False if nothing was started (see `busy`)."""
        if container.id in self.busy():
            return False
        task = asyncio.create_task(self._run(container, call), name=f"end {container.id[:12]}")
        self._tasks[container.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(container.id))
        return True

    async def wait(self, container_ids: Iterable[str], seconds: float) -> None:
        """Wait at most `seconds` for the calls in flight for these containers; they continue afterwards."""
        tasks = [self._tasks[each] for each in container_ids if each in self._tasks]
        if tasks and seconds > 0:
            await asyncio.wait(tasks, timeout=seconds)

    async def close(self) -> None:
        """Forget the calls in flight. Docker may still carry them out."""
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, container: Container, call: Call) -> None:
        try:
            await call(container.id)
        except Exception as error:  # the top of a background task
            self._failed(container, error)
        else:
            self._failures.pop(container.id, None)
            self._on_end(container)

    def _failed(self, container: Container, error: Exception) -> None:
        before = self._failures.get(container.id)
        pause = FIRST_PAUSE_SECONDS if before is None else 2 * before.pause_seconds
        pause = min(pause, LONGEST_PAUSE_SECONDS)
        self._failures[container.id] = _Failure(self._monotonic(), pause)
        self._log.log(
            logging.WARNING if before is None else logging.DEBUG,
            "A container could not be ended, next attempt in %.0f s: %s %s",
            pause, error, container_context(container),
            exc_info=not isinstance(error, GpuSpawnerError),
        )  # fmt: skip
