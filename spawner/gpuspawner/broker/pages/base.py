"""The base of all HTML pages: login by redirect, the hub's look, and a live part that is fetched again."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import responses
from typing import TYPE_CHECKING, Any, ClassVar

from jupyterhub.services.auth import HubOAuthCallbackHandler
from markupsafe import Markup
from tornado.web import HTTPError, RequestHandler, StaticFileHandler

from ..api.access import Viewer
from ..api.live import Live
from ..api.public.base import Discreet, HubHandler, Site
from ..api.visible import Document
from .look import Look
from .navigation import navigation
from .readings import Readings

if TYPE_CHECKING:
    from .own.desk import Desk


Parts = dict[str, tuple[Any, Any]]
"""For each section's id: a value that is equal as long as the section is, and what its macro shows."""


@dataclass(frozen=True, slots=True)
class PageSite(Site):
    """The objects of the pages' handlers."""

    look: Look = field(default_factory=Look)
    live: Live | None = None
    readings: Readings | None = None
    desk: Desk | None = None

    @property
    def hub_url(self) -> str:
        """Address of the hub's own pages, with a slash at its end."""
        return self.look.hub_url(self.hub_auth)


class PageHandler(HubHandler):
    """One page. `template` is the whole page, `live_template` the part that changes; both get `page`.

    `address` is relative to the service and ends with a slash, or is empty. `parts_template` has a macro for
    each section of `parts`, named as its id is after "gpu-". An open page is looked at again every
    `refresh_seconds` even if no lease changed: times in words go on, and it may show what else changes.
    """

    template: ClassVar[str]
    live_template: ClassVar[str]
    parts_template: ClassVar[str] = ""
    refresh_seconds: ClassVar[float] = 60.0
    address: ClassVar[str]
    site: PageSite

    def on_unknown(self) -> None:
        self.redirect(self.get_login_url())  # type: ignore[no-untyped-call]

    def may_see(self, viewer: Viewer) -> bool:
        """Whether this page is for the viewer."""
        return True

    def page_path(self) -> str:
        """The path of the page itself, whichever of its addresses was asked for."""
        return self.request.path.removesuffix("events").removesuffix("live")

    def page_name(self) -> str:
        """The page's address below the service."""
        return self.page_path().removeprefix(self.site.prefix)

    def status(self) -> Document:
        """The whole status document."""
        return self.site.broker.status()

    def tiers(self) -> Document:
        """The tiers and what is free of each."""
        return self.site.broker.tiers()

    def reads(self, readings: Readings) -> Mapping[str, str]:
        """The readings of the leases on this page, as JSON by lease id."""
        return readings.seen_by(self.viewer)

    @abstractmethod
    async def content(self, *path: str) -> Any:
        """What the templates show as `page`."""

    async def get(self, *path: str) -> None:
        await self.show(self.template, *path)

    async def show(self, template: str, *path: str) -> None:
        """Answers with the template. Raises HTTPError 403 if the page is not for the viewer."""
        if not self.may_see(self.viewer):
            raise HTTPError(403, "the page %s is not for %s", self.address, self.viewer.name)
        page, outcome = await self.content(*path), await self.outcome()
        self.finish(self.site.look.render(template, page=page, outcome=outcome, **self.namespace()))

    async def outcome(self) -> Mapping[str, str]:
        """A sentence above the page, with `level` (Bootstrap's colour) and `sentence`; empty for none."""
        return {}

    async def parts(self, *path: str) -> Parts | None:
        """What each section shows, for events; None: the script fetches the live part after each change."""
        return None

    def part_variables(self) -> dict[str, Any]:
        """The variables of a section's macro besides `page`: what its forms need."""
        return {"service_url": self.site.prefix, "xsrf": self.xsrf_token.decode("ascii")}

    def namespace(self) -> dict[str, Any]:
        """The variables of all templates: those of the hub's, and of ours."""
        site, part = self.site, self.part_variables()
        query = f"?{self.request.query}" if self.request.query else ""
        return {
            **site.look.namespace(site.hub_auth, site.prefix, self.current_user, part["xsrf"]),
            "form": part,
            "viewer": self.viewer,
            "navigation": navigation(self.viewer, site.prefix, self.address),
            "live_url": f"{self.page_path()}live{query}",
            "events_url": f"{self.page_path()}events{query}" if site.live is not None else "",
        }

    def write_error(self, status_code: int, **_: Any) -> None:
        """The hub's own error page, with who is logged in and the way back."""
        self.finish(
            self.site.look.render(
                "error.html",
                status_code=status_code,
                status_message=responses.get(status_code, "Unknown error"),
                message=self.sentence(status_code),
                extra_error_html=self._way_back(),
                **self.site.look.namespace(self.site.hub_auth, self.site.prefix, self.current_user, ""),
            )
        )

    def _way_back(self) -> str:
        home = Markup('<a href="{}home">Home</a>').format(self.site.hub_url)
        if self.current_user is None:
            return home
        name = self.current_user["name"]
        return Markup("You are logged in as <strong><bdi>{}</bdi></strong>. {}").format(name, home)


class LiveMixin(PageHandler):
    """The changing part of a page as HTML; unchanged, it is a 304 by its ETag. It takes no form."""

    post = RequestHandler.post

    def on_unknown(self) -> None:
        raise HTTPError(401)

    async def get(self, *path: str) -> None:
        await self.show(self.live_template, *path)

    def write_error(self, status_code: int, **_: Any) -> None:
        """Sends one line of text; the script shows its own message."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(self.sentence(status_code))


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
    """A page's address without its slash, as people type it."""

    def get(self, *path: str) -> None:
        query = f"?{self.request.query}" if self.request.query else ""
        self.redirect(f"{self.request.path}/{query}")


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
