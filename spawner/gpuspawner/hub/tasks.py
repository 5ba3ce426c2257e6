"""Awaits several things at once; if one fails, none keeps running."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def all_or_none(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """Awaits all and returns their results in order, like `asyncio.gather`.

    When one fails, or this is cancelled, the others are cancelled and awaited; then the error is raised.
    (`gather` leaves them running.)
    """
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
