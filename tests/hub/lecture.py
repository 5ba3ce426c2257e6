"""A lecture hall: hundreds of users who click at once, wait with their pages open, and cancel."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psutil

from tests.hub.hubprocess import HubProcess, eventually
from tests.hub.lecture_page import WaitingPage

WAIT_SECONDS = 300.0
"""For a busy machine: 500 starts take a hub about a quarter of a minute of one core."""
_AT_ONCE = 100
"""Users that one request creates; JupyterHub creates them within one callback of its loop."""
_LOGINS_AT_ONCE = 20


@dataclass
class Process:
    """What a process holds: open files, threads, resident memory in bytes."""

    files: int
    threads: int
    memory_bytes: int


@dataclass
class Round:
    """One round: who saw their place in line, what failed, and what hub and broker held meanwhile."""

    in_line: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    held: dict[str, Process] = field(default_factory=dict)
    seconds: float = 0.0


class Lecture:
    """Users on a hub whose GPUs are all taken, so that everybody waits."""

    def __init__(self, hub: HubProcess, users: Sequence[str]) -> None:
        self._hub, self._users = hub, users
        self._token = hub.token
        self._pages: dict[str, WaitingPage] = {}

    async def add_users(self) -> None:
        """Makes them; those that are there already stay.

        From then on a token is used that the hub made: it looks at one of its settings, as the tester's is,
        for 12 ms of CPU at each request (JupyterHub 6.1, `hash_token`: 16,384 rounds).
        """
        for first in range(0, len(self._users), _AT_ONCE):
            names = list(self._users[first : first + _AT_ONCE])
            await self._hub.call("POST", "/users", {"usernames": names})
        _, made = await self._hub.call("POST", "/users/admin/tokens", {"expires_in": 7200})
        self._token = made["token"]

    async def log_in(self) -> None:
        """Everybody logs in, in a browser of their own; from then on they click and wait in it."""
        gate = asyncio.Semaphore(_LOGINS_AT_ONCE)

        async def one(user: str) -> None:
            page = WaitingPage(self._hub.url, user, self._hub.password)
            async with gate:
                await page.log_in()
            self._pages[user] = page

        await asyncio.gather(*map(one, self._users))

    async def close(self) -> None:
        """Closes all browsers."""
        await asyncio.gather(*(page.close() for page in self._pages.values()))

    async def round(self) -> Round:
        """All click, all wait with their pages open until everybody has seen a place, then all cancel."""
        seen, began = Round(), time.monotonic()
        async with self._session() as session:
            waits = self._wait_on_page if self._pages else self._wait
            pages = [asyncio.create_task(waits(session, user, seen)) for user in self._users]
            everybody = set(self._users)

            async def all_told() -> bool:
                return seen.in_line == everybody or bool(seen.failures)

            try:
                await eventually(all_told, WAIT_SECONDS)
                seen.held = held(self._hub)
                await asyncio.gather(*(self._cancel(session, user, seen) for user in self._users))
                if not seen.failures:
                    await asyncio.wait(pages, timeout=WAIT_SECONDS)
                    await eventually(self._nobody_waits, WAIT_SECONDS)
            finally:
                for page in pages:
                    page.cancel()
                await asyncio.gather(*pages, return_exceptions=True)
        seen.seconds = time.monotonic() - began
        return seen

    async def _wait(self, session: aiohttp.ClientSession, user: str, seen: Round) -> None:
        """The click and the page: the progress stream is followed to its end, as a browser does."""
        path = f"/hub/api/users/{user}/server"
        async with session.post(path, json={"profile": "gpu"}) as answer:
            if answer.status not in (201, 202):
                seen.failures.append(f"{user}: {answer.status} {(await answer.text())[:300]}")
                return
        async with session.get(f"{path}/progress") as stream:
            async for line in stream.content:
                if line.startswith(b"data:"):
                    self._read(user, json.loads(line[5:]), seen)

    async def _wait_on_page(self, _: aiohttp.ClientSession, user: str, seen: Round) -> None:
        page = self._pages[user]
        try:
            await page.click("gpu")
            await page.follow(lambda event: self._read(user, event, seen))
        except (AssertionError, OSError, aiohttp.ClientError) as problem:
            seen.failures.append(f"{user}: {problem!r:.500}")

    @staticmethod
    def _read(user: str, event: dict[str, Any], seen: Round) -> None:
        if event.get("queue"):
            seen.in_line.add(user)
        elif event.get("failed") and user not in seen.in_line:
            seen.failures.append(f"{user}: {event['message'][:300]}")

    async def _cancel(self, session: aiohttp.ClientSession, user: str, seen: Round) -> None:
        """One click on the page's button."""
        if user in self._pages:
            status = await self._pages[user].leave()
            if status not in (204, 404):
                seen.failures.append(f"{user}: {status} to the page's button")
            return
        async with session.delete(f"/hub/api/users/{user}/server") as answer:
            if answer.status not in (202, 204):
                seen.failures.append(f"{user}: {answer.status} {(await answer.text())[:300]}")

    async def _nobody_waits(self) -> bool:
        """Whether nobody has a place in the queue, and the hub has ended every start too."""
        if (await self._hub.broker_status())["queue"]:
            return False
        _, active = await self._hub.call("GET", "/users?state=active&limit=500")
        return not {user["name"] for user in active} & set(self._users)

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            self._hub.url,
            headers={"Authorization": f"token {self._token}"},
            timeout=aiohttp.ClientTimeout(total=None, sock_read=WAIT_SECONDS),
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
        )


def held(hub: HubProcess) -> dict[str, Process]:
    """What hub and broker hold now."""
    found = {}
    top = psutil.Process(hub.pid)
    for process in (top, *top.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            name = "hub" if process.pid == top.pid else _name(process.cmdline())
            if name:
                found[name] = Process(process.num_fds(), process.num_threads(), process.memory_info().rss)
    return found


def _name(command: list[str]) -> str:
    return "broker" if "gpuspawner.broker" in command else ""
