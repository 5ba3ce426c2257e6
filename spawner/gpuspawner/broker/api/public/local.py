"""The API's second door: the same routes on the broker's unix socket, below /api.

Only the admins of this machine reach the socket (mode 0600), so they may do everything. The kernel says whose
process asks; `gpuspawner` on the command line comes this way.
"""

from __future__ import annotations

import pwd
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from tornado.httputil import HTTPServerRequest

from ....core.errors import LeaseConflict
from ....core.model import Lease
from ..access import EVERYBODY, Viewer
from ..visible import BrokerView
from .base import Route, Site
from .reading import DescriptionHandler, StatusHandler, TiersHandler
from .rules import MoreRoutes

PREFIX = "/"
_CREDENTIALS = struct.Struct("3i")
"""`struct ucred` of unix(7): process, user and group."""


def account_of(request: HTTPServerRequest) -> str:
    """The account whose process has sent the request on a unix socket, as SO_PEERCRED says (unix(7))."""
    connected: socket.socket = request.connection.stream.socket  # type: ignore[union-attr]
    sent = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(sent)
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def local_viewer(request: HTTPServerRequest) -> Viewer:
    """Who asks: an account that may do everything, and has no servers of its own."""
    return Viewer(account_of(request), EVERYBODY, EVERYBODY, EVERYBODY, owns=False, local=True)


def local_routes(broker: BrokerView, hub: str, more: MoreRoutes) -> list[Route]:
    """The API's routes for the socket; `hub` is this hub's name, `more` has those that write."""
    nobody: Any = None  # no hub is asked who somebody is
    site = Site(broker, PREFIX, nobody, hub, local=local_viewer)
    wanted = {"site": site}
    return [
        (f"{PREFIX}api/status", StatusHandler, wanted),
        (f"{PREFIX}api/tiers", TiersHandler, wanted),
        (f"{PREFIX}api/openapi.json", DescriptionHandler, wanted),
        *more(site),
    ]


class LocalServers:
    """Stops servers without the hub, for senders who have no token of it: the broker ends their leases."""

    def __init__(
        self,
        hub: str,
        leases: Callable[[], Sequence[Lease]],
        release: Callable[[str, str], Awaitable[object]],
    ) -> None:
        self._hub, self._leases, self._release = hub, leases, release

    async def stop(self, token: str, user: str, server: str) -> bool:
        """Ends the server's leases. Raises LeaseConflict if it has none."""
        wanted = (self._hub, user, server)
        found = [each for each in self._leases() if (each.hub, each.user, each.server) == wanted]
        if not found:
            raise LeaseConflict("This server has stopped already.")
        for lease in found:
            await self._release(lease.id, "stopped on the command line")
        return True

    async def start(self, token: str, user: str, server: str, options: dict[str, Any]) -> None:
        """Raises LeaseConflict: JupyterHub starts servers."""
        raise LeaseConflict("JupyterHub starts servers: the user starts this one there.")
