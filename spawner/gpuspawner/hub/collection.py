"""Garbage collection in the hub: what a long one leaves is out of the next ones.

Python (3.11) stops the process for a full collection. With 500 users who wait it looked at some 240,000
objects, for 0.28 s, and nearly all of them stayed. So what the hub has at its start is out of all
collections, and what a long one leaves is out of the next ones. Such an object still goes at once when
nothing refers to it; only circles of them stay until everything is looked at once more: in a minute in
which the hub does little, or when a million objects were left. After a short collection all is as ever:
with everything taken out each time, what requests needed just then stayed as circles, and the hub grew by
0.25 GB in ten rounds of 500 users.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Callable
from typing import Any

LOOK_SECONDS = 60.0
QUIET_SECONDS = 3.0
"""The hub does little if it used no more processor time since the last look. One that runs fifty servers and
is asked for nothing uses about one second of a minute."""
MANY_OBJECTS = 100_000
"""So many more are out of the collections before everything is looked at: less isn't worth the 0.2 s."""
TOO_MANY_OBJECTS = 1_000_000
"""So many more, and everything is looked at even while the hub is busy: one that never rests would keep its
circles for ever (some 0.2 GB)."""
LONG_SECONDS = 0.12
"""A collection of so much processor time is a long one: some 100,000 objects. The next one looks at a quarter
more, and on a machine with other work each object takes longer: of 0.15 s, 0.26 s became."""
_FULL = 2
"""The number of the oldest generation (CPython's `gc`)."""


def keep_collections_short(loop: asyncio.AbstractEventLoop) -> None:
    """In the process of a hub that runs on this loop; in others, as commands, nothing changes."""
    app = sys.modules.get("jupyterhub.app")
    if app is not None and app.JupyterHub.initialized():
        collector = Collector()
        collector.begin()
        collector.look_regularly(loop)


class Collector:
    """One a process. `processor` is the processor time that the process has used, in seconds."""

    def __init__(self, processor: Callable[[], float] = time.process_time) -> None:
        self._processor = processor
        self._spent = processor()
        self._began = 0.0
        self._left = 0

    def begin(self) -> None:
        """From now on; what there is already is out of the collections."""
        gc.freeze()
        self._left = gc.get_freeze_count()
        gc.callbacks.append(self._collected)

    def end(self) -> None:
        """Collections are Python's own again."""
        gc.callbacks.remove(self._collected)
        gc.unfreeze()

    def look_regularly(self, loop: asyncio.AbstractEventLoop) -> None:
        """Looks once a minute for as long as the loop runs."""

        def look() -> None:
            self.look()
            loop.call_later(LOOK_SECONDS, look)

        loop.call_later(LOOK_SECONDS, look)

    def look(self) -> bool:
        """Looks at everything if that is worth it and disturbs nobody, or must be; returns whether it did.

        Blocks.
        """
        before, self._spent = self._spent, self._processor()
        is_quiet = self._spent - before <= QUIET_SECONDS
        if gc.get_freeze_count() - self._left < (MANY_OBJECTS if is_quiet else TOO_MANY_OBJECTS):
            return False
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._left = gc.get_freeze_count()
        return True

    def _collected(self, phase: str, info: dict[str, Any]) -> None:
        if info["generation"] != _FULL:
            return
        if phase == "start":
            self._began = self._processor()
        elif self._processor() - self._began >= LONG_SECONDS:
            gc.freeze()
