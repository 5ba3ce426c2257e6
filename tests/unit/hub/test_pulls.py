"""One pull for all who want an image, what is told meanwhile, and limits in total and by user."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

import pytest
from gpuspawner.core.errors import EngineFault
from gpuspawner.hub import pulls as pulls_module
from gpuspawner.hub.pulls import Cancel, Event, Pulls


def layer(name: str, status: str, current: int | None = None, total: int | None = None) -> Event:
    detail = {} if current is None else {"current": current, "total": total}
    return {"id": name, "status": status, "progressDetail": detail}


class Docker:
    """The blocking side: each pull waits until it is let go, and gives the events that were put in."""

    def __init__(self, fault: EngineFault | None = None) -> None:
        self.go, self.fault, self.pulls = threading.Event(), fault, 0

    def work(self, feed: Callable[[Event], None], cancel: Cancel) -> None:
        self.pulls += 1
        feed(layer("a", "Downloading", 1_000_000, 4_000_000))
        assert self.go.wait(10)
        if self.fault:
            raise self.fault
        feed(layer("a", "Pull complete"))


@pytest.fixture
def pulls(monkeypatch: pytest.MonkeyPatch) -> Pulls:
    monkeypatch.setattr(pulls_module, "TELL_SECONDS", 0.02)
    return Pulls(logging.getLogger("test"))


async def test_thirty_users_share_one_pull_and_all_are_told(pulls: Pulls) -> None:
    docker, told = Docker(), [[] for _ in range(30)]
    waiting = [asyncio.create_task(pulls.pull("lab", "ada", docker.work, lines.append)) for lines in told]
    await asyncio.sleep(0.1)
    late: list[str] = []
    waiting.append(asyncio.create_task(pulls.pull("lab", "ada", docker.work, late.append)))
    await asyncio.sleep(0.05)
    assert not pulls.fresh("lab")
    docker.go.set()
    await asyncio.gather(*waiting)
    assert docker.pulls == 1
    news = "Pulling image lab: 0 of 1 layers, 1.0 of 4.0 MB, 25 %"
    assert all(lines[:2] == ["Pulling image lab", news] for lines in told)
    assert late[0] == news
    assert pulls.fresh("lab")
    assert not pulls.fresh("other")


async def test_it_goes_on_without_who_asked_and_the_next_joins(pulls: Pulls) -> None:
    docker = Docker()
    first = asyncio.create_task(pulls.pull("lab", "ada", docker.work, lambda news: None))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert first.cancelled()
    second = asyncio.create_task(pulls.pull("lab", "ada", docker.work, lambda news: None))
    await asyncio.sleep(0.05)
    docker.go.set()
    await second
    assert docker.pulls == 1
    await pulls.pull("lab", "ada", docker.work, lambda news: None)  # later, it is a new one
    assert docker.pulls == 2


async def test_all_learn_of_a_fault_and_the_next_tries_again(pulls: Pulls) -> None:
    docker = Docker(EngineFault("manifest unknown", 404))
    waiting = [
        asyncio.create_task(pulls.pull("lab", "ada", docker.work, lambda news: None)) for _ in range(3)
    ]
    await asyncio.sleep(0.05)
    docker.go.set()
    faults = await asyncio.gather(*waiting, return_exceptions=True)
    assert [(str(fault), getattr(fault, "status", None)) for fault in faults] == [
        ("manifest unknown", 404)
    ] * 3
    assert len({id(fault) for fault in faults}) == 3
    assert not pulls.fresh("lab")
    docker.fault = None
    await pulls.pull("lab", "ada", docker.work, lambda news: None)
    assert docker.pulls == 2


async def test_a_thread_that_breaks_is_a_fault(pulls: Pulls, monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()  # by Python, in the thread, after the fault was passed on
    monkeypatch.setattr(threading, "excepthook", lambda arguments: told.set())

    def broken(feed: Callable[[Event], None], cancel: Cancel) -> None:
        raise RuntimeError("odd")

    with pytest.raises(EngineFault, match="the pull's thread broke"):
        await pulls.pull("lab", "ada", broken, lambda news: None)
    assert await asyncio.to_thread(told.wait, 5)
