"""What anybody with access reads as JSON: status, tiers, metrics, health."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter

from tornado.web import HTTPError

from ....core.errors import BadOption
from ....protocol.public_openapi import public_openapi
from ..access import READ_SCOPE
from ..paging import Part, cut
from ..query import Page, read_page
from ..visible import Document, visible_status
from .base import ApiHandler, Discreet, Route, Site


def reading_routes(site: Site) -> list[Route]:
    """The routes below the service's prefix."""
    wanted = {"site": site}
    return [
        (f"{site.prefix}api/status", StatusHandler, wanted),
        (f"{site.prefix}api/tiers", TiersHandler, wanted),
        (f"{site.prefix}api/openapi.json", DescriptionHandler, wanted),
        (f"{site.prefix}metrics", MetricsHandler, wanted),
        (f"{site.prefix}health", HealthHandler, {}),
    ]


class StatusHandler(ApiHandler):
    """`GET api/status`: the part of devices, leases and queue that the sender may see."""

    def get(self) -> None:
        try:
            page = read_page(self)
            seen = visible_status(self.site.broker.status(), self.viewer)
            self.answer(page_of_status(seen, page))
        except BadOption as refusal:
            self.show_refusal(refusal)


def page_of_status(document: Document, page: Page) -> Document:
    """The page of a status document's devices, leases and queue. The other lists are on the first page."""
    keys: Mapping[str, str] = {"devices": "uuid", "leases": "id", "queue": "id"}
    parts = (Part(name, document[name], itemgetter(key)) for name, key in keys.items())
    found = cut(parts, page)
    others = [name for name in ("ended", "disks", "machines") if name in document]
    later: Document = {name: [] for name in others} if page.cursor else {}
    return {**document, **found.lists, **later, "next": found.next}


class TiersHandler(ApiHandler):
    """`GET api/tiers`: the tiers on the spawn page and how much of each is free."""

    def get(self) -> None:
        self.answer(self.site.broker.tiers())


class DescriptionHandler(ApiHandler):
    """`GET api/openapi.json`: the API's description, OpenAPI 3.1."""

    def get(self) -> None:
        self.answer(public_openapi(self.site.prefix))


class MetricsHandler(ApiHandler):
    """`GET metrics`: Prometheus text, for a token with `custom:gpu:read`."""

    def get(self) -> None:
        if not self.viewer.sees_all:
            raise HTTPError(403, "metrics need the scope %s", READ_SCOPE)
        self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.finish(self.site.broker.metrics())


class UnknownApiHandler(ApiHandler):
    """Any other address below `api/`."""

    def get(self) -> None:
        raise HTTPError(404)

    post = delete = get


class HealthHandler(Discreet):
    """`GET health`: answers while the broker's event loop runs. Shows no data and needs no login."""

    def get(self) -> None:
        self.set_header("Cache-Control", "no-store")
        self.finish({"status": "ok"})
