"""Blocking calls with a time limit; a call that hangs in a driver is abandoned in its thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TypeVar

from ...core.errors import DeviceFault

T = TypeVar("T")

LIST_SECONDS = 8.0
"""Time limit for listing: without the persistence daemon, a GPU needs about a second to initialize."""


class Patience:
    """Runs calls in parallel, each in its own thread, with a common time limit.

    If a subject's call still hangs, it isn't called again, so that threads don't accumulate and the next
    listing doesn't take longer. Use it from one thread at a time.
    """

    def __init__(self, seconds: float = LIST_SECONDS) -> None:
        self._seconds = seconds
        self._running: dict[str, Future[object]] = {}

    def ask(self, calls: Mapping[str, Callable[[], T]], who: str = "It") -> dict[str, T | DeviceFault]:
        """For each subject its result, or the fault: what it raised, or that it did not answer in time."""
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
        """The result of one call. Raises DeviceFault, also if it does not answer in time."""
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
    except BaseException as error:  # passed to the waiting thread
        answer.set_exception(error)
    else:
        answer.set_result(result)
