"""jupyterhub-idle-culler beside our own idle rules: its hook asks the broker before it ends a server.

In the file that the culler reads::

    c.IdleCuller.cull_arbiter_hook = make_cull_arbiter()
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from ..core.errors import Refusal
from ..core.states import WITH_CONTAINER
from ..protocol.client import BrokerClient
from ..protocol.rules import ServerDocument, ServersDocument


class CullArbiter(Protocol):
    """What jupyterhub-idle-culler 2 calls for each server; True ends it."""

    def __call__(
        self, inactive: timedelta | None, inactive_limit: float, server: Mapping[str, Any]
    ) -> Awaitable[bool]: ...


def make_cull_arbiter(socket_path: str = "", hub_id: str = "hub") -> CullArbiter:
    """The hook. It ends neither a waiting start nor a server whose GPU or kernels are busy.

    `socket_path` is `c.GpuSite.socket_path`, "" its default; `hub_id` is `c.GpuDockerSpawner.hub_id`. While
    the broker doesn't answer, nothing is ended: unknown is not idle.
    """
    state = os.environ.get("GPUSPAWNER_STATE_DIR", "/var/lib/gpuspawner")
    path = socket_path or str(Path(state) / "broker.sock")

    async def cull_arbiter(
        inactive: timedelta | None, inactive_limit: float, server: Mapping[str, Any]
    ) -> bool:
        if inactive is None or inactive.total_seconds() < inactive_limit or server.get("pending"):
            return False
        owner = owner_of(server)
        if owner is None:
            return False
        client = BrokerClient(path)
        try:
            found = await client.ask("/servers", ServersDocument)
        except Refusal:
            return False
        finally:
            await client.close()
        return decide(found, (hub_id, *owner), inactive_limit, datetime.now(UTC))

    return cull_arbiter


def decide(
    found: ServersDocument, server: tuple[str, str, str], inactive_limit_seconds: float, now: datetime
) -> bool:
    """Whether the server (hub, user, name), inactive for the hub, is idle for the broker as well.

    One without a lease has no GPU: the hub's word is enough.
    """
    leases = [each for each in found.servers if (each.hub, each.user, each.server) == server]
    return all(_is_idle(lease, inactive_limit_seconds, now) for lease in leases)


def owner_of(server: Mapping[str, Any]) -> tuple[str, str] | None:
    """User and server's name in the hub's document of a server, whose "full_name" is "ada/train"."""
    name, full = str(server.get("name", "")), server.get("full_name")
    if not isinstance(full, str) or not full.endswith(f"/{name}"):
        return None
    return full.removesuffix(f"/{name}"), name


def _is_idle(lease: ServerDocument, limit_seconds: float, now: datetime) -> bool:
    if lease.state not in WITH_CONTAINER or lease.idle_since is None:
        return False
    return (now - lease.idle_since).total_seconds() >= limit_seconds
