"""Whether a server's kernels compute: asked of the server itself, told to the broker, which ends idle ones.

The hub knows of a server only when it last did something. A cell that computes silently for an hour with the
browser closed does nothing in that sense; its kernel is still busy.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest

from ..core.errors import Refusal
from ..protocol.client import BrokerClient
from ..protocol.rules import KernelsMessage

TELL_SECONDS = 60.0
"""So often the broker is told; it forgets what is older than five minutes."""
_ASK_SECONDS = 5.0


class KernelReporter:
    """Tells the broker of one server's kernels, now and then; a failure is as good as silence."""

    def __init__(self) -> None:
        self._begun_seconds = float("-inf")
        self._task: asyncio.Task[None] | None = None

    def begin(self, broker: BrokerClient, lease_id: str, url: str, token: str) -> None:
        """Ask the server at `url` in the background and tell the broker, unless that was done just now."""
        now = time.monotonic()
        if now - self._begun_seconds >= TELL_SECONDS and (self._task is None or self._task.done()):
            self._begun_seconds = now
            self._task = asyncio.create_task(report(broker, lease_id, url, token), name=f"kernels {lease_id}")


async def report(broker: BrokerClient, lease_id: str, url: str, token: str) -> None:
    """Ask the server at `url` and tell the broker. Never raises."""
    found = await read_kernels(url, token)
    if found is not None:
        with suppress(Refusal):
            await broker.tell("POST", f"/leases/{lease_id}/kernels", found)


async def read_kernels(url: str, token: str) -> KernelsMessage | None:
    """What the server at `url` says of its kernels and terminals; None if it doesn't answer well.

    `token` is the server's own: JupyterHub gives it access to itself. `no_track_activity` keeps this
    question from counting as activity (jupyter-server 2).
    """
    kernels = await _get(url, "api/kernels", token)
    if not isinstance(kernels, list):
        return None
    terminals = await _get(url, "api/terminals", token)  # a server may have none
    listed = [item for item in [*kernels, *(terminals or [])] if isinstance(item, Mapping)]
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
