"""The pages' HTTP server: on the address that the hub gave its service."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from tornado.httpserver import HTTPServer
from tornado.web import Application
from traitlets.config import Config

from ...config.hub_name import hub_of
from ...core.errors import ConfigError
from ..api.public.rules import MoreRoutes
from ..api.visible import BrokerView
from .look import look_of
from .own.desk import Desk
from .routes import make_handlers, make_settings

MakeDesk = Callable[[str], Desk]
MAX_BODY_BYTES = 512 * 1024
"""The longest body: a timetable's iCalendar."""


_PREFIX = "/services/gpu/"


def page_url(environment: Mapping[str, str]) -> str:
    """The address of "My GPU" for a browser: a URL if the hub knows its own, else a path of the same host.

    JupyterHub 5 gives its services JUPYTERHUB_PUBLIC_URL where `public_url` or `subdomain_host` is set.
    """
    path = environment.get("JUPYTERHUB_SERVICE_PREFIX") or _PREFIX
    return environment.get("JUPYTERHUB_PUBLIC_URL") or path


def serve_pages(
    view: BrokerView, config: Config, *, make_desk: MakeDesk | None = None, more: MoreRoutes | None = None
) -> list[HTTPServer]:
    """A listening server; none if no hub started this process. `more` are further routes.

    `make_desk` gets the address of the hub's API. What the first reader would wait for is made before: the
    documents of all leases, and in a thread of its own the templates' programs.

    Raises ConfigError if the port is in use.
    """
    url = os.environ.get("JUPYTERHUB_SERVICE_URL")
    if not url:
        return []
    where = urlsplit(url)
    prefix = os.environ.get("JUPYTERHUB_SERVICE_PREFIX", _PREFIX)
    api_url = os.environ.get("JUPYTERHUB_API_URL", "")
    desk = make_desk(api_url) if make_desk is not None and api_url else None
    look = look_of(config)
    handlers: list[Any] = list(
        make_handlers(view, prefix, look=look, hub=hub_of(config), desk=desk, more=more)
    )
    threading.Thread(target=look.compile, name="templates", daemon=True).start()
    view.status()
    view.tiers()
    server = HTTPServer(Application(handlers, **make_settings()), max_body_size=MAX_BODY_BYTES)
    try:
        server.listen(where.port or 80, where.hostname or "127.0.0.1")
    except OSError as error:
        raise ConfigError(
            f"The GPU page can't listen on {url}: {error.strerror}. Set another port for the service "
            "in jupyterhub_config.py, or stop the program that uses this one"
        ) from error
    return [server]
