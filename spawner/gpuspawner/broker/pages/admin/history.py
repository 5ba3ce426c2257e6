"""What happened: the timeline of the last day, the audit log, and what the guard ended; in pages."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import timedelta
from urllib.parse import urlencode

from ...ledger import EndedProcess, Result, Search, Write
from ..table import Table, make_table
from ..words import Moment, moment
from .base import AdminPage
from .timeline import Span, Timeline, make_timeline

LINES = 25
"""Devices on one page of the timeline."""
ENTRIES = 50
"""Entries on one page of the log."""
_MOST_GUARD = 1000
_MOST_DETAIL = 300
_HOURS = 24


@dataclass(frozen=True, slots=True)
class TimelinePage:
    """The lines of one page of devices."""

    simulated: bool
    timeline: Timeline
    table: Table[tuple[str, str]]


class TimelineHandler(AdminPage):
    """`GET admin/timeline/`: who held what when, in the last day."""

    template = "admin_timeline.html"
    live_template = "admin_timeline_live.html"
    page = "timeline/"

    async def content(self, *path: str) -> TimelinePage:
        named = [(view.device.uuid, view.name) for view in self.tools.allocator.snapshot().devices]
        table = make_table(named, (), self.wish(), words=" ".join, size=LINES)
        now = self.tools.clock()
        span = Span(now - timedelta(hours=_HOURS), now, str(self.zone))
        found = await self.tools.ledger.held(span.start, [uuid for uuid, _ in table.rows])
        held = [replace(each, tier=self.title_of(each.tier)) for each in found]
        return TimelinePage(self.tools.simulated, make_timeline(table.rows, held, span), table)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the audit log."""

    at: str
    author: str
    via: str
    action: str
    subject: str
    detail: str
    reason: str
    result: str
    good: bool
    message: str


@dataclass(frozen=True, slots=True)
class LogPage:
    """Entries, the newest first. `older` is the query of the next page, "" at the end."""

    simulated: bool
    entries: tuple[Entry, ...]
    author: str
    action: str
    older: str


class LogHandler(AdminPage):
    """`GET admin/log/`: every change that somebody asked for, with author, reason and result."""

    template = "admin_log.html"
    live_template = "admin_log_live.html"
    page = "log/"

    async def content(self, *path: str) -> LogPage:
        author, action = (self.get_query_argument(key, "").strip()[:100] for key in ("author", "action"))
        before = self.get_query_argument("before", "")
        number = int(before) if before.isascii() and before.isdigit() and len(before) < 19 else None
        search = Search(most=ENTRIES + 1, before=number, author=author or None, action=action or None)
        found = await self.tools.ledger.audited(search)
        shown = found[:ENTRIES]
        more = len(found) > ENTRIES
        asked = {key: text for key, text in (("author", author), ("action", action)) if text}
        return LogPage(
            simulated=self.tools.simulated,
            entries=tuple(self._entry(write) for _, write in shown),
            author=author,
            action=action,
            older="?" + urlencode({"before": shown[-1][0], **asked}) if more else "",
        )

    def _entry(self, write: Write) -> Entry:
        detail = json.dumps(write.document, ensure_ascii=False) if write.document else ""
        return Entry(
            at=f"{write.at.astimezone(self.zone):%Y-%m-%d %H:%M:%S}",
            author=write.author,
            via=write.via,
            action=write.action,
            subject=write.subject,
            detail=detail if len(detail) <= _MOST_DETAIL else f"{detail[:_MOST_DETAIL]}…",
            reason=write.reason,
            result=write.result.value,
            good=write.result is Result.DONE,
            message=write.message,
        )


@dataclass(frozen=True, slots=True)
class GuardLine:
    """A process that the guard ended."""

    when: Moment | None
    user: str
    server: str
    process: str
    device: str
    sentence: str


@dataclass(frozen=True, slots=True)
class GuardPage:
    """Ended processes, the newest first."""

    simulated: bool
    table: Table[GuardLine]


class GuardHandler(AdminPage):
    """`GET admin/guard/`: which processes the guard ended, and why."""

    template = "admin_guard.html"
    live_template = "admin_guard_live.html"
    page = "guard/"

    async def content(self, *path: str) -> GuardPage:
        names = {view.device.uuid: view.number for view in self.tools.allocator.snapshot().devices}
        ended = await self.tools.ended(_MOST_GUARD)
        rows = [self._line(each, names) for each in ended]
        table = make_table(
            rows, (), self.wish(), words=lambda row: f"{row.user} {row.server} {row.process} {row.sentence}"
        )
        return GuardPage(self.tools.simulated, table)

    def _line(self, each: EndedProcess, names: dict[str, str]) -> GuardLine:
        return GuardLine(
            when=moment(each.at.isoformat(), self.tools.clock()),
            user=each.user or "unknown",
            server=each.server,
            process=f"{each.name} ({each.pid})",
            device=names.get(each.device_uuid, each.device_uuid),
            sentence=each.sentence,
        )
