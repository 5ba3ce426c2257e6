"""What a browser asks of the hub while its user waits: login, the pages' files, the click, the waiting page.

As `gpuspawner-wait.js` does it: the progress stream with the browser's cookies and the address that the page
names, again after ten silent seconds, and on a click the end of the start.
"""

from __future__ import annotations

import asyncio
import html
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import aiohttp
from yarl import URL

_SILENCE_SECONDS = 10.0
_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 10.0
_FILES = re.compile(r'(?:src|href)="([^"]*/hub/(?:static/|logo(?!ut))[^"]*)"')
_PROGRESS = re.compile(r'id="gpu-start-data">(.*?)</script>', re.DOTALL)
_TOKEN = re.compile(r'name="_xsrf" value="([^"]+)"|[?&]_xsrf=([^"&]+)"')
_IDLE_SECONDS = 3
"""The proxy (Node) closes what is idle for 5 s; a browser asks again if that happens to its request."""
_CONNECTIONS = 6
"""As many as browsers open to one host."""


@dataclass
class WaitingPage:
    """One user's browser. It keeps cookies, and what it has loaded of the hub's static files."""

    url: str
    user: str
    password: str
    session: aiohttp.ClientSession = field(init=False)
    _loaded: set[str] = field(default_factory=set)
    _progress_url: str = ""
    _leaving: bool = False

    async def log_in(self) -> None:
        """The login page with all of its files, and the form. Raises AssertionError with what it was told."""
        self.session = aiohttp.ClientSession(
            self.url,
            cookie_jar=aiohttp.CookieJar(unsafe=True),
            timeout=aiohttp.ClientTimeout(total=None, sock_read=300),
            connector=aiohttp.TCPConnector(limit_per_host=_CONNECTIONS, keepalive_timeout=_IDLE_SECONDS),
        )
        token = xsrf_of(await self._page("/hub/login"))
        form = {"username": self.user, "password": self.password, "_xsrf": token}
        async with self.session.post("/hub/login?next=%2Fhub%2Fhome", data=form) as answer:
            text = await answer.text()
            assert answer.url.path == "/hub/home", text[:300]
        await self._files(text)

    async def close(self) -> None:
        """Closes the window."""
        await self.session.close()

    async def click(self, tier: str) -> None:
        """The spawn page, its form sent, and the waiting page to which that leads."""
        self._leaving = False
        token = xsrf_of(await self._page(f"/hub/spawn/{self.user}"))
        address = URL(f"/hub/spawn/{self.user}?_xsrf={token}", encoded=True)
        async with self.session.post(address, data={"profile": tier}) as answer:
            page = await answer.text()
            assert answer.url.path == f"/hub/spawn-pending/{self.user}", (
                answer.status,
                answer.url,
                page[-500:],
            )
        await self._files(page)
        found = _PROGRESS.search(page)
        assert found is not None, page[-500:]
        self._progress_url = str(json.loads(html.unescape(found[1]))["progress_url"])

    async def follow(self, take: Callable[[dict[str, Any]], None]) -> None:
        """Passes on each event up to the last one of the start.

        A hub that is busy for ten seconds is asked again. If the start was cancelled meanwhile, the answer is
        400 ("is not starting"): the page, which leads on by itself, then asks no more.
        """
        for attempt in count():
            try:
                async with self.session.get(
                    URL(self._progress_url, encoded=True), allow_redirects=False
                ) as stream:
                    if stream.status == 400 and self._leaving:
                        return
                    assert stream.status == 200, (stream.status, await stream.text())
                    if await self._read(stream, take):
                        return
            except (TimeoutError, aiohttp.ClientError):
                await pause(attempt)

    async def _read(self, stream: aiohttp.ClientResponse, take: Callable[[dict[str, Any]], None]) -> bool:
        """Whether the last event came; TimeoutError after a silence."""
        while line := await asyncio.wait_for(stream.content.readline(), _SILENCE_SECONDS):
            if line.startswith(b"data:"):
                event = json.loads(line[5:])
                take(event)
                if event.get("ready") or event.get("failed"):
                    return True
        return False

    async def leave(self) -> int:
        """The button "Leave the queue", and the page after it; the last status of the first."""
        self._leaving = True
        address = URL(self._progress_url.replace("/progress", "", 1), encoded=True)
        for attempt in count():
            async with self.session.delete(address) as answer:
                await answer.read()
            if answer.status != 202:
                break
            await pause(attempt)
        await self._page(f"/hub/spawn/{self.user}")
        return answer.status

    async def _page(self, path: str) -> str:
        async with self.session.get(path) as answer:
            text = await answer.text()
            assert answer.status == 200, (path, answer.status, text[-300:])
        await self._files(text)
        return text

    async def _files(self, page: str) -> None:
        """Loads what a page names, unless the browser has it already."""
        new = {html.unescape(path) for path in _FILES.findall(page)} - self._loaded
        self._loaded |= new
        await asyncio.gather(*map(self._file, new))

    async def _file(self, path: str) -> None:
        async with self.session.get(URL(path, encoded=True)) as answer:
            await answer.read()
            assert answer.status == 200, (path, answer.status)


async def pause(attempt: int) -> None:
    """Later and later, and not all at once, as the page's script does it."""
    longest = min(_PAUSE_SECONDS * 2**attempt, _LONGEST_PAUSE_SECONDS)
    await asyncio.sleep(longest * random.uniform(0.5, 1))


def xsrf_of(page: str) -> str:
    """The token of a page's form."""
    found = _TOKEN.search(page)
    assert found is not None, page[-500:]
    return found[1] or found[2]
