"""All addresses of the service: the API's, the pages', and what they need."""

from __future__ import annotations

import hashlib
import logging
import os
from typing import Any

from jupyterhub.services.auth import HubOAuth
from tornado.log import access_log
from tornado.web import RequestHandler

from ..api.live import Live
from ..api.public.base import Route
from ..api.public.leases import lease_routes
from ..api.public.reading import UnknownApiHandler, reading_routes
from ..api.public.rules import MoreRoutes
from ..api.visible import BrokerView
from .base import AssetHandler, CallbackHandler, PageSite, SlashHandler, UnknownPageHandler
from .look import HUB_STATIC, HUB_STATIC_DIR, STATIC_DIR, Look
from .own.desk import Desk
from .own.handlers import own_routes
from .own.stop import stop_routes
from .readings import Readings

_LOG = logging.getLogger("gpuspawner.broker")

TOKEN_SECONDS = 30
"""Seconds for which the hub's answer about a token is cached; jupyterhub's own default is 300."""


def make_handlers(
    broker: BrokerView,
    prefix: str,
    *,
    look: Look | None = None,
    hub_auth: HubOAuth | None = None,
    hub: str | None = None,
    desk: Desk | None = None,
    more: MoreRoutes | None = None,
) -> list[Route]:
    """The routes below `prefix` ("/services/gpu/"), for a tornado Application made with `make_settings()`.

    `look` brings the site's own templates; `hub_auth` is jupyterhub's own, from the environment of a
    hub's service, unless given; `hub` is the broker's name for this hub, where several share it. `desk` has
    what "My GPU" needs of a broker. `more` gives further routes below the prefix.
    """
    prefix = "/" + prefix.strip("/") + "/" if prefix.strip("/") else "/"
    live = Live(broker, _LOG) if desk is None else Live(broker, _LOG, messages=desk.told)
    site = PageSite(
        broker, prefix, hub_auth or hub_oauth(), hub,
        look=look or Look(), live=live, readings=Readings(live), desk=desk,
    )  # fmt: skip
    wanted: dict[str, Any] = {"site": site}
    return [
        *([] if prefix == "/" else [(prefix.rstrip("/"), SlashHandler, {})]),
        *own_routes(site),
        *stop_routes(site),
        *reading_routes(site),
        (f"{prefix}oauth_callback", CallbackHandler, wanted),
        (f"{prefix}static/(.*)", AssetHandler, {"path": str(STATIC_DIR)}),
        (f"{prefix}{HUB_STATIC}(.*)", AssetHandler, {"path": str(HUB_STATIC_DIR)}),
        *(() if desk is None else lease_routes(site, desk.actions)),
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
