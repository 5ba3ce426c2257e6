"""Several awaits at once: when one fails, none is left running."""

from __future__ import annotations

import asyncio

import pytest
from gpuspawner.hub.tasks import all_or_none


async def test_all_results_come_in_order() -> None:
    async def give(value: int, rounds: int) -> int:
        for _ in range(rounds):
            await asyncio.sleep(0)
        return value

    assert await all_or_none(give(1, 5), give(2, 0), give(3, 2)) == [1, 2, 3]
    assert await all_or_none() == []


@pytest.mark.parametrize("cancelled", [False, True])
async def test_when_one_fails_the_others_have_ended(cancelled: bool) -> None:
    ended = []

    async def last() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.append("last")

    async def fail() -> None:
        await asyncio.sleep(60 if cancelled else 0)
        raise ValueError("broken")

    task = asyncio.create_task(all_or_none(last(), fail()))
    await asyncio.sleep(0.01)
    if cancelled:
        task.cancel()
    with pytest.raises(asyncio.CancelledError if cancelled else ValueError):
        await task
    assert ended == ["last"]
    assert len(asyncio.all_tasks()) == 1
