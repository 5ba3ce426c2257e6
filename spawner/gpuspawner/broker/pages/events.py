"""What changes on an open page, as server-sent events, and the routes of a page with its live parts."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler

from ..api.live import Live, Seen
from ..api.public.base import Route
from ..api.visible import Document
from .base import LiveMixin, PageHandler, PageSite, SlashHandler

HEARTBEAT_SECONDS = 15.0
"""After so long without news a comment is sent, so that the script notices a lost connection."""
STREAM_SECONDS = 120.0
"""Then the stream ends, and the script opens a new one, for which the hub is asked again who it is."""


class EventsMixin(PageHandler):
    """What changes on a page, as server-sent events (HTML Living Standard, 9.2).

    `sections`: new HTML of sections, by id. `changed`: the script fetches the live part. `readings`: texts
    and widths of meters, by lease id. It takes no form.
    """

    post = RequestHandler.post

    def on_unknown(self) -> None:
        raise HTTPError(401)

    def status(self) -> Document:
        """The document that was built once for all open pages."""
        assert self.site.live is not None
        return self.site.live.document

    def tiers(self) -> Document:
        """The tiers of the same moment."""
        assert self.site.live is not None
        return self.site.live.tiers

    async def get(self, *path: str) -> None:
        live = self.site.live
        if live is None or not self.may_see(self.viewer):
            raise HTTPError(403, "no events of %s for %s", self.address, self.viewer.name)
        if not live.may_watch(self.viewer.author):
            self.retry_after_seconds = STREAM_SECONDS
            raise HTTPError(429, "%s has too many open pages", self.viewer.author)
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Accel-Buffering", "no")  # nginx would keep events back
        self._sections: dict[str, Any] = {}
        self._readings: dict[str, str] = {}
        with suppress(StreamClosedError):
            async with live.watching(self.viewer.author):
                await self._stream(live, *path)

    async def _stream(self, live: Live, *path: str) -> None:
        """Events until the page closes, or until the sender must be identified again."""
        loop = asyncio.get_running_loop()
        until, compare_at = loop.time() + STREAM_SECONDS, 0.0
        seen = Seen()
        while loop.time() < until:
            now = await live.news(seen, min(HEARTBEAT_SECONDS, self.refresh_seconds))
            text = ""
            if now.status != seen.status or loop.time() >= compare_at:
                text = await self._new_sections(now.status != seen.status, *path)
                compare_at = loop.time() + self.refresh_seconds
            if now.readings != seen.readings:
                text += self._new_readings()
            self.write(text or ": nothing new\n\n")
            await self.flush()
            seen = now

    async def _new_sections(self, changed: bool, *path: str) -> str:
        """The event with the HTML of sections that are new for this viewer; "" if none is."""
        parts = await self.parts(*path)
        if parts is None:
            return _event("changed", "")
        look, variables, new = self.site.look, self.part_variables(), {}
        for name, (value, page) in parts.items():
            if name not in self._sections or self._sections[name] != value:
                self._sections[name] = value
                new[name] = look.part(self.parts_template, name.removeprefix("gpu-"), page, variables)
        return _event("sections", json.dumps(new)) if new else ""

    def _new_readings(self) -> str:
        """The event with the readings that are new; "" if none is."""
        if self.site.readings is None:
            return ""
        readings = self.reads(self.site.readings)
        new = [f'"{key}":{text}' for key, text in readings.items() if self._readings.get(key) != text]
        self._readings = dict(readings)
        return _event("readings", "{" + ",".join(new) + "}") if new else ""


def _event(name: str, data: str) -> str:
    """One event; JSON has no line ends."""
    return f"event: {name}\ndata: {data}\n\n"


def page_routes(
    site: PageSite, page: type[PageHandler], pattern: str | None = None, **wanted: Any
) -> list[Route]:
    """The routes of a page and of its live parts; `pattern` is its address where that has groups.

    `wanted` goes to the handlers' `initialize`, with the site.
    """
    address = f"{site.prefix}{page.address if pattern is None else pattern}"
    live = type(f"Live{page.__name__}", (LiveMixin, page), {"__doc__": "The changing part of the page."})
    given = {"site": site, **wanted}
    routes: list[Route] = [(address, page, given), (f"{address}live", live, given)]
    if site.live is not None:
        events = type(f"{page.__name__}Events", (EventsMixin, page), {"__doc__": "What changes on the page."})
        routes.append((f"{address}events", events, given))
    if page.address:
        routes.append((address.rstrip("/"), SlashHandler, {}))
    return routes
