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
"""How long the hub may take to identify the sender. The event loop keeps running."""
TOKEN_SECONDS = 30
"""Seconds for which the hub's answer about a token is cached; jupyterhub's own default is 300."""


@dataclass(frozen=True, slots=True)
class Site:
    """The objects of all handlers. `hub` is the name with which this hub asks the broker for leases."""

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
    site = Site(broker, prefix, look or Look(), hub_auth or hub_oauth(), hub)
    wanted: dict[str, Any] = {"site": site}
    without_slash = [(prefix.rstrip("/"), SlashHandler, {"target": prefix})] if prefix != "/" else []
    return [
        *without_slash,
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


def hub_oauth() -> HubOAuth:
    """jupyterhub's own, from the environment of a hub's service, that asks the hub again soon."""
    return HubOAuth.instance(cache_max_age=TOKEN_SECONDS)


def make_settings() -> dict[str, Any]:
    """Settings of the tornado Application that carries the handlers.

    The cookie secret is derived from the service's API token, so that a restarted broker accepts the
    cookies of the one before. Without a token it is random.
    """
    token = os.environ.get("JUPYTERHUB_API_TOKEN", "")
    secret = hashlib.sha256(f"gpuspawner cookie {token}".encode()).digest() if token else os.urandom(32)
    return {"cookie_secret": secret, "log_function": log_request}


def log_request(handler: RequestHandler) -> None:
    """Logs one line per request, without its query, which may contain a token or a code."""
    status, request = handler.get_status(), handler.request
    level = logging.ERROR if status >= 500 else logging.DEBUG
    seconds = request.request_time()
    access_log.log(level, "%d %s %s (%.3f s)", status, request.method, request.path, seconds)


class Discreet(RequestHandler):
    """The base of all handlers here: HEAD like GET without its body, `Allow` with a 405 (RFC 9110).

    Removes the query from tornado's own error lines, too.
    """

    def head(self, *path: str) -> Any:
        """The same headers as GET; tornado leaves the body out."""
        return self.get(*path)

    def allowed(self) -> tuple[str, ...]:
        """The methods that this address accepts."""
        return tuple(
            method
            for method in ("GET", "HEAD", "POST", "DELETE")
            if getattr(type(self), method.lower()) is not getattr(RequestHandler, method.lower())
        )

    def set_status(self, status_code: int, reason: str | None = None) -> None:
        """Adds `Allow` to a 405; tornado has cleared the other headers before."""
        super().set_status(status_code, reason)
        if status_code == 405:
            self.set_header("Allow", ", ".join(self.allowed()))

    def _request_summary(self) -> str:
        return f"{self.request.method} {self.request.path}"


class HubUser(HubOAuthenticated, Discreet):
    """A request whose sender the hub knows: cookie after OAuth, or a token in the Authorization header.

    jupyterhub's own `get_current_user` blocks the event loop, which also serves leases and their holds, while
    it waits for the hub; so `prepare` asks the hub, with a time limit.
    """

    viewer: Viewer
    lacks_xsrf = False
    """Whether the browser's cookie was not looked at, for want of the XSRF token."""
    hub: str | None = None

    def know(self, site: Site) -> None:
        """Takes from it how the hub is asked; before `prepare`."""
        self.hub_auth, self.hub = site.hub_auth, site.hub

    def set_default_headers(self) -> None:
        self.set_header("Content-Security-Policy", "frame-ancestors 'none'")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-cache, private")

    async def prepare(self) -> None:
        if self.request.method not in self.allowed():
            raise HTTPError(405)  # whoever asks
        model = await self._ask_hub()
        if model is None:
            self.current_user = None
            self._check_forged()
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
        """The user model, None without a login. Raises HTTPError 503 if the hub can't answer."""
        # Set before asking, so that showing an error page doesn't ask again.
        self._hub_auth_user_cache = None
        try:
            model: dict[str, Any] | None = await asyncio.wait_for(
                self.hub_auth.get_user(self, sync=False), _HUB_SECONDS
            )
        except TimeoutError as late:
            raise HTTPError(503, "the hub did not answer in %s s", _HUB_SECONDS) from late
        except HTTPError as failed:
            raise HTTPError(503, "the hub can't identify the sender: %s", failed) from failed
        return model

    def _check_forged(self) -> None:
        """Raises HTTPError 403 for a cookie that jupyterhub ignored because the XSRF token is missing."""
        if self.get_secure_cookie(self.hub_auth.cookie_name) is None:
            return
        try:
            self.check_xsrf_cookie()  # type: ignore[no-untyped-call]
        except HTTPError as refused:
            self.lacks_xsrf = True
            raise HTTPError(403, "%s", refused.log_message) from refused

    def on_unknown(self) -> None:
        """Answers a request whose sender the hub does not know."""
        raise HTTPError(401)

    def sentence(self, status_code: int) -> str:
        """The error message for people."""
        if self.lacks_xsrf:
            return _LACKS_XSRF
        return _SENTENCES.get(status_code, responses.get(status_code, "Unknown error"))


class HubHandler(HubUser):
    """One that answers from the broker's documents."""

    site: Site

    def initialize(self, site: Site) -> None:
        self.site = site
        self.know(site)


_LACKS_XSRF = (
    "This request lacks the page's XSRF token, or brings that of an earlier login: reload the page and try "
    "again. A program sends an API token in place of the browser's cookie."
)
_SENTENCES = {
    401: "Log in first: send a JupyterHub API token as 'Authorization: token …', or reload the page.",
    403: "Your account has no permission to see this. Ask the admin of this hub.",
    404: "This page does not exist.",
    405: "This address can only be read.",
    500: "An error occurred in the GPU broker. Admin: see its log.",
    503: "JupyterHub did not answer, so you can't be logged in. Try again in a moment.",
}
_REASONS = {
    401: "login_required",
    403: "not_allowed",
    404: "not_found",
    405: "method_not_allowed",
    503: "hub_unavailable",
}


class ApiUser(HubUser):
    """Answers with JSON, also for errors, and never redirects a program to a login page."""

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        self.set_header("Content-Type", "application/json")

    def answer(self, document: dict[str, Any]) -> None:
        """Sends `document` as JSON."""
        self.finish(json.dumps(document))

    def write_error(self, status_code: int, **_: Any) -> None:
        """Sends `{"reason", "message"}`, like the broker's other refusals."""
        if status_code == 401:
            self.set_header("WWW-Authenticate", "token")
        reason = "xsrf_missing" if self.lacks_xsrf else _REASONS.get(status_code, "error")
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"reason": reason, "message": self.sentence(status_code)}))


class ApiHandler(ApiUser, HubHandler):
    """JSON from the broker's documents."""


class StatusHandler(ApiHandler):
    """`GET api/status`: the part of devices, leases and queue that the sender may see."""

    def get(self) -> None:
        self.answer(visible_status(self.site.broker.status(), self.viewer))


class TiersHandler(ApiHandler):
    """`GET api/tiers`: the tiers on the spawn page and how much of each is free."""

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


class HealthHandler(Discreet):
    """`GET health`: answers while the broker's event loop runs. Shows no data and needs no login."""

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
        """Sends one line of text; the script shows its own message."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(self.sentence(status_code))


class UnknownPageHandler(PageHandler):
    """Any other address of the service."""

    def get(self) -> None:
        raise HTTPError(404)


class CallbackHandler(HubOAuthCallbackHandler, Discreet):
    """`GET oauth_callback`: the hub redirects the browser to it after the login."""

    def initialize(self, site: Site) -> None:
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
