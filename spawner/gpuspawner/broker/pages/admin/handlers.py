"""The handlers of "Devices"."""

from __future__ import annotations

from ...api.access import Viewer
from ...api.public.base import Route
from ..base import PageHandler, PageSite
from ..events import page_routes
from .page import DevicesPage, devices_page


def admin_routes(site: PageSite) -> list[Route]:
    """The routes of this page."""
    return page_routes(site, DevicesHandler)


class DevicesHandler(PageHandler):
    """`GET /services/gpu/admin/`: every device, who holds it, who waits."""

    template = "devices.html"
    live_template = "devices_live.html"
    address = "admin/"

    def may_see(self, viewer: Viewer) -> bool:
        return viewer.sees_all

    async def content(self, *path: str) -> DevicesPage:
        site = self.site
        return devices_page(
            self.status(),
            self.tiers(),
            self.viewer,
            hub_url=site.hub_url,
            now=site.clock(),
        )
