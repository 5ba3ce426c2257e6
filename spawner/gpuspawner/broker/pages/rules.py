"""The rules at the service's own address, behind the hub's login: quotas, GPU-hours, reports, lab sessions.

The handlers are those of the unix socket (`api/rules.py`), which say what is read and what is answered. Here
the hub says who asks and what they may: reading needs `custom:gpu:read`, every change `custom:gpu:admin`. The
author of a change is the user that the hub names, whatever the request says. A browser's cookie changes
nothing without the hub's XSRF token, which jupyterhub's HubOAuth checks; a token in the Authorization header
needs none.
"""

from __future__ import annotations

import json
from typing import Any

from tornado.web import RequestHandler

from ...core.errors import NotAllowed
from ..api.rules import (
    CalendarHandler,
    GrantsHandler,
    QuotasHandler,
    ReportHandler,
    RuleHandler,
    SessionHandler,
    SessionsHandler,
    rule_routes,
)
from ..api.socket import Site as Socket
from ..api.visible import READ_SCOPE
from ..leases.endings import Endings
from ..leases.rule_service import RuleService
from .handlers import ApiUser, MoreRoutes, Route, Site

ADMIN_SCOPE = "custom:gpu:admin"
"""The hub scope that changes quotas, GPU-hours and lab sessions."""


class PublicRule(ApiUser, RuleHandler):
    """One of the rules' handlers, for users and services of the hub."""

    def initialize(self, pages: Site, **wanted: Any) -> None:  # type: ignore[override]
        RuleHandler.initialize(self, **wanted)
        self.know(pages)

    async def prepare(self) -> None:
        await super().prepare()
        needed = READ_SCOPE if self.request.method in ("GET", "HEAD") else ADMIN_SCOPE
        if not self._finished and needed not in self.current_user.get("scopes", ()):
            does = "see this" if needed == READ_SCOPE else "change this"
            self.refuse(NotAllowed(f"Your account may not {does}: that needs the scope {needed} of the hub."))
            self.finish()

    def body(self) -> bytes:
        """The request's body with the author that the hub names."""
        sent = super().body()
        try:
            values = json.loads(sent)
        except ValueError:
            return sent
        if not isinstance(values, dict):
            return sent
        name = self.viewer.name if self.viewer.owns else f"service {self.viewer.name}"
        return json.dumps({**values, "author": name}).encode()


class PublicQuotas(PublicRule, QuotasHandler):
    """GET POST DELETE api/quotas"""


class PublicGrants(PublicRule, GrantsHandler):
    """POST api/grants"""


class PublicReport(PublicRule, ReportHandler):
    """GET api/report"""


class PublicSessions(PublicRule, SessionsHandler):
    """GET POST api/sessions"""


class PublicSession(PublicRule, SessionHandler):
    """DELETE api/sessions/{name}"""


class PublicCalendar(PublicRule, CalendarHandler):
    """GET POST api/sessions/calendar"""


_PUBLIC: dict[type[RuleHandler], type[RequestHandler]] = {
    QuotasHandler: PublicQuotas,
    GrantsHandler: PublicGrants,
    ReportHandler: PublicReport,
    SessionsHandler: PublicSessions,
    SessionHandler: PublicSession,
    CalendarHandler: PublicCalendar,
}


def public_rules(socket: Socket, rules: RuleService, endings: Endings) -> MoreRoutes:
    """The socket's routes of rules as routes of the service, for `make_handlers`."""

    def routes(pages: Site) -> list[Route]:
        return [
            (f"{pages.prefix}api{path}", _PUBLIC[handler], {**wanted, "pages": pages})
            for path, handler, wanted in rule_routes(socket, rules, endings)
            if handler in _PUBLIC
        ]

    return routes
