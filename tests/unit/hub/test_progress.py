"""Everybody who watches a start sees all of it."""

from __future__ import annotations

import asyncio
from typing import Any

from gpuspawner.hub.progress import Progress, Step, StepView

from tests.soon import SOON_SECONDS


def event(percent: int, message: str, step: str = "image", **more: Any) -> dict[str, Any]:
    """An event of a start without a GPU."""
    steps = ["image", "container", "server"]
    return {"progress": percent, "message": message, "step": step, "steps": steps, **more}


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
    expected = [event(10, "2nd in line"), event(10, "1st in line"), event(40, "created")]
    assert [await early, await late, await read(progress)] == [expected] * 3


async def test_an_end_without_events_ends_the_followers() -> None:
    progress = Progress()
    watching = asyncio.create_task(read(progress))
    await asyncio.sleep(0)
    progress.end()
    assert await asyncio.wait_for(watching, SOON_SECONDS) == []


async def test_everybody_is_told_that_the_start_was_cancelled() -> None:
    progress = Progress()
    early = asyncio.create_task(read(progress))
    progress.say(10, "1st in line")
    await asyncio.sleep(0)
    progress.end(cancelled="The start was cancelled.")
    last = {"progress": 100, "failed": True, "message": "The start was cancelled."}
    assert [await early, await read(progress)] == [[event(10, "1st in line"), last]] * 2


async def test_a_follower_that_leaves_disturbs_nobody() -> None:
    progress = Progress()
    leaver, stayer = asyncio.create_task(read(progress)), asyncio.create_task(read(progress))
    await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    progress.say(1, "on")
    progress.end()
    assert await stayer == [event(1, "on")]


async def test_advice_is_for_people_and_escaped() -> None:
    progress = Progress()
    progress.say(10, "1st in line for a <GPU>", advice="Choose CPU & go on.")
    progress.end()
    html = "<strong>1st in line for a &lt;GPU&gt;</strong><br>Choose CPU &amp; go on."
    assert await read(progress) == [event(10, "1st in line for a <GPU>", html_message=html)]


async def test_each_event_says_its_step_and_what_else_is_known() -> None:
    progress = Progress()
    progress.begin(tuple(Step))
    progress.say(2, "Pulling", part_percent=14)
    progress.say(10, "2nd in line", Step.GPU, queue={"position": 2})
    progress.end()
    steps = ["image", "gpu", "container", "server"]
    assert await read(progress) == [
        {"progress": 2, "message": "Pulling", "step": "image", "steps": steps, "part_percent": 14},
        {"progress": 10, "message": "2nd in line", "step": "gpu", "steps": steps, "queue": {"position": 2}},
    ]


def test_the_steps_as_they_are_now() -> None:
    progress = Progress()
    assert progress.view() == [
        StepView("image", "Image", "active"),
        StepView("container", "Container", "todo"),
        StepView("server", "JupyterLab", "todo"),
    ]
    progress.begin(tuple(Step))
    progress.say(2, "Pulling")
    progress.say(5, "Asking for a GPU", Step.GPU)
    progress.say(10, "2nd in line", Step.GPU)
    assert progress.view() == [
        StepView("image", "Image", "done", "Pulling"),
        StepView("gpu", "GPU", "active", "2nd in line"),
        StepView("container", "Container", "todo"),
        StepView("server", "JupyterLab", "todo"),
    ]


def test_each_step_that_was_completed_says_how_long_it_took() -> None:
    passed: list[tuple[str, float]] = []
    now = 100.0
    progress = Progress(lambda step, seconds: passed.append((step.value, seconds)), lambda: now)
    progress.begin(tuple(Step))
    now = 101.0
    progress.say(2, "Pulling", Step.IMAGE)
    now = 103.0
    progress.say(5, "Asking for a GPU", Step.GPU)
    now = 110.0
    progress.say(10, "2nd in line", Step.GPU)
    now = 113.0
    progress.enter(Step.CONTAINER)
    now = 114.0
    progress.say(60, "Container started", Step.SERVER)
    assert passed == [("image", 3.0), ("gpu", 10.0), ("container", 1.0)]
    now = 116.0
    progress.end(done=True)
    assert passed[3:] == [("server", 2.0)]


def test_a_step_in_which_a_start_failed_does_not_count() -> None:
    passed: list[str] = []
    progress = Progress(lambda step, seconds: passed.append(step.value))
    progress.begin(tuple(Step))
    progress.say(5, "Asking for a GPU", Step.GPU)
    progress.end()
    assert passed == ["image"]
