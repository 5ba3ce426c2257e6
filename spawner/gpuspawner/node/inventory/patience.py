"""Blocking calls with a time limit: what hangs in a driver is left behind in its thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TypeVar

from ...core.errors import DeviceFault

T = TypeVar("T")

LIST_SECONDS = 8.0
"""Limit for listing: without the persistence daemon a GPU takes about a second to be initialized."""


class Patience:
    """Calls side by side, each in a thread of its own, until a common time limit.

    A subject whose call still hangs is neither asked again nor waited for, so that threads don't pile up and
    a second list takes no longer. For one thread at a time.
    """

    def __init__(self, seconds: float = LIST_SECONDS) -> None:
        self._seconds = seconds
        self._running: dict[str, Future[object]] = {}

    def ask(self, calls: Mapping[str, Callable[[], T]], who: str = "It") -> dict[str, T | DeviceFault]:
        """The answer of each subject, or the fault that it raised or that it did not answer in time."""
        hanging = {subject for subject, running in self._running.items() if not running.done()}
        asked = {subject: self._start(subject, call) for subject, call in calls.items()}
        end = time.monotonic() + self._seconds
        answers: dict[str, T | DeviceFault] = {}
        for subject, answer in asked.items():
            try:
                limit = 0.0 if subject in hanging else max(0.0, end - time.monotonic())
                answers[subject] = answer.result(limit)  # type: ignore[assignment]
            except DeviceFault as fault:
                answers[subject] = fault
            except TimeoutError:
                answers[subject] = DeviceFault(
                    f"{who} has not answered for {self._seconds:g} s: see `dmesg` and `nvidia-smi`"
                )
        return answers

    def one(self, subject: str, call: Callable[[], T]) -> T:
        """The answer of one call. Raises DeviceFault, also if it does not answer in time."""
        answer = self.ask({subject: call}, subject)[subject]
        if isinstance(answer, DeviceFault):
            raise answer
        return answer

    def _start(self, subject: str, call: Callable[[], T]) -> Future[object]:
        running = self._running.get(subject)
        if running is None or running.done():
            running = self._running[subject] = Future()
            name, arguments = f"nvml-{subject}", (running, call)
            threading.Thread(target=_work, name=name, args=arguments, daemon=True).start()
        return running


def _work(answer: Future[object], call: Callable[[], object]) -> None:
    try:
        result = call()
    except BaseException as error:  # handed to who waits
        answer.set_exception(error)
    else:
        answer.set_result(result)
