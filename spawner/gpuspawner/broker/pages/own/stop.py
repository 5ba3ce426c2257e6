"""Stops a server, or cancels its start, after a question: for JupyterHub's pages without a script.

JupyterHub's own buttons for that need JavaScript. Its pages link to this one in their `<noscript>`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from tornado.web import HTTPError

from ....core.errors import Fault, LeaseConflict, Refusal
from ...api.public.actions import Sender
from ...api.public.base import Route, refusal_of
from ...api.public.hub_servers import names_a_server
from ..base import PageHandler, PageSite


@dataclass(frozen=True, slots=True)
class StopPage:
    """The question: which server, and where the sender came from."""

    user: str
    server: str
    back: str
    mine: bool
    simulated: bool = False


class StopHandler(PageHandler):
    """`GET POST own/stop/?user=ada&server=train`: the default server is "". The hub decides who may."""

    template = "stop.html"
    address = "own/stop/"
    _failed: Mapping[str, str] = {}

    async def content(self, *path: str) -> StopPage:
        user = self.get_query_argument("user", self.viewer.name, strip=False)
        server = self.get_query_argument("server", "", strip=False)
        if not names_a_server(user, server):
            raise HTTPError(404)
        return StopPage(user, server, self._hub_page("spawn-pending", user, server), user == self.viewer.name)

    async def post(self, *path: str) -> None:
        """Stops it, and goes on to the hub's page that shows what is now."""
        desk, page = self.site.desk, await self.content()
        if desk is None:
            raise HTTPError(404)
        sender = Sender(self.viewer, self.hub_auth.get_token(self), "page")
        try:
            stopped = await desk.actions.stop_server(page.user, page.server, sender)
        except LeaseConflict:
            stopped = True  # it has ended meanwhile: the next page shows how
        except (Refusal, Fault) as error:
            refusal = refusal_of(error)
            self.set_status(refusal.status)
            self._failed = {"level": "warning", "sentence": refusal.message}
            await self.show(self.template)
            return
        finally:
            self.ask_hub_again()
        target = self._hub_page("spawn", page.user, page.server) if stopped else page.back
        self.redirect(target, status=303)  # type: ignore[no-untyped-call]

    async def outcome(self) -> Mapping[str, str]:
        return self._failed

    def _hub_page(self, name: str, user: str, server: str) -> str:
        """A page of the hub about one server."""
        parts = [name, user, *([server] if server else [])]
        return self.site.hub_url + "/".join(quote(part, safe="") for part in parts)


def stop_routes(site: PageSite) -> list[Route]:
    """The route of this page."""
    return [(f"{site.prefix}{StopHandler.address}", StopHandler, {"site": site})]
