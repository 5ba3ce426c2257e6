"""The base of all HTML pages: login by redirect, the hub's look, and a live part that is fetched again."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from http.client import responses
from typing import Any, ClassVar

from jupyterhub.services.auth import HubOAuthCallbackHandler
from tornado.web import HTTPError, StaticFileHandler

from ..api.access import Viewer
from ..api.public.base import Discreet, HubHandler, Route, Site
from .look import Look
from .navigation import navigation


@dataclass(frozen=True, slots=True)
class PageSite(Site):
    """The objects of the pages' handlers."""

    look: Look = field(default_factory=Look)

    @property
    def hub_url(self) -> str:
        """Address of the hub's own pages, with a slash at its end."""
        return self.look.hub_url(self.hub_auth)


class PageHandler(HubHandler):
    """One page. `template` is the whole page, `live_template` the part that changes; both get `page`.

    `address` is relative to the service. `live_address` gives the part that changes; the script fetches it.
    """

    template: ClassVar[str]
    live_template: ClassVar[str]
    address: ClassVar[str]
    site: PageSite

    def on_unknown(self) -> None:
        self.redirect(self.get_login_url())  # type: ignore[no-untyped-call]

    def may_see(self, viewer: Viewer) -> bool:
        """Whether this page is for the viewer."""
        return True

    @abstractmethod
    async def content(self, *path: str) -> Any:
        """What the templates show as `page`."""

    async def get(self, *path: str) -> None:
        await self.show(self.template, *path)

    async def show(self, template: str, *path: str) -> None:
        """Answers with the template. Raises HTTPError 403 if the page is not for the viewer."""
        if not self.may_see(self.viewer):
            raise HTTPError(403, "the page %s is not for %s", self.address, self.viewer.name)
        page = await self.content(*path)
        self.finish(self.site.look.render(template, page=page, **self.namespace()))

    def namespace(self) -> dict[str, Any]:
        """The variables of all templates: those of the hub's, and of ours."""
        site = self.site
        return {
            **site.look.namespace(
                site.hub_auth, site.prefix, self.current_user, self.xsrf_token.decode("ascii")
            ),
            "viewer": self.viewer,
            "navigation": navigation(self.viewer, site.prefix, self.address),
            "live_url": f"{self.request.path}live{f'?{self.request.query}' if self.request.query else ''}",
        }

    def write_error(self, status_code: int, **_: Any) -> None:
        """The hub's own error page."""
        self.finish(
            self.site.look.render(
                "error.html",
                status_code=status_code,
                status_message=responses.get(status_code, "Unknown error"),
                message=self.sentence(status_code),
                **self.site.look.namespace(self.site.hub_auth, self.site.prefix, self.current_user, ""),
            )
        )


class LiveMixin(PageHandler):
    """The changing part of a page as HTML; unchanged, it is a 304 by its ETag."""

    def on_unknown(self) -> None:
        raise HTTPError(401)

    async def get(self, *path: str) -> None:
        await self.show(self.live_template, *path)

    def write_error(self, status_code: int, **_: Any) -> None:
        """Sends one line of text; the script shows its own message."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(self.sentence(status_code))


def page_routes(
    site: PageSite, page: type[PageHandler], pattern: str | None = None, **wanted: Any
) -> list[Route]:
    """The routes of a page and of its live part; `pattern` is its address where that has groups.

    `wanted` goes to the handlers' `initialize`, with the site.
    """
    address = f"{site.prefix}{page.address if pattern is None else pattern}"
    live = type(f"Live{page.__name__}", (LiveMixin, page), {"__doc__": "The changing part of the page."})
    return [(address, page, {"site": site, **wanted}), (f"{address}live", live, {"site": site, **wanted})]


class UnknownPageHandler(PageHandler):
    """Any other address of the service."""

    address = ""

    async def content(self, *path: str) -> Any:
        raise HTTPError(404)

    async def get(self, *path: str) -> None:
        raise HTTPError(404)


class CallbackHandler(HubOAuthCallbackHandler, Discreet):
    """`GET oauth_callback`: the hub redirects the browser to it after the login."""

    def initialize(self, site: PageSite) -> None:
        self.hub_auth = site.hub_auth

    def set_default_headers(self) -> None:
        self.set_header("Content-Security-Policy", "frame-ancestors 'none'")


class SlashHandler(Discreet):
    """The service's address without its slash, as people type it."""

    def initialize(self, target: str) -> None:
        self.target = target

    def get(self) -> None:
        query = self.request.query
        self.redirect(f"{self.target}?{query}" if query else self.target)


class AssetHandler(Discreet, StaticFileHandler):
    """Script and style sheet of the page; public, like the hub's own."""

    def head(self, *path: str) -> Any:
        """tornado's own: it reads no file for it."""
        return StaticFileHandler.head(self, *path)

    def prepare(self) -> None:
        """No file's name has a NUL, and the operating system's calls raise ValueError for one."""
        if "\0" in (self.path_args[0] or ""):
            raise HTTPError(404)

    def set_default_headers(self) -> None:
        self.set_header("X-Content-Type-Options", "nosniff")
