"""The rules at the service's own address, behind the hub's login: quotas, GPU-hours, reports, lab sessions.

The handlers of `api/rules.py` say what is read and what is answered. Here
the hub says who asks and what they may: reading needs `custom:gpu:read`, lab sessions `custom:gpu:reserve`,
quotas and GPU-hours `custom:gpu:admin`, each for everybody or with `!group=NAME` for that group alone. The
author of a change is the user that the hub names, whatever the request says. A browser's cookie changes
nothing without the hub's XSRF token, which jupyterhub's HubOAuth checks; a token in the Authorization header
needs none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tornado.web import RequestHandler

from ....core.errors import NotAllowed
from ...leases.audit import Asked
from ...leases.endings import Endings
from ...leases.rule_service import RuleService
from ..access import ADMIN_SCOPE, READ_SCOPE, Reach
from ..rules import (
    CalendarAddressHandler,
    CalendarHandler,
    Change,
    DrainsHandler,
    EndHandler,
    GrantsHandler,
    QuotasHandler,
    ReportHandler,
    RuleHandler,
    SessionHandler,
    SessionsHandler,
    rule_routes,
)
from ..socket import Site as Socket
from .base import READING, ApiUser, Route, Site, shortened

MoreRoutes = Callable[[Site], list[Route]]


def joined(*parts: MoreRoutes) -> MoreRoutes:
    """The routes of all of them."""

    def routes(pages: Site) -> list[Route]:
        return [route for part in parts for route in part(pages)]

    return routes


class PublicRule(ApiUser, RuleHandler):
    """One of the rules' handlers, for users and services of the hub."""

    def initialize(self, pages: Site, **wanted: Any) -> None:  # type: ignore[override]
        RuleHandler.initialize(self, **wanted)
        self.know(pages)

    async def prepare(self) -> None:
        await super().prepare()
        if self._finished:
            return
        reading = self.request.method in READING
        if not (self.viewer.read if reading else self.held()):
            refusal = lacks(READ_SCOPE if reading else self.needs)
            if not reading:
                await self._record(refusal)
            self.refuse(refusal)
            self.finish()

    async def _record(self, refusal: NotAllowed) -> None:
        """That somebody tried it who has this scope for nobody; what they sent isn't even read."""
        action = shortened(f"{self.request.method} {self.request.path.partition('/api/')[2]}")
        asked = Asked(self.viewer.author, self.via, action, "api")
        await self.rules.audit.refuse(asked, refusal.message)

    @property
    def via(self) -> str:
        """The way by which the request came."""
        return self.viewer.via

    def reach(self) -> Reach:
        return self.viewer.read

    def held(self) -> Reach:
        """For whom the sender has the scope that changes need here."""
        return self.viewer.admin if self.needs == ADMIN_SCOPE else self.viewer.reserve

    def allow(self, change: Change) -> None:
        if not self.held().covers_each(change.groups):
            raise lacks(self.needs, *change.groups)

    def body(self) -> bytes:
        """The request's body with the author that the hub names.

        An account of this machine may name another one: `sudo` hides who typed.
        """
        sent = super().body()
        try:
            values = json.loads(sent)
        except ValueError:
            return sent
        if not isinstance(values, dict):
            return sent
        author = {"author": self.viewer.author}
        return json.dumps({**author, **values} if self.viewer.local else {**values, **author}).encode()


def lacks(scope: str, *groups: str) -> NotAllowed:
    """The refusal for want of a scope; with `groups`, the sender has it, but not for these."""
    does = "see" if scope == READ_SCOPE else "change"
    names = ", ".join(f"!group={group}" for group in groups)
    needed = f"{scope}, or {scope} with {names}" if groups else scope
    return NotAllowed(f"Your account may not {does} this: that needs the scope {needed} of the hub.")


class PublicQuotas(PublicRule, QuotasHandler):
    """GET POST DELETE api/quotas"""


class PublicGrants(PublicRule, GrantsHandler):
    """POST api/grants"""


class PublicEnd(PublicRule, EndHandler):
    """POST api/leases/{id}/end"""


class PublicDrains(PublicRule, DrainsHandler):
    """GET POST DELETE api/drains"""


class PublicReport(PublicRule, ReportHandler):
    """GET api/report"""


class PublicSessions(PublicRule, SessionsHandler):
    """GET POST api/sessions"""


class PublicSession(PublicRule, SessionHandler):
    """DELETE api/sessions/{name}"""


class PublicCalendar(PublicRule, CalendarHandler):
    """GET POST api/sessions/calendar"""


class PublicCalendarAddress(PublicRule, CalendarAddressHandler):
    """GET api/sessions/calendar/address"""


_PUBLIC: dict[type[RuleHandler], type[RequestHandler]] = {
    QuotasHandler: PublicQuotas,
    EndHandler: PublicEnd,
    GrantsHandler: PublicGrants,
    DrainsHandler: PublicDrains,
    ReportHandler: PublicReport,
    SessionsHandler: PublicSessions,
    SessionHandler: PublicSession,
    CalendarHandler: PublicCalendar,
    CalendarAddressHandler: PublicCalendarAddress,
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
