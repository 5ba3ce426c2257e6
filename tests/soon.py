"""Waiting for what comes soon, however busy the machine is: only a fault takes SOON_SECONDS."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

SOON_SECONDS = 30.0
"""Far over what any of it takes: a test that waits longer has found a fault."""


async def until(condition: Callable[[], Any], seconds: float = SOON_SECONDS) -> Any:
    """Waits until `condition()`, or what it awaits, is true, and returns it; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        found = await found if inspect.isawaitable(found) else found
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {_words(condition)}"
        await asyncio.sleep(0.02)


def wait_until(condition: Callable[[], Any], seconds: float = SOON_SECONDS) -> Any:
    """The same, blocking, for tests without an event loop."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {_words(condition)}"
        time.sleep(0.02)
    return found


def _words(condition: object) -> str:
    """The line that says it, or its name."""
    if inspect.isfunction(condition) or inspect.ismethod(condition):
        return inspect.getsource(condition).strip()
    return repr(condition)
