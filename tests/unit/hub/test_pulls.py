"""One pull for all who want an image, what is told meanwhile, and limits in total and by user."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from gpuspawner.core.errors import EngineFault
from gpuspawner.hub import pulls as pulls_module
from gpuspawner.hub.pulls import Cancel, Event, PullLimits, Pulls

from tests.soon import SOON_SECONDS, until


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
        assert self.go.wait(SOON_SECONDS)
        if self.fault:
            raise self.fault
        feed(layer("a", "Pull complete"))


@pytest.fixture
def pulls(monkeypatch: pytest.MonkeyPatch) -> Pulls:
    monkeypatch.setattr(pulls_module, "TELL_SECONDS", 0.02)
    return Pulls(logging.getLogger("test"))


async def told_of(told: list[list[str]], news: str) -> None:
    """Returns when each of them has been told the news."""
    await until(lambda: all(news in lines for lines in told))


async def test_thirty_users_share_one_pull_and_all_are_told(pulls: Pulls) -> None:
    docker, told = Docker(), [[] for _ in range(30)]
    waiting = [asyncio.create_task(pulls.pull("lab", "ada", docker.work, lines.append)) for lines in told]
    news = "Pulling image lab: 0 of 1 layers, 1.0 of 4.0 MB, 25 %"
    await told_of(told, news)
    late: list[str] = []
    waiting.append(asyncio.create_task(pulls.pull("lab", "ada", docker.work, late.append)))
    await told_of([late], news)
    assert not pulls.fresh("lab")
    docker.go.set()
    await asyncio.gather(*waiting)
    assert docker.pulls == 1
    assert told[0][:2] == ["Pulling image lab", news]
    assert late[0] == news
    assert pulls.fresh("lab")
    assert not pulls.fresh("other")


async def test_it_goes_on_without_who_asked_and_the_next_joins(pulls: Pulls) -> None:
    docker = Docker()
    first = asyncio.create_task(pulls.pull("lab", "ada", docker.work, lambda news: None))
    await until(lambda: docker.pulls)
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

    with pytest.raises(EngineFault, match="the pull's thread failed"):
        await pulls.pull("lab", "ada", broken, lambda news: None)
    assert await asyncio.to_thread(told.wait, SOON_SECONDS)


# ---- limits


class Registry:
    """Each image trickles for ever, until it is let go or its pull is told to stop."""

    def __init__(self) -> None:
        self.go: dict[str, threading.Event] = {}
        self.begun: list[str] = []
        self.given_up: list[str] = []
        self.stubborn: set[str] = set()
        """Those whose thread doesn't hear that it shall stop."""

    def work(self, image: str) -> Callable[[Callable[[Event], None], Cancel], None]:
        done = self.go.setdefault(image, threading.Event())

        def work(feed: Callable[[Event], None], cancel: Cancel) -> None:
            self.begun.append(image)
            if image not in self.stubborn:
                cancel.then(done.set)
            while not done.wait(0.01):
                feed(layer("a", "Downloading", 1, 10**9))
            if cancel.is_set:
                self.given_up.append(image)
                raise EngineFault("the connection was closed")

        return work

    def end(self) -> None:
        for event in self.go.values():
            event.set()


@pytest.fixture
def registry() -> Iterator[Registry]:
    found = Registry()
    yield found
    found.end()


class Bench:
    """Users who pull, and leave."""

    def __init__(self, registry: Registry, limits: PullLimits) -> None:
        self.registry, self.pulls = registry, Pulls(logging.getLogger("test"), limits)
        self.told: dict[str, list[str]] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, user: str, image: str) -> None:
        told = self.told.setdefault(image, [])
        before = len(told)
        pull = self.pulls.pull(image, user, self.registry.work(image), told.append)
        self.tasks[f"{user} {image}"] = asyncio.create_task(pull)
        await until(lambda: len(told) > before)

    async def leave(self, user: str, image: str) -> None:
        task = self.tasks.pop(f"{user} {image}")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def seen(self, begun: list[str], given_up: list[str]) -> None:
        """Waits until these pulls have begun and these were given up: a little later it must still be so."""
        registry = self.registry
        await until(lambda: (registry.begun, registry.given_up) == (begun, given_up))
        await asyncio.sleep(0.05)
        assert (registry.begun, registry.given_up) == (begun, given_up)

    async def end(self) -> None:
        self.registry.end()
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        await asyncio.sleep(0.1)


@pytest.fixture
async def bench(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(pulls_module, "TELL_SECONDS", 0.02)
    found = Bench(registry, PullLimits(at_once=6, by_user=2, unattended_seconds=60))
    yield found
    await found.end()


async def test_pulls_whose_users_have_left_make_room_for_one_that_somebody_waits_for(bench: Bench) -> None:
    """Six that trickle: each byte is a sign of life, so that silence alone ends none of them."""
    evil = [f"evil/{number}" for number in range(6)]
    for number, image in enumerate(evil):
        await bench.come(f"mallory{number}", image)
        await bench.seen(evil[: number + 1], [])
    await bench.come("ada", "lab:1")
    assert bench.told["lab:1"] == ["Waiting for other pulls to finish before pulling image lab:1"]
    await bench.seen(evil, [])
    await bench.leave("mallory3", "evil/3")
    await bench.seen([*evil, "lab:1"], ["evil/3"])
    assert bench.told["lab:1"][1] == "Pulling image lab:1"
    for number in (0, 1, 2, 4, 5):
        await bench.leave(f"mallory{number}", f"evil/{number}")
    await bench.seen([*evil, "lab:1"], ["evil/3"])  # nobody needs the places of the others
    await bench.come("bob", "lab:2")
    await bench.seen([*evil, "lab:1", "lab:2"], ["evil/3", "evil/0"])


async def test_one_user_takes_but_two_places(bench: Bench) -> None:
    begun = ["evil/0", "evil/1"]
    await bench.come("mallory", "evil/0")
    await bench.seen(begun[:1], [])
    for number in (1, 2, 3):
        await bench.come("mallory", f"evil/{number}")
    await bench.seen(begun, [])
    await bench.come("ada", "lab:1")
    await bench.seen([*begun, "lab:1"], [])
    bench.registry.go["evil/0"].set()
    await bench.seen([*begun, "lab:1", "evil/2"], [])


async def test_who_leaves_pull_after_pull_gives_up_their_own(bench: Bench) -> None:
    bench.registry.stubborn = {"evil/0", "evil/1"}
    for number in range(6):
        await bench.come("mallory", f"evil/{number}")
        await bench.seen(["evil/0", "evil/1"][: number + 1], [])
        await bench.leave("mallory", f"evil/{number}")
    # The thread of a pull that was given up counts for its user until it has ended.
    await bench.come("mallory", "evil/6")
    await bench.seen(["evil/0", "evil/1"], [])
    bench.registry.go["evil/0"].set()
    await bench.seen(["evil/0", "evil/1", "evil/6"], ["evil/0"])


async def test_a_pull_that_nobody_waits_for_may_be_joined_for_a_while(bench: Bench) -> None:
    await bench.come("ada", "lab:1")
    await bench.leave("ada", "lab:1")
    await bench.come("bob", "lab:1")
    await bench.seen(["lab:1"], [])


async def test_a_pull_that_nobody_waits_for_ends_after_that(registry: Registry) -> None:
    bench = Bench(registry, PullLimits(unattended_seconds=0.1))
    await bench.come("ada", "lab:1")
    await bench.seen(["lab:1"], [])
    await bench.leave("ada", "lab:1")
    await bench.seen(["lab:1"], ["lab:1"])
    registry.go.clear()
    await bench.come("ada", "lab:1")  # too late: a new one
    await bench.seen(["lab:1", "lab:1"], ["lab:1"])
    await bench.end()


async def test_who_leaves_the_line_is_out_of_it(bench: Bench) -> None:
    big = [f"big/{number}" for number in range(6)]
    for number, image in enumerate(big):
        await bench.come(f"user{number}", image)
    await until(lambda: len(bench.registry.begun) == 6)
    await bench.come("ada", "lab:1")
    await bench.leave("ada", "lab:1")
    bench.registry.go["big/0"].set()
    await asyncio.gather(bench.tasks["user0 big/0"])
    await asyncio.sleep(0.05)
    assert sorted(bench.registry.begun) == big
