"""Removals of one name wait for each other, and starts and stops for them."""

from __future__ import annotations

import asyncio

from gpuspawner.hub.removals import Removals


async def test_removals_of_one_name_follow_each_other_and_are_waited_for() -> None:
    removals, order = Removals(), []

    async def work(name: str) -> None:
        order.append(f"{name} begins")
        await asyncio.sleep(0.01)
        order.append(f"{name} ends")

    removals.begin("lab", work("first"))
    removals.begin("lab", work("second"))
    assert (removals.pending("lab"), removals.pending("other")) == (True, False)
    waiter = asyncio.create_task(removals.wait("lab"))
    await asyncio.sleep(0)
    waiter.cancel()  # whoever waits may leave; the removal goes on
    await removals.wait("lab")
    assert order == ["first begins", "first ends", "second begins", "second ends"]
    assert not removals.pending("lab")


async def test_a_removal_that_fails_doesnt_block_the_name() -> None:
    removals = Removals()

    async def work() -> None:
        raise RuntimeError("broken")

    removals.begin("lab", work())
    (task,) = removals._tasks.values()
    await removals.wait("lab")
    assert not removals.pending("lab")
    assert str(task.exception()) == "broken"
