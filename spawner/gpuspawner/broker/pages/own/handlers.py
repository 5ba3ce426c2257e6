"""The handlers of "My GPU": the page, its live part, and its buttons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tornado.web import HTTPError

from ....core.errors import Fault, LedgerFault, Refusal
from ...api.public.actions import TURN, Sender
from ...api.public.base import Route, refusal_of
from ...api.visible import Document
from ...ledger import Result, Write
from ..base import PageHandler, PageSite, Parts
from ..events import page_routes
from ..readings import Readings
from .card import HOUR_SECONDS, Card, Facts
from .desk import Desk
from .page import OwnPage, Records, facts_at, own_page

_WISHES = {TURN.format("wake"): "awake", TURN.format("yield"): "paused"}
RECORDS_SECONDS = 300.0
"""So often an open page reads the GPU-hours that were used meanwhile."""


def own_routes(site: PageSite) -> list[Route]:
    """The routes of this page; last the buttons, each a form that posts to its own address."""
    actions = (f"{site.prefix}own/([0-9a-f]{{32}})/(stop|cpu|extend|wake|yield)", ActionHandler)
    return [*page_routes(site, OwnHandler), (*actions, {"site": site})]


class OwnHandler(PageHandler):
    """`GET /services/gpu/`: what the viewer holds, waits for, and may still use."""

    template = "own.html"
    live_template = "own_live.html"
    parts_template = "own_parts.html"
    address = ""
    _records: Records | None = None
    _records_for: object = None

    async def content(self, *path: str) -> OwnPage:
        site, desk = self.site, self.site.desk
        status, tiers, now = self.status(), self.tiers(), site.clock()
        facts = facts_at(status, now)
        if desk is not None:
            await self._read_records(desk, status)
            has_cpu = desk.actions.cpu_tier is not None
            facts = Facts(
                status,
                now,
                self.viewer.stops,
                has_cpu,
                desk.curve,
                desk.extend_seconds,
                desk.why_not_extended,
            )
        page = own_page(facts, tiers, self.viewer, site.hub_url, self._records or Records())
        return page if desk is None else replace(page, messages=desk.messages(self.viewer))

    async def parts(self, *path: str) -> Parts:
        """What each section shows; the meters move by themselves, so their values don't count as news."""
        page = await self.content(*path)
        return {
            "gpu-notices": ((page.notices, page.messages), page),
            "gpu-summary": (page.summary, page),
            "gpu-mine": ((tuple(map(_without_meters, page.cards)), page.default_runs), page),
            "gpu-hours": (page.budgets, page),
            "gpu-free": (page.models, page),
            "gpu-past": (page.past, page),
        }

    def reads(self, readings: Readings) -> Mapping[str, str]:
        """Those of the cards."""
        return readings.own(self.viewer)

    async def _read_records(self, desk: Desk, status: Document) -> None:
        """Asks the ledger, for an open page again after one of its leases changed, and now and then."""
        mine = [(each["id"], each["state"]) for each in status["leases"] if self.viewer.is_mine(each)]
        wanted = (mine, self.site.clock().timestamp() // RECORDS_SECONDS)
        if self._records is None or wanted != self._records_for:
            self._records, self._records_for = await desk.records(self.viewer), wanted

    async def outcome(self) -> Mapping[str, str]:
        """What the last button did, where the address names its entry in the audit log."""
        write_id, desk = self.get_query_argument("done", None), self.site.desk
        if write_id is None or desk is None:
            return {}
        try:
            write = await desk.write(write_id)
        except LedgerFault:
            return {}
        if write is None or write.author != self.viewer.author or write.result is not Result.DONE:
            return {}
        return {"level": "success", "sentence": write.message, **_wish(write)}


def _wish(write: Write) -> Mapping[str, str]:
    """Of a button of turns: which turn of which lease fulfils it. The page's script removes it then."""
    word = _WISHES.get(write.action)
    return {} if word is None else {"wish": word, "wish_of": str(write.document.get("lease", ""))}


def _without_meters(card: Card) -> Card:
    return replace(card, memory=None, compute=None)


class ActionHandler(OwnHandler):
    """`POST own/{lease}/{action}`: a button; it goes back to the page, which says what was done."""

    _failed: Mapping[str, str] = {}

    async def get(self, *path: str) -> None:
        """A reload after a button leads to the page."""
        self.redirect(self.site.prefix)  # type: ignore[no-untyped-call]

    def page_path(self) -> str:
        return self.site.prefix

    async def post(self, lease_id: str, action: str) -> None:
        desk = self.site.desk
        if desk is None:
            raise HTTPError(404)
        token = self.hub_auth.get_token(self)
        sender = Sender(self.viewer, token, "page", self.get_body_argument("request", None))
        actions = desk.actions
        try:
            match action:
                case "stop":
                    answer = await actions.stop(lease_id, sender)
                case "cpu":
                    answer = await actions.go_on_with_cpu(lease_id, sender)
                case "extend":
                    answer = await actions.extend(lease_id, HOUR_SECONDS, sender)
                case _:
                    answer = await actions.take_turn(lease_id, action, sender)
        except (Refusal, Fault) as error:
            refusal = refusal_of(error)
            self.set_status(refusal.status)
            self._failed = {"level": "warning", "sentence": refusal.message}
            await self.show(self.template)
            return
        finally:
            self.ask_hub_again()
        self.redirect(f"{self.site.prefix}?done={answer.write_id}", status=303)  # type: ignore[no-untyped-call]

    async def outcome(self) -> Mapping[str, str]:
        return self._failed
