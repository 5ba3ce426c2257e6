"""Stops and starts a user's server through the hub, with the sender's own token: the hub decides who may."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import aiohttp

from ....core.errors import HubFault, LeaseConflict, NotAllowed, Refusal

_ANSWER_SECONDS = 30.0
"""The hub answers a stop after its `slow_stop_timeout`, 10 s by default, at the latest."""


class HubServers:
    """The hub's REST API for servers. `api_url` is the hub's, without a slash at its end."""

    def __init__(self, api_url: str) -> None:
        self._url = api_url.rstrip("/")

    async def stop(self, token: str, user: str, server: str) -> bool:
        """Stops the server, also one that is starting. True if it has stopped, False if it is stopping.

        Raises NotAllowed, LeaseConflict or HubFault.
        """
        return await self._ask("DELETE", token, _path(user, server)) != 202

    async def start(self, token: str, user: str, server: str, options: Mapping[str, Any]) -> None:
        """Begins to start the server with these options. Raises NotAllowed, LeaseConflict or HubFault."""
        await self._ask("POST", token, _path(user, server), dict(options))

    async def _ask(self, method: str, token: str, path: str, body: object = None) -> int:
        """The answer's status."""
        head = {"Authorization": f"token {token}"}
        timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(headers=head, timeout=timeout) as session,
                session.request(method, self._url + path, json=body) as response,
            ):
                if response.status < 400:
                    return response.status
                refusal = _refusal(response.status, await _message(response))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise HubFault(f"JupyterHub did not answer {method} {path}: {error or 'no answer'}") from error
        if refusal is None:
            raise HubFault(f"JupyterHub answered {method} {path} with {response.status}")
        raise refusal


def names_a_server(user: str, server: str) -> bool:
    """Whether the names can stand in an address: clients shorten `.` and `..` there to another one."""
    return bool(user) and not {user, server} & {".", ".."}


def _path(user: str, server: str) -> str:
    """The server's address in the hub's API. Raises LeaseConflict for what would be another address."""
    if not names_a_server(user, server):
        raise LeaseConflict("There is no such server.")
    name = quote(user, safe="")
    return f"/users/{name}/servers/{quote(server, safe='')}" if server else f"/users/{name}/server"


async def _message(response: aiohttp.ClientResponse) -> str:
    if response.content_type != "application/json":
        return ""
    answer = await response.json()
    return str(answer.get("message", "")) if isinstance(answer, dict) else ""


def _refusal(status: int, message: str) -> Refusal | None:
    """What the hub's answer means for the sender; None: the hub itself failed."""
    if status in (401, 403):
        return NotAllowed(
            "JupyterHub doesn't let you stop or start this server from here. Use the hub's home page, or ask "
            "your admin for the scope delete:servers."
        )
    if status == 404:
        return LeaseConflict("This server has stopped already.")
    if status < 500:
        return LeaseConflict(f"JupyterHub says: {message or 'the server is busy'}. Try again in a moment.")
    return None
