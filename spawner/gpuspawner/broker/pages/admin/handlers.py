"""The addresses of the admin's pages."""

from __future__ import annotations

from ...api.public.base import Route, Site
from ...api.public.rules import MoreRoutes
from ..base import PageSite
from ..events import page_routes
from .base import AdminPage, AdminTools
from .governing import RulesHandler
from .history import GuardHandler, LogHandler, TimelineHandler
from .machine import MachineHandler
from .overview import OverviewHandler
from .servers import ServersHandler

_HANDLERS: tuple[type[AdminPage], ...] = (
    OverviewHandler, ServersHandler, TimelineHandler, LogHandler, GuardHandler, RulesHandler, MachineHandler,
)  # fmt: skip


def admin_pages(tools: AdminTools) -> MoreRoutes:
    """The routes of the admin's pages, for `make_handlers`."""

    def routes(site: Site) -> list[Route]:
        assert isinstance(site, PageSite)
        return [
            route
            for handler in _HANDLERS
            for route in page_routes(site, handler, f"{handler.address}{handler.page}", tools=tools)
        ]

    return routes
