"""Whether a server's kernels compute: asked of the server itself, told to the hub and the broker.

The hub knows of a server only when it last did something. A cell that computes silently for an hour with the
browser closed does nothing in that sense; its kernel is still busy.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest

from ..core.errors import Refusal
from ..protocol.client import BrokerClient
from ..protocol.rules import KernelsMessage

TELL_SECONDS = 20.0
"""So often a server is asked. The broker, which is told, looks as often and forgets what is older than five
minutes; a culler of the hub should wait longer than a minute."""
_ASK_SECONDS = 5.0


class KernelReporter:
    """Tells the broker of one server's kernels, now and then; after a failure again at the next call."""

    def __init__(self) -> None:
        self._begun_seconds = float("-inf")
        self._task: asyncio.Task[None] | None = None

    def begin(
        self, broker: BrokerClient, lease_id: str, url: str, token: str, on_busy: Callable[[], None]
    ) -> None:
        """Ask the server at `url` in the background, unless that was done just now.

        `on_busy` is called if a kernel computes; if there is a lease, the broker is told in any case.
        """
        now = time.monotonic()
        if now - self._begun_seconds >= TELL_SECONDS and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(
                self._tell(now, partial(report, broker, lease_id, url, token, on_busy)),
                name=f"kernels {lease_id}",
            )

    async def _tell(self, begun_seconds: float, tell: Callable[[], Awaitable[bool]]) -> None:
        """At the hub's start the broker isn't up yet: the next report must not be a whole interval away."""
        if await tell():
            self._begun_seconds = begun_seconds


def token_of(container: Mapping[str, Any]) -> str:
    """The server's own token, from Docker's document of its container; "" if it has none.

    JupyterHub (6.1, `Spawner.api_token`) knows it only in the process that started the server: after a
    restart of the hub it is "" there.
    """
    for line in container["Config"].get("Env") or ():
        name, _, value = str(line).partition("=")
        if name == "JUPYTERHUB_API_TOKEN":
            return value
    return ""


async def report(
    broker: BrokerClient, lease_id: str, url: str, token: str, on_busy: Callable[[], None]
) -> bool:
    """Ask the server at `url`, call `on_busy` or not, and tell the broker of a lease's server.

    Whether all of that was done. Never raises.
    """
    found = await read_kernels(url, token)
    if found is None:
        return False
    if found.busy:
        on_busy()
    if not lease_id:
        return True
    try:
        await broker.tell("POST", f"/leases/{lease_id}/kernels", found)
    except Refusal:
        return False
    return True


async def read_kernels(url: str, token: str) -> KernelsMessage | None:
    """What the server at `url` says of its kernels and terminals; None if it doesn't answer well.

    `token` is the server's own: JupyterHub gives it access to itself. `no_track_activity` keeps this
    question from counting as activity (jupyter-server 2).
    """
    kernels = await _get(url, "api/kernels", token)
    if not isinstance(kernels, list):
        return None
    terminals = await _get(url, "api/terminals", token)  # a server may have none
    more = terminals if isinstance(terminals, list) else []
    listed = [item for item in [*kernels, *more] if isinstance(item, Mapping)]
    return KernelsMessage(
        busy=any(item.get("execution_state") in ("busy", "starting") for item in listed),
        active_at=max((at for item in listed if (at := _time(item.get("last_activity")))), default=None),
    )


async def _get(url: str, path: str, token: str) -> Any:
    request = HTTPRequest(
        f"{url.rstrip('/')}/{path}?no_track_activity=1",
        headers={"Authorization": f"token {token}"},
        connect_timeout=_ASK_SECONDS,
        request_timeout=_ASK_SECONDS,
        follow_redirects=False,
    )
    try:
        return json.loads((await AsyncHTTPClient().fetch(request)).body)
    except (HTTPClientError, OSError, ValueError):
        return None


def _time(value: object) -> datetime | None:
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return None if at is None or at.tzinfo is None else at.astimezone(UTC)
