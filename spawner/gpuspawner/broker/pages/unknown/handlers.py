"""The page of servers that the hub doesn't know: who holds what, and a button that ends one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tornado.web import HTTPError

from ....core.errors import LeaseConflict
from ....core.text import isolated
from ...api.access import Viewer
from ...api.public.base import Route, Site
from ...api.public.rules import MoreRoutes
from ...leases.audit import Audit
from ..base import PageSite
from ..events import page_routes
from ..rows import Asked, Holding, Rows
from ..writing import Question, Said, Writing, WritingPage

End = Callable[[str, str], Awaitable[object]]
"""Ends the server of a lease, by its id, in the name of an author: `LeaseService.release` with a reason."""


@dataclass(frozen=True, slots=True)
class UnknownPage:
    """The servers, and whether the viewer may end them."""

    simulated: bool
    servers: tuple[Holding, ...]
    may_end: bool


class UnknownHandler(WritingPage):
    """`GET POST admin/unknown/`: servers that hold a GPU, but are in no list of the hub."""

    template = "unknown.html"
    live_template = "unknown_live.html"
    address = "admin/unknown/"
    end: End

    def initialize(self, site: PageSite, audit: Audit, end: End) -> None:  # type: ignore[override]
        super().initialize(site)
        self.audit, self.end = audit, end

    def may_see(self, viewer: Viewer) -> bool:
        return viewer.sees_all

    async def content(self, *path: str) -> UnknownPage:
        status, site = self.site.broker.status(), self.site
        rows = Rows(status, site.broker.tiers(), Asked(self.viewer, site.hub_url, site.clock()))
        return UnknownPage(
            simulated=bool(status["simulated"]),
            servers=tuple(rows.lease(lease) for lease in status["leases"] if lease.get("unknown_to_hub")),
            may_end=self.viewer.admin.everybody,
        )

    async def carry_out(self, what: str, *path: str) -> Said | Question:
        if what != "end":
            raise HTTPError(400, "no such change: %s", what)
        chosen = self.get_body_argument("lease")
        page = await self.content()
        server = next((each for each in page.servers if each.id == chosen), None)
        if server is None:
            raise LeaseConflict("This server has ended, or the hub knows it again: stop it there.")
        name = isolated(server.user)
        if server.server:
            name = f"{name}, server “{isolated(server.server)}”"
        if not self.confirmed:
            text = "What runs there ends, and what is not saved to a file is lost. Files stay."
            return Question(f"End the server of {name}?", text, "End", {"do": "end", "lease": chosen})
        writing = Writing(self.viewer.admin, "end", f"user:{server.user}", (), {"lease": chosen})

        async def end() -> Said:
            await self.end(chosen, self.viewer.author)
            return Said(f"The server of {name} ends: its GPU is free when its container is gone.")

        return await self.write_down(writing, end)


def unknown_pages(audit: Audit, end: End) -> MoreRoutes:
    """The routes of this page, for `make_handlers`."""

    def routes(site: Site) -> list[Route]:
        assert isinstance(site, PageSite)
        return page_routes(site, UnknownHandler, audit=audit, end=end)

    return routes
