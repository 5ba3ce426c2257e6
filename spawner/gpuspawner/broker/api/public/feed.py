"""GET calendar/{secret}.ics: lab sessions for calendar programs, without a login; the secret is the right."""

from __future__ import annotations

from tornado.web import HTTPError, RequestHandler

from ...leases.calendar_feeds import ALL
from ...leases.rule_service import RuleService
from .base import Route, Site
from .rules import MoreRoutes

FRESH_SECONDS = 300
"""For so long a program may use what it has read."""


class FeedHandler(RequestHandler):
    """Names, times, groups and places of lab sessions; nothing about people."""

    SUPPORTED_METHODS = ("GET", "HEAD")

    def initialize(self, rules: RuleService) -> None:
        """`rules` has the sessions."""
        self._rules = rules

    def set_default_headers(self) -> None:
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cache-Control", f"private, max-age={FRESH_SECONDS}")

    def get(self, secret: str) -> None:
        """The calendar; 404 for a secret that nobody was given."""
        group = self._rules.feeds.group_of(secret, self._rules.groups_with_sessions())
        if group is None:
            raise HTTPError(404)
        self.set_header("Content-Type", "text/calendar; charset=utf-8")
        self.write(self._rules.calendar(lambda session: group in (ALL, session.group)))

    def head(self, secret: str) -> None:
        """The same without a body, which tornado leaves out."""
        self.get(secret)

    def write_error(self, status_code: int, **_: object) -> None:
        """A sentence, as nobody sees a page here."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish("There is no calendar at this address: ask your instructor for the present one.\n")


def feed_routes(rules: RuleService) -> MoreRoutes:
    """Below the service's address; the socket has none, as nobody subscribes there."""

    def routes(pages: Site) -> list[Route]:
        return [(f"{pages.prefix}calendar/([0-9a-f]{{40}})\\.ics", FeedHandler, {"rules": rules})]

    return routes
