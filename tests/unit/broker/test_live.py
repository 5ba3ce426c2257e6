"""News for open pages: one look for all of them, and nothing while nothing changed."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from gpuspawner.broker.api import live as module
from gpuspawner.broker.api.live import Live, Seen

from tests.soon import SOON_SECONDS, until

LOG = logging.getLogger("live")


class Broker:
    """Counts how often it is looked at, and how often its status is built."""

    def __init__(self) -> None:
        self.asked = self.built = 0
        self.used_bytes = 1
        self.notice = ""
        self.broken = False

    def stamp(self) -> object:
        self.asked += 1
        if self.broken:
            raise RuntimeError("odd")
        return self.used_bytes, self.notice

    def tiers(self) -> dict[str, Any]:
        return {"tiers": []}

    def metrics(self) -> bytes:
        return b""

    def status(self) -> dict[str, Any]:
        self.built += 1
        lease = {"id": "a", "used_bytes": self.used_bytes, "notice": self.notice}
        return {"simulated": False, "devices": [], "leases": [lease], "queue": [], "ended": []}


async def test_a_hundred_pages_look_once() -> None:
    broker = Broker()
    live = Live(broker, LOG, look_seconds=0.02)
    assert (live.pages, broker.asked) == (0, 0)

    async def page(number: int) -> Seen:
        async with live.watching(f"user-{number}"):
            seen = await live.news(Seen(), SOON_SECONDS)
            return await live.news(seen, SOON_SECONDS)

    pages = [asyncio.create_task(page(number)) for number in range(100)]
    await asyncio.sleep(0)
    assert (live.pages, broker.asked) == (100, 1)
    await until(lambda: broker.asked >= 4)
    assert (broker.asked < 100, broker.built) == (True, 1)
    broker.notice = "Save your work."
    assert set(await asyncio.gather(*pages)) == {Seen(2, 2)}
    assert broker.built == 2
    assert live.pages == 0
    await asyncio.sleep(0.1)  # a look that had begun
    looks = broker.asked
    await asyncio.sleep(0.1)
    assert broker.asked == looks  # nobody watches, so nobody looks


async def test_readings_are_no_news_of_the_status() -> None:
    broker = Broker()
    live = Live(broker, LOG, look_seconds=0.01)
    async with live.watching("anna"):
        seen = await live.news(Seen(), SOON_SECONDS)
        assert seen == Seen(1, 1)
        assert await live.news(seen, 0.1) == seen
        broker.used_bytes = 2
        assert await live.news(seen, SOON_SECONDS) == Seen(1, 2)
        assert live.document["leases"][0]["used_bytes"] == 2


async def test_an_error_is_logged_and_the_next_look_tries_again(caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker()
    live = Live(broker, LOG, look_seconds=0.01)
    async with live.watching("anna"):
        seen = await live.news(Seen(), SOON_SECONDS)
        broker.broken = True
        await asyncio.sleep(0.05)
        broker.broken, broker.notice = False, "new"
        assert (await live.news(seen, SOON_SECONDS)).status == 2
    assert "The pages can't be updated; retrying" in caplog.messages


async def test_one_viewer_has_so_many_pages_at_most() -> None:
    live = Live(Broker(), LOG)
    async with live.watching("anna"), live.watching("anna"):
        assert live.may_watch("anna")
    for _ in range(module.MOST_PAGES):
        await live.watching("bob").__aenter__()
    assert (live.may_watch("bob"), live.may_watch("anna")) == (False, True)


async def test_a_new_message_is_news_at_the_next_look() -> None:
    told = ["The lecture begins."]
    live = Live(Broker(), LOG, look_seconds=0.02, messages=lambda: tuple(told))
    async with live.watching("anna"):
        seen = await live.news(Seen(), SOON_SECONDS)
        assert seen == Seen(1, 1)
        assert await live.news(seen, 0.1) == seen
        told[:] = ["Save your work."]
        assert await live.news(seen, SOON_SECONDS) == Seen(2, 2)
