"""Named threads for calls that may never return."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[], Any]]


class DaemonPool:
    """Runs blocking calls in daemon threads called `<name>-<number>`.

    `ThreadPoolExecutor` can't be used: its threads are joined when the process ends, so one hanging
    driver call would keep the broker from ending. Here such a thread is abandoned, and another one
    replaces it. Use it from one event loop's thread.
    """

    def __init__(self, name: str, most: int = 128) -> None:
        self._name = name
        self._most = most
        self._numbers = itertools.count(1)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads = 0
        self._unfinished = 0

    def submit(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """The future of `call()`. Cancelling it doesn't end the call."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._unfinished += 1
        if self._unfinished > self._threads and self._threads < self._most:
            self._threads += 1
            name = f"{self._name}-{next(self._numbers)}"
            threading.Thread(target=self._work, name=name, daemon=True).start()
        self._jobs.put((loop, future, call))
        return future

    def close(self) -> None:
        """Ends the idle threads now, and a busy one as soon as its call returns."""
        for _ in range(self._threads):
            self._jobs.put(None)
        self._threads = 0

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, future, call = job
            result: Any = None
            error: BaseException | None = None
            try:
                result = call()
            except BaseException as caught:  # passed on through the future
                error = caught
            try:
                loop.call_soon_threadsafe(self._finish, future, result, error)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

    def _finish(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._unfinished -= 1
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
            future.exception()  # the owner logs an abandoned check, not asyncio
