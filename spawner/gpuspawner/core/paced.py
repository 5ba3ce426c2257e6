"""Long rounds in small parts, so that the event loop answers requests in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

T = TypeVar("T")

PAUSE_SECONDS = 0.01
"""After each part. An answer needs the loop some fifteen times, so a pause of nothing would let fifteen parts
in between."""


async def paced(items: Iterable[T], at_once: int) -> AsyncIterator[T]:
    """The items, with a pause after each `at_once` of them."""
    for number, item in enumerate(items, 1):
        yield item
        if number % at_once == 0:
            await asyncio.sleep(PAUSE_SECONDS)
