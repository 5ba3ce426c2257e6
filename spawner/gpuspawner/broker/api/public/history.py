"""What happened, and how the machine is: for those who are responsible for others.

GET      api/audit      ?author= &action=                who changed what, when and why
GET      api/timeline   ?start= &end= &user= &device=    when which lease was awake on which devices
GET      api/guard                                       the processes that the guard ended
GET POST api/doctor                                      what doctor found; POST begins a new check

The audit log and doctor concern everybody: they need `custom:gpu:read` for everybody. Of timeline and guard,
a holder of `custom:gpu:read!group=NAME` sees what concerns the members of that group.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from ....core.errors import BadOption, NotAllowed
from ....core.units import Clock, utc_now
from ....protocol.history import (
    MOST_DOCUMENT,
    AuditDocument,
    AuditEntry,
    CheckNow,
    DoctorDocument,
    FindingDocument,
    GuardDocument,
    GuardEntry,
    TimelineDocument,
    TimelineEntry,
)
from ...leases.endings import Endings
from ...leases.rule_service import RuleService
from ...ledger import EndedProcess, EndedSearch, Ledger, OfGroups, Search, Stay, StaySearch, Write
from ...observe.checkup import Checkup, Report
from ..access import READ_SCOPE, Reach
from ..query import read_page, read_text, read_time
from ..rules import Change, answering
from ..socket import Site as Socket
from .base import Route, Site
from .rules import MoreRoutes, PublicRule

DEFAULT_HOURS = 24
"""How far the timeline reaches back if nobody says."""


@dataclass(frozen=True, slots=True)
class HistoryTools:
    """What the handlers of the past use."""

    socket: Socket
    rules: RuleService
    endings: Endings
    ledger: Ledger
    checkup: Checkup
    clock: Clock = utc_now


class HistoryHandler(PublicRule):
    """One that reads the past."""

    tools: HistoryTools

    def initialize(self, pages: Site, tools: HistoryTools) -> None:  # type: ignore[override]
        super().initialize(pages, site=tools.socket, rules=tools.rules, endings=tools.endings)
        self.tools = tools
        self.hub_name = pages.hub or "hub"

    def need_everybody(self) -> None:
        """Raises NotAllowed for a sender who sees some groups only."""
        if not self.viewer.sees_all:
            raise NotAllowed(
                f"Your account may not see this: it concerns everybody, so it needs the scope {READ_SCOPE} "
                "of the hub without !group."
            )

    def of_groups(self) -> OfGroups | None:
        """The leases that the sender may read about; None: all."""
        reach = self.viewer.read
        return None if reach.everybody else OfGroups(self.hub_name, reach.groups)

    def shown(self, groups: Sequence[str]) -> tuple[str, ...]:
        """Of a user's groups, those that the sender looks after."""
        reach = self.viewer.read
        return tuple(group for group in groups if reach.covers((group,)))


class AuditHandler(HistoryHandler):
    """`GET api/audit`"""

    @answering
    async def get(self) -> None:
        """The newest first."""
        self.need_everybody()
        page = read_page(self)
        author, action = read_text(self, "author"), read_text(self, "action")
        found = await self.tools.ledger.audited(Search(page.limit + 1, page.before, author, action))
        shown = found[: page.limit]
        following = str(shown[-1][0]) if len(found) > page.limit else None
        self.send(AuditDocument(entries=tuple(audit_entry(*each) for each in shown), next=following))


class TimelineHandler(HistoryHandler):
    """`GET api/timeline`"""

    @answering
    async def get(self) -> None:
        """The newest first."""
        page, until = read_page(self), read_time(self, "end")
        end = until or self.tools.clock()
        start = read_time(self, "start") or end - timedelta(hours=DEFAULT_HOURS)
        if start >= end:
            raise BadOption("start must be before end.")
        user, device = read_text(self, "user"), read_text(self, "device")
        search = StaySearch(start, until, page.limit + 1, page.before, user, device, self.of_groups())
        found = await self.tools.ledger.stays(search)
        shown = found[: page.limit]
        following = str(shown[-1].number) if len(found) > page.limit else None
        entries = tuple(self._entry(each) for each in shown)
        self.send(TimelineDocument(start=start, end=end, entries=entries, next=following))

    def _entry(self, stay: Stay) -> TimelineEntry:
        return TimelineEntry(**{**asdict(stay), "groups": self.shown(stay.groups)})


class GuardHandler(HistoryHandler):
    """`GET api/guard`"""

    @answering
    async def get(self) -> None:
        """The newest first."""
        page = read_page(self)
        found = await self.tools.ledger.guarded(EndedSearch(page.limit + 1, page.before, self.of_groups()))
        shown = found[: page.limit]
        following = str(shown[-1][0]) if len(found) > page.limit else None
        entries = tuple(self._entry(*each) for each in shown)
        self.send(GuardDocument(entries=entries, next=following))

    def _entry(self, number: int, ended: EndedProcess) -> GuardEntry:
        return GuardEntry(number=number, **{**asdict(ended), "groups": self.shown(ended.groups)})


class DoctorHandler(HistoryHandler):
    """`GET POST api/doctor`"""

    needs = READ_SCOPE

    def held(self) -> Reach:
        """To begin a check changes nothing: whoever may read its result may do it."""
        return self.viewer.read

    @answering
    async def get(self) -> None:
        """The last check."""
        self.need_everybody()
        self.send(doctor_document(self.tools.checkup.report))

    @answering
    async def post(self) -> None:
        """Begins a check, unless one is under way; the answer is the last one."""
        body = self.read(CheckNow)

        async def begin() -> DoctorDocument:
            self.tools.checkup.begin()
            return doctor_document(self.tools.checkup.report)

        await self.make(Change("check machine", "machine", (), body), begin)


def audit_entry(number: int, write: Write) -> AuditEntry:
    """A line of the audit log."""
    long = len(json.dumps(write.document)) > MOST_DOCUMENT
    return AuditEntry(
        number=number,
        id=write.id,
        at=write.at,
        author=write.author,
        via=write.via,
        action=write.action,
        subject=write.subject,
        groups=write.groups,
        details=None if long else dict(write.document),
        reason=write.reason,
        result=write.result.value,
        message=write.message,
        ended_at=write.ended_at,
    )


def doctor_document(report: Report) -> DoctorDocument:
    """The last check."""
    findings = tuple(FindingDocument.model_validate(asdict(line)) for line in report.lines)
    return DoctorDocument(at=report.at, running=report.running, fault=report.fault, findings=findings)


def history_routes(tools: HistoryTools) -> MoreRoutes:
    """The routes, for `make_handlers`."""

    def routes(pages: Site) -> list[Route]:
        wanted: dict[str, Any] = {"pages": pages, "tools": tools}
        return [
            (f"{pages.prefix}api/audit", AuditHandler, wanted),
            (f"{pages.prefix}api/timeline", TimelineHandler, wanted),
            (f"{pages.prefix}api/guard", GuardHandler, wanted),
            (f"{pages.prefix}api/doctor", DoctorHandler, wanted),
        ]

    return routes
