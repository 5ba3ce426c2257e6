"""Everybody who watches a start sees all of it."""

from __future__ import annotations

import asyncio
from typing import Any

from gpuspawner.hub.progress import Progress


async def read(progress: Progress) -> list[dict[str, Any]]:
    return [event async for event in progress.follow()]


async def test_early_and_late_followers_see_the_same() -> None:
    progress = Progress()
    early = asyncio.create_task(read(progress))
    progress.say(10, "2nd in line")
    await asyncio.sleep(0)
    progress.say(10, "2nd in line")
    progress.say(10, "1st in line")
    late = asyncio.create_task(read(progress))
    await asyncio.sleep(0)
    progress.say(40, "created")
    progress.end()
    expected = [
        {"progress": 10, "message": "2nd in line"},
        {"progress": 10, "message": "1st in line"},
        {"progress": 40, "message": "created"},
    ]
    assert [await early, await late, await read(progress)] == [expected] * 3


async def test_an_end_without_events_ends_the_followers() -> None:
    progress = Progress()
    watching = asyncio.create_task(read(progress))
    await asyncio.sleep(0)
    progress.end()
    assert await asyncio.wait_for(watching, 1) == []


async def test_a_follower_that_leaves_disturbs_nobody() -> None:
    progress = Progress()
    leaver, stayer = asyncio.create_task(read(progress)), asyncio.create_task(read(progress))
    await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    progress.say(1, "on")
    progress.end()
    assert await stayer == [{"progress": 1, "message": "on"}]


async def test_advice_is_for_people_and_escaped() -> None:
    progress = Progress()
    progress.say(10, "1st in line for a <GPU>", "Choose CPU & go on.")
    progress.end()
    assert [event async for event in progress.follow()] == [
        {
            "progress": 10,
            "message": "1st in line for a <GPU>",
            "html_message": "<strong>1st in line for a &lt;GPU&gt;</strong><br>Choose CPU &amp; go on.",
        }
    ]
