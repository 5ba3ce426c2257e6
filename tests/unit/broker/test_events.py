"""Server-sent events of a page: what is new for this viewer, and nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from gpuspawner.broker.api import live
from gpuspawner.broker.api.access import Viewer
from gpuspawner.broker.api.public.base import Route, Site
from gpuspawner.broker.pages import events
from gpuspawner.broker.pages.base import PageSite
from gpuspawner.broker.pages.events import page_routes
from gpuspawner.broker.pages.own.handlers import OwnHandler
from gpuspawner.broker.pages.readings import Readings

from tests.soon import SOON_SECONDS, until
from tests.unit.broker.test_pages_handlers import FakeBroker, Pages, device, lease, serving

SECTIONS = {"gpu-notices", "gpu-mine", "gpu-hours", "gpu-free", "gpu-summary", "gpu-past"}


class Broker(FakeBroker):
    """The test changes it."""

    def __init__(self) -> None:
        self.document: dict[str, Any] = super().status()
        self.use(anna=1 << 30, bob=2 << 30)

    def use(self, **used: int) -> None:
        """What the leases use."""
        for held in self.document["leases"]:
            held |= {"used_bytes": used.get(held["user"], held.get("used_bytes")), "busy_percent": 5.0}

    def status(self) -> dict[str, Any]:
        return json.loads(json.dumps(self.document))  # type: ignore[no-any-return]


class Plain(OwnHandler):
    """A page for those who see everything, without sections of its own."""

    address = "plain/"

    def may_see(self, viewer: Viewer) -> bool:
        return viewer.sees_all

    async def parts(self, *path: str) -> None:
        return None

    def reads(self, readings: Readings) -> Mapping[str, str]:
        return readings.seen_by(self.viewer)


def plain_page(site: Site) -> list[Route]:
    assert isinstance(site, PageSite)
    return page_routes(site, Plain)


class Stream:
    """Reads events."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.text = answer, ""

    async def next(self, timeout: float = SOON_SECONDS) -> tuple[str, Any]:
        """Name and data of the next event; "" for a comment. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while "\n\n" not in self.text:
                more = await self.answer.content.readany()
                if not more:
                    return "end", None
                self.text += more.decode()
        event, _, self.text = self.text.partition("\n\n")
        if event.startswith(":"):
            return "", event
        name, _, data = event.partition("\n")
        data = data.removeprefix("data: ")
        return name.removeprefix("event: "), json.loads(data) if data else None


@asynccontextmanager
async def stream(pages: Pages, path: str = "events", token: str = "anna-token") -> AsyncIterator[Stream]:
    headers = {"Authorization": f"token {token}"}
    async with pages.client.get(pages.url + path, headers=headers) as answer:
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
        assert answer.headers["X-Accel-Buffering"] == "no"
        yield Stream(answer)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    monkeypatch.setattr(live, "LOOK_SECONDS", 0.02)
    return Broker()


@pytest.fixture
async def pages(broker: Broker) -> AsyncIterator[Pages]:
    async with serving(plain_page, broker=broker) as found:
        yield found


async def test_a_student_hears_of_what_is_theirs(pages: Pages, broker: Broker) -> None:
    async with stream(pages) as read:
        name, sections = await read.next()
        assert (name, set(sections)) == ("sections", SECTIONS)
        name, readings = await read.next()
        assert (name, set(readings)) == ("readings", {"a"})
        broker.use(anna=3 << 30, bob=7 << 30)
        name, readings = await read.next()
        assert (name, readings["a"]["memory"]) == (
            "readings", ["3.0 GiB of 80 GiB", "3.8", "77 GiB left", ""],
        )  # fmt: skip
        broker.use(bob=9 << 30)
        broker.document["leases"][0]["notice"] = "Save your work."
        name, sections = await read.next()
        while name == "":
            name, sections = await read.next()
        assert (name, set(sections)) == ("sections", {"gpu-notices", "gpu-mine"})
        assert "Save your work." in sections["gpu-notices"]
        assert "bob" not in json.dumps(sections)


async def test_what_concerns_others_is_no_event(pages: Pages, broker: Broker) -> None:
    async with stream(pages) as read:
        await read.next()
        await read.next()
        broker.use(bob=9 << 30)
        broker.document["leases"][1]["notice"] = "Bob's GPU is lost."
        assert (await read.next())[0] == ""  # a comment, as proof of life
        broker.document["devices"].append(device(2))
        assert set((await read.next())[1]) == {"gpu-free", "gpu-summary"}


async def test_a_page_without_sections_is_told_to_fetch(pages: Pages, broker: Broker) -> None:
    async with stream(pages, "plain/events", "admin-token") as read:
        assert await read.next() == ("changed", None)
        name, readings = await read.next()
        assert (name, set(readings)) == ("readings", {"a", "b"})
        broker.document["leases"].append(lease("c", "carl", "GPU-0"))
        assert await read.next() == ("changed", None)


async def test_proof_of_life_now_and_then(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.05)
    async with stream(pages) as read:
        assert [(await read.next())[0] for _ in range(5)] == ["sections", "readings", "", "", ""]


async def test_a_stream_ends_after_a_while_for_a_new_login(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(events, "STREAM_SECONDS", 0.3)
    async with stream(pages) as read:
        while (await read.next())[0] != "end":
            pass


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [
        ("events", None, 401),
        ("events", "wrong-token", 401),
        ("events", "outsider-token", 403),
        ("plain/events", "anna-token", 403),
        ("plain/events", "reader-token", 403),
        ("plain/", "anna-token", 403),
        ("plain/live", "anna-token", 403),
        ("plain/live", "reader-token", 403),
        ("plain/live", "monitor-token", 200),
    ],
)
async def test_who_may_follow(pages: Pages, path: str, token: str | None, status: int) -> None:
    assert (await pages.get(path, token))[0] == status


async def test_one_viewer_has_so_many_streams_at_most(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST_PAGES", 1)
    async with stream(pages) as read:
        await read.next()
        status, headers, _ = await pages.get("events", "anna-token")
        assert (status, headers["Retry-After"]) == (429, "120")
        async with stream(pages, "events", "admin-token") as other:
            assert (await other.next())[0] == "sections"


async def test_a_page_that_closes_is_forgotten(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for one: the next is let in once the broker has seen that it was closed."""
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(live, "MOST_PAGES", 1)
    headers = {"Authorization": "token anna-token"}

    async def let_in() -> bool:
        async with pages.client.get(pages.url + "events", headers=headers) as answer:
            return answer.status == 200

    for _ in range(3):
        await until(let_in)
