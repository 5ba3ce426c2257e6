"""What the broker asks the hub, over the hub's REST API with the service's token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from ...core.errors import HubFault

_ANSWER_SECONDS = 20.0
PAGE_SIZE = 200
"""Users in one answer; the hub's own maximum by default (`c.JupyterHub.api_page_max_limit`)."""
_MOST_PAGES = 100
_PAGED = "application/jupyterhub-pagination+json"


@dataclass(frozen=True, slots=True)
class HubServer:
    """A server that the hub knows; neither `ready` nor `ending`: it starts. `tier` "" if it isn't known."""

    name: str
    tier: str
    since: datetime | None
    ready: bool = True
    ending: bool = False


class HubApi:
    """The hub's REST API, for a broker that is a service of the hub.

    Its role needs the scopes `read:groups`, `list:users`, `read:servers` and `start:servers`; see
    `jupyterhub_config.py`.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.url = environment["JUPYTERHUB_API_URL"].rstrip("/")
        self._head = {"Authorization": f"token {environment['JUPYTERHUB_API_TOKEN']}"}

    async def members(self, group: str) -> list[str]:
        """The users of a group, by name. Raises HubFault."""
        document = await self._ask("GET", f"/groups/{quote(group, safe='')}")
        users = document.get("users") if isinstance(document, dict) else None
        return sorted(map(str, users or ()))

    async def servers(self) -> dict[str, tuple[HubServer, ...]]:
        """The servers of everybody who has one, by user; page after page. Raises HubFault."""
        found: dict[str, tuple[HubServer, ...]] = {}
        for page in range(_MOST_PAGES):
            query = f"/users?state=active&offset={page * PAGE_SIZE}&limit={PAGE_SIZE}"
            document = await self._ask("GET", query)
            if not isinstance(document, dict) or not isinstance(document.get("items"), list):
                raise HubFault(f"GET {query} was answered with something else than a page of users")
            for user in document["items"]:
                servers = (user.get("servers") or {}).values()
                found[str(user["name"])] = tuple(map(_server, servers))
            if not (document.get("_pagination") or {}).get("next"):
                break
        return found

    async def start(self, user: str, tier: str) -> None:
        """Begin to start the user's default server, if it isn't running. Raises HubFault."""
        path = f"/users/{quote(user, safe='')}/server"
        await self._ask("POST", path, {"profile": tier}, running=400)

    async def _ask(self, method: str, path: str, body: object = None, running: int | None = None) -> object:
        import aiohttp  # 0.2 s, for which the start of a broker doesn't wait

        timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
        head = {**self._head, "Accept": _PAGED}
        try:
            async with (
                aiohttp.ClientSession(headers=head, timeout=timeout) as session,
                session.request(method, self.url + path, json=body) as response,
            ):
                if response.status >= 400 and response.status != running:
                    text = (await response.text())[:200]
                    raise HubFault(f"{method} {path} was answered with {response.status}: {text}")
                is_json = response.content_type.endswith("json")
                return await response.json(content_type=None) if is_json else None
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise HubFault(f"{method} {path}: {error or 'no answer'}") from error


def _server(model: Mapping[str, Any]) -> HubServer:
    """A server of the hub's answer."""
    options, started = model.get("user_options"), model.get("started")
    return HubServer(
        name=str(model.get("name", "")),
        tier=str(options.get("profile", "")) if isinstance(options, dict) else "",
        since=None if not started else datetime.fromisoformat(str(started)),
        ready=bool(model.get("ready")) and model.get("pending") != "stop",
        ending=model.get("pending") == "stop",
    )
