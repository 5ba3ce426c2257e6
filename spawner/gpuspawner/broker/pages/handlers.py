"""Tornado handlers of the GPU page and its API, behind the hub's login."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from http.client import responses
from pathlib import Path
from typing import Any

from jupyterhub.services.auth import (
    HubOAuth,
    HubOAuthCallbackHandler,
    HubOAuthenticated,
    UserNotAllowed,
)
from tornado.log import access_log
from tornado.web import HTTPError, RequestHandler, StaticFileHandler

from ...core.units import Clock, utc_now
from ..api.visible import READ_SCOPE, BrokerView, Viewer, viewer_of, visible_status
from .look import Look
from .page import build_page

STATIC_DIR = Path(__file__).parent / "static"

_HUB_SECONDS = 10.0
"""How long the hub may take to say who asks. The event loop goes on meanwhile."""


@dataclass(frozen=True, slots=True)
class Site:
    """What every handler knows. `hub` is the name under which this hub asks the broker for leases."""

    broker: BrokerView
    prefix: str
    look: Look
    hub_auth: HubOAuth
    hub: str | None = None
    clock: Clock = utc_now


Route = tuple[str, type[RequestHandler], dict[str, Any]]
MoreRoutes = Callable[[Site], list[Route]]


def make_handlers(
    broker: BrokerView,
    prefix: str,
    *,
    look: Look | None = None,
    hub_auth: HubOAuth | None = None,
    hub: str | None = None,
    more: MoreRoutes | None = None,
) -> list[Route]:
    """The routes below `prefix` ("/services/gpu/"), for a tornado Application made with `make_settings()`.

    `look` brings the site's own templates; `hub_auth` is jupyterhub's own, from the environment of a
    hub's service, unless given; `hub` is the broker's name for this hub, where several share it. `more` gives
    further routes below the prefix.
    """
    prefix = "/" + prefix.strip("/") + "/" if prefix.strip("/") else "/"
    site = Site(broker, prefix, look or Look(), hub_auth or HubOAuth.instance(), hub)
    wanted: dict[str, Any] = {"site": site}
    return [
        (prefix, PageHandler, wanted),
        (f"{prefix}live", LiveHandler, wanted),
        (f"{prefix}api/status", StatusHandler, wanted),
        (f"{prefix}api/tiers", TiersHandler, wanted),
        (f"{prefix}metrics", MetricsHandler, wanted),
        (f"{prefix}health", HealthHandler, {}),
        (f"{prefix}oauth_callback", CallbackHandler, wanted),
        (f"{prefix}static/(.*)", AssetHandler, {"path": str(STATIC_DIR)}),
        *(() if more is None else more(site)),
        (f"{prefix}api/.*", UnknownApiHandler, wanted),
        (f"{prefix}.*", UnknownPageHandler, wanted),
    ]


def make_settings() -> dict[str, Any]:
    """Settings of the tornado Application that carries the handlers.

    The cookie secret comes from the service's API token, so that a broker which is started again takes
    the cookies of the one before. Without a token it is made up.
    """
    token = os.environ.get("JUPYTERHUB_API_TOKEN", "")
    secret = hashlib.sha256(f"gpuspawner cookie {token}".encode()).digest() if token else os.urandom(32)
    return {"cookie_secret": secret, "log_function": log_request}


def log_request(handler: RequestHandler) -> None:
    """One line a request, without its query, in which a token or a code may stand."""
    status, request = handler.get_status(), handler.request
    level = logging.ERROR if status >= 500 else logging.DEBUG
    seconds = request.request_time()
    access_log.log(level, "%d %s %s (%.3f s)", status, request.method, request.path, seconds)


class Discreet(RequestHandler):
    """Keeps the query out of tornado's own lines about errors too."""

    def _request_summary(self) -> str:
        return f"{self.request.method} {self.request.path}"


class HubUser(HubOAuthenticated, Discreet):
    """A request whose sender the hub knows: cookie after OAuth, or a token in the Authorization header.

    jupyterhub's own `get_current_user` waits for the hub and stops the event loop meanwhile, on which
    leases and their holds live; so the hub is asked in `prepare`, with a time limit.
    """

    viewer: Viewer
    hub: str | None = None

    def know(self, site: Site) -> None:
        """Takes from it how the hub is asked; before `prepare`."""
        self.hub_auth, self.hub = site.hub_auth, site.hub

    def set_default_headers(self) -> None:
        self.set_header("Content-Security-Policy", "frame-ancestors 'none'")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-cache, private")

    async def prepare(self) -> None:
        model = await self._ask_hub()
        if model is None:
            self.current_user = None
            self.on_unknown()
            return
        try:
            self.check_hub_user(model)  # type: ignore[no-untyped-call]
        except UserNotAllowed as refused:
            self.current_user = None
            raise HTTPError(403, "%s", refused) from refused
        self.current_user = model
        self.viewer = viewer_of(model, self.hub)

    async def _ask_hub(self) -> dict[str, Any] | None:
        """The user model, None for nobody. Raises HTTPError 503 if the hub can't say."""
        # Set before asking, so that showing an error page doesn't ask again.
        self._hub_auth_user_cache = None
        try:
            model: dict[str, Any] | None = await asyncio.wait_for(
                self.hub_auth.get_user(self, sync=False), _HUB_SECONDS
            )
        except TimeoutError as late:
            raise HTTPError(503, "the hub did not answer in %s s", _HUB_SECONDS) from late
        except HTTPError as failed:
            raise HTTPError(503, "the hub can't say who asks: %s", failed) from failed
        return model

    def on_unknown(self) -> None:
        """Answers a request whose sender the hub does not know."""
        raise HTTPError(401)

    def sentence(self, status_code: int) -> str:
        """What went wrong, for people."""
        return _SENTENCES.get(status_code, responses.get(status_code, "Unknown error"))


class HubHandler(HubUser):
    """One that answers from the broker's documents."""

    site: Site

    def initialize(self, site: Site) -> None:
        self.site = site
        self.know(site)


_SENTENCES = {
    401: "Log in first: send a JupyterHub API token as 'Authorization: token …', or reload the page.",
    403: "Your account may not see this. Ask the admin of this hub.",
    404: "There is no such page.",
    405: "This address can only be read.",
    500: "Something broke on our side; the broker's log says what.",
    503: "JupyterHub did not answer, so nobody can be logged in. Try again in a moment.",
}
_REASONS = {
    401: "login_required",
    403: "not_allowed",
    404: "not_found",
    405: "method_not_allowed",
    503: "hub_unavailable",
}


class ApiUser(HubUser):
    """Answers JSON, errors too, and never sends a program to a login page."""

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        self.set_header("Content-Type", "application/json")

    def answer(self, document: dict[str, Any]) -> None:
        """Sends `document` as JSON."""
        self.finish(json.dumps(document))

    def write_error(self, status_code: int, **_: Any) -> None:
        """`{"reason", "message"}`, as the broker's other refusals."""
        if status_code == 401:
            self.set_header("WWW-Authenticate", "token")
        reason = _REASONS.get(status_code, "error")
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"reason": reason, "message": self.sentence(status_code)}))


class ApiHandler(ApiUser, HubHandler):
    """JSON from the broker's documents."""


class StatusHandler(ApiHandler):
    """`GET api/status`: devices, leases and queue, as far as the sender may see them."""

    def get(self) -> None:
        self.answer(visible_status(self.site.broker.status(), self.viewer))


class TiersHandler(ApiHandler):
    """`GET api/tiers`: what can be picked on the spawn page, with what is free of each."""

    def get(self) -> None:
        self.answer(self.site.broker.tiers())


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


class HealthHandler(RequestHandler):
    """`GET health`: answers while the broker's event loop runs. Tells nothing and needs no login."""

    def get(self) -> None:
        self.set_header("Cache-Control", "no-store")
        self.finish({"status": "ok"})


class PageHandler(HubHandler):
    """`GET /services/gpu/`: the GPU page."""

    def on_unknown(self) -> None:
        self.redirect(self.get_login_url())  # type: ignore[no-untyped-call]

    def get(self) -> None:
        self.finish(self._render("gpu.html"))

    def _render(self, template: str) -> str:
        site = self.site
        hub_url = site.look.hub_url(site.hub_auth)
        page = build_page(
            site.broker.status(), site.broker.tiers(), self.viewer, hub_url=hub_url, now=site.clock()
        )
        return site.look.render(template, page=page, **self._namespace())

    def _namespace(self) -> dict[str, Any]:
        return self.site.look.namespace(
            self.site.hub_auth, self.site.prefix, self.current_user, self.xsrf_token.decode("ascii")
        )

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


class LiveHandler(PageHandler):
    """`GET live`: the changing part of the page as HTML; unchanged, it is a 304 by its ETag."""

    def on_unknown(self) -> None:
        raise HTTPError(401)

    def get(self) -> None:
        self.finish(self._render("gpu_live.html"))

    def write_error(self, status_code: int, **_: Any) -> None:
        """One line of text: the script shows its own words."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(self.sentence(status_code))


class UnknownPageHandler(PageHandler):
    """Any other address of the service."""

    def get(self) -> None:
        raise HTTPError(404)


class CallbackHandler(HubOAuthCallbackHandler, Discreet):
    """`GET oauth_callback`: where the hub sends a browser back to after its login."""

    def initialize(self, site: Site) -> None:
        self.hub_auth = site.hub_auth

    def set_default_headers(self) -> None:
        self.set_header("Content-Security-Policy", "frame-ancestors 'none'")


class AssetHandler(StaticFileHandler):
    """Script and style sheet of the page; public, like the hub's own."""

    def set_default_headers(self) -> None:
        self.set_header("X-Content-Type-Options", "nosniff")
