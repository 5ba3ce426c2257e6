"""A time limit on a loop that has much to do."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

import pytest
from gpuspawner.protocol.patience import LOOKS, patience


async def turns(count: int) -> None:
    """Work that needs so many turns of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)


async def busy() -> None:
    """Each turn of the loop takes long."""
    while True:
        time.sleep(0.02)
        await asyncio.sleep(0)


async def test_turns_that_take_longer_than_the_limit_leave_time_for_the_work() -> None:
    other = asyncio.create_task(busy())
    try:
        async with patience(0.01):
            await turns(LOOKS // 2)
    finally:
        other.cancel()


async def test_on_a_busy_loop_too_it_ends() -> None:
    other = asyncio.create_task(busy())
    try:
        with pytest.raises(TimeoutError):
            async with patience(0.01):
                await asyncio.Event().wait()
    finally:
        other.cancel()


async def test_on_a_quiet_loop_it_is_a_limit_by_the_clock() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with patience(0.1):
            await asyncio.Event().wait()
    assert time.monotonic() - began >= 0.1


async def test_it_changes_neither_a_result_nor_an_error_nor_a_cancel() -> None:
    async with patience(5):
        pass
    with pytest.raises(KeyError):
        async with patience(5):
            raise KeyError

    async def wait() -> None:
        async with patience(5):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await turns(2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_task_goes_with_its_last_reference() -> None:
    """Without the garbage collector: the hub's looks at most of its objects once in a quiet minute only."""

    async def ask() -> None:
        async with patience(5):
            await asyncio.sleep(0)

    gc.disable()
    try:
        task = asyncio.create_task(ask())
        await task
        kept = weakref.ref(task)
        del task
        await asyncio.sleep(0)
        assert kept() is None
    finally:
        gc.enable()
