"""The handlers of "My GPU"."""

from __future__ import annotations

from ...api.public.base import Route
from ..base import PageHandler, PageSite, page_routes
from .page import OwnPage, own_page


def own_routes(site: PageSite) -> list[Route]:
    """The routes of this page."""
    return page_routes(site, OwnHandler)


class OwnHandler(PageHandler):
    """`GET /services/gpu/`: what the viewer holds, waits for, and may still use."""

    template = "own.html"
    live_template = "own_live.html"
    address = ""

    async def content(self, *path: str) -> OwnPage:
        site = self.site
        return own_page(
            site.broker.status(),
            site.broker.tiers(),
            self.viewer,
            hub_url=site.hub_url,
            now=site.clock(),
        )
