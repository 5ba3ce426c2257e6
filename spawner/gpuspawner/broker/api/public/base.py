"""Who asks, by the hub's login: the base of the service's handlers, for login, scopes, XSRF and errors."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import responses
from typing import Any

from jupyterhub.services.auth import HubOAuth, HubOAuthenticated, UserNotAllowed
from tornado.httputil import HTTPServerRequest
from tornado.web import HTTPError, RequestHandler

from ....core.errors import (
    BrokerUnavailable,
    EngineFault,
    Fault,
    HubFault,
    LedgerFault,
    Refusal,
    TooManyRequests,
)
from ....core.units import Clock, utc_now
from ..access import Viewer, viewer_of
from ..visible import BrokerView
from .limits import WriteLimits
from .origin import is_foreign

_LOG = logging.getLogger("gpuspawner.broker")
_HUB_SECONDS = 10.0
"""How long the hub may take to identify the sender. The event loop keeps running."""
READING = ("GET", "HEAD")
_MOST_SHOWN = 100


def shortened(text: str) -> str:
    """What a sender without rights wrote, as far as the audit log keeps it."""
    return "".join(char for char in text[:_MOST_SHOWN] if char.isprintable())


@dataclass(frozen=True, slots=True)
class Site:
    """The objects of all handlers. `hub` is the name with which this hub asks the broker for leases.

    `local` says who asks where it isn't the hub that knows them: on the unix socket.
    """

    broker: BrokerView
    prefix: str
    hub_auth: HubOAuth
    hub: str | None = None
    clock: Clock = utc_now
    limits: WriteLimits = field(default_factory=WriteLimits)
    local: Callable[[HTTPServerRequest], Viewer] | None = None


Route = tuple[str, type[RequestHandler], dict[str, Any]]


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
    foreign = False
    """Whether a page of another site has sent the request."""
    hub: str | None = None
    limits: WriteLimits
    retry_after_seconds = 0.0
    local: Callable[[HTTPServerRequest], Viewer] | None = None

    def know(self, site: Site) -> None:
        """Takes from it how the sender is known; before `prepare`."""
        self.hub_auth, self.hub, self.limits, self.local = site.hub_auth, site.hub, site.limits, site.local

    def ask_hub_again(self) -> None:
        """The next request asks the hub about its sender again: servers have stopped or started."""
        self.hub_auth.cache.clear()

    def token(self) -> str:
        """The sender's token of the hub; "" for an account of this machine."""
        return "" if self.local is not None else str(self.hub_auth.get_token(self) or "")

    def set_status(self, status_code: int, reason: str | None = None) -> None:
        """Adds `Retry-After` to a 429."""
        super().set_status(status_code, reason)
        if status_code == 429:
            self.set_header("Retry-After", str(math.ceil(self.retry_after_seconds)))

    def set_default_headers(self) -> None:
        self.set_header("Content-Security-Policy", "frame-ancestors 'none'")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-cache, private")

    async def prepare(self) -> None:
        if self.request.method not in self.allowed():
            raise HTTPError(405)  # whoever asks
        if self.local is not None:
            self.viewer = self.local(self.request)
            self.current_user = {"name": self.viewer.name}
            return
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
        if self.request.method not in READING:
            self._check_origin()
            self._count_write()

    def _check_origin(self) -> None:
        """Raises HTTPError 403 for a change by cookie that a page of another site asks for."""
        if not getattr(self, "_token_authenticated", False) and is_foreign(self.request.headers):
            self.foreign = True
            raise HTTPError(403, "a page of another site asked for it")

    def _count_write(self) -> None:
        """Raises HTTPError 429 for a sender that writes too often."""
        self.retry_after_seconds = self.limits.wait_seconds(self.viewer.author)
        if self.retry_after_seconds:
            raise HTTPError(429)

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
        if self.foreign:
            return _FOREIGN
        if status_code == 405:
            return f"This address accepts {', '.join(self.allowed())}, not {self.request.method}."
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
_FOREIGN = (
    "This request comes from a page of another site, so nothing was changed. Open the page of the hub itself "
    "and try again there."
)
_SENTENCES = {
    401: "Log in first: send a JupyterHub API token as 'Authorization: token …', or reload the page.",
    403: "Your account has no permission to see this. Ask the admin of this hub.",
    404: "This page does not exist.",
    429: "You made too many changes in a short time. Wait a moment, then try again.",
    500: "An error occurred in the GPU broker. Admin: see its log.",
    503: "JupyterHub did not answer, so you can't be logged in. Try again in a moment.",
}
_REASONS = {
    401: "login_required",
    403: "not_allowed",
    404: "not_found",
    405: "method_not_allowed",
    429: TooManyRequests.reason,
    503: "hub_unavailable",
}


def refusal_of(error: Refusal | Fault) -> Refusal:
    """What a page shows of it: a refusal as it is, a fault by its message for users."""
    return error if isinstance(error, Refusal) else unavailable(error)


def unavailable(fault: Fault) -> Refusal:
    """The message for the user about a fault; the details go to the log."""
    _LOG.error("A request failed: %s", fault)
    what = {EngineFault: "Docker reports an error", LedgerFault: "the ledger can't be written",
            HubFault: "JupyterHub did not answer"}  # fmt: skip
    why = what.get(type(fault), "a GPU reports an error")
    return BrokerUnavailable(f"This is not possible right now: {why}. Try again in a minute.")


class ApiUser(HubUser):
    """Answers with JSON, also for errors, and never redirects a program to a login page."""

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        self.set_header("Content-Type", "application/json")

    def answer(self, document: dict[str, Any]) -> None:
        """Sends `document` as JSON."""
        self.finish(json.dumps(document))

    def show_refusal(self, refusal: Refusal) -> None:
        """Answers with a refusal."""
        self.set_status(refusal.status)
        self.answer({"reason": refusal.reason, "message": refusal.message})

    def write_error(self, status_code: int, **_: Any) -> None:
        """Sends `{"reason", "message"}`, like the broker's other refusals."""
        if status_code == 401:
            self.set_header("WWW-Authenticate", "token")
        known = "xsrf_missing" if self.lacks_xsrf else "foreign_origin" if self.foreign else ""
        reason = known or _REASONS.get(status_code, "error")
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"reason": reason, "message": self.sentence(status_code)}))


class ApiHandler(ApiUser, HubHandler):
    """JSON from the broker's documents."""
