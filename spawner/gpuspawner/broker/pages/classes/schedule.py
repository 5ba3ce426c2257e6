"""The lab sessions of a class: a week as a calendar, add, move and cancel, and what the class has used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from tornado.web import HTTPError

from ....config.sessions import session_to_json
from ....core.errors import BadOption
from ....core.quota import UNLIMITED, Budget, Window
from ....core.session import Change, LabSession, Meeting
from ...decide.allow.period import midnight, window_at, words
from ...decide.allow.report import By
from ...decide.when.timetable import describe
from ...decide.when.typed import session_document
from ...leases.rule_service import RuleService
from ..writing import Question, Said, Writing
from .base import ClassBase
from .page import Scene
from .week import Week, make_week

_FIELDS = ("when", "from", "until", "tier", "seats", "lead", "grace", "prestart")
"""What a form may say of a session, as `gpuspawner session` takes it."""
_USUAL_SEATS = 8
_MOST_USERS = 12
"""So many members are listed with their use; `gpuspawner report` has all."""


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session of the class, in words, and the next dates on which it meets."""

    name: str
    words: str
    seats: str
    lead_minutes: int
    following: tuple[tuple[str, str], ...]
    """For each of the next meetings: the rule's day as a form sends it, and when it is."""
    next_day: str
    """The day of the next meeting, whose week can be shown; "" without one."""
    changes: tuple[str, ...]
    """Which dates to come were cancelled or moved."""


@dataclass(frozen=True, slots=True)
class UseRow:
    """A member's GPU-hours in the present period; `percent` of the budget, None without one."""

    user: str
    hours: str
    percent: float | None


@dataclass(frozen=True, slots=True)
class Use:
    """What the class has used: in the period of its budget, else in the last seven days."""

    title: str
    limit: str
    total: str
    rows: tuple[UseRow, ...]
    more: int


@dataclass(frozen=True, slots=True)
class SchedulePage:
    """Everything that the templates show."""

    group: str
    simulated: bool
    may_write: bool
    week: Week
    sessions: tuple[SessionRow, ...]
    use: Use
    tiers: tuple[tuple[str, str], ...]
    titles: Mapping[str, str]
    today: date
    seats: int
    """How many places the form for a new session begins with."""
    feed: str
    """Where calendar programs read the sessions; "" for those who may not, and while there are none."""


class ScheduleHandler(ClassBase):
    """`GET POST classes/{group}/sessions/`: lab sessions and GPU-hours of the class."""

    template = "class_sessions.html"
    live_template = "class_sessions_live.html"

    async def content(self, *path: str) -> SchedulePage:
        group = path[0]
        rules, now = self.tools.rules, self.tools.clock()
        known = rules.rulebook.known
        today = now.astimezone(ZoneInfo(known.timezone)).date()
        listed = [(session, following) for session, following in rules.sessions() if session.group == group]
        return SchedulePage(
            group=group,
            simulated=self.tools.simulated,
            may_write=self.may_write(group),
            week=make_week((session for session, _ in listed), self._day(today), known.timezone, now),
            sessions=tuple(_session_row(*each, self.scene()) for each in listed),
            use=await class_use(rules, group, now),
            titles=self.scene().titles,
            tiers=tuple((tier.name, tier.title) for tier in known.tiers if tier.needs_gpu),
            today=today,
            seats=usual_seats(self.tiers()["tiers"]),
            feed=rules.feeds.address(group) if listed and self.may_write(group) else "",
        )

    async def carry_out(self, what: str, *path: str) -> Said | Question:
        group = path[0]
        match what:
            case "add":
                return await self._add(group)
            case "move":
                return await self._move(group)
            case "skip":
                return await self._skip(group)
            case "cancel":
                return await self._cancel(group)
            case _:
                raise HTTPError(400, "no such change: %s", what)

    async def _add(self, group: str) -> Said:
        name = self.get_body_argument("name", "").strip()[:63]
        known = self.tools.rules.rulebook
        if name in known.rules.sessions:
            raise BadOption(f"There is a lab session {name!r} already: use another name.")
        base = {"name": name, "group": group, "timezone": known.known.timezone}
        return await self._save(base, self._fields(), f"{name} was added.")

    async def _move(self, group: str) -> Said:
        session = self._session(group)
        on, to = self.get_body_argument("on", ""), self.get_body_argument("to", "").strip()
        times = f"{self.get_body_argument('begins', '')}-{self.get_body_argument('ends', '')}"
        values = {"move": f"{on}:{to} {times}"}
        return await self._save(
            session_to_json(session), values, f"{session.name} was moved to {to} {times}."
        )

    async def _skip(self, group: str) -> Said | Question:
        session = self._session(group)
        on = self.get_body_argument("on", "")
        if not self.confirmed:
            values = {"do": "skip", "session": session.name, "on": on}
            text = f"{session.name} will not meet on {on}, and nothing is kept for it on that day."
            return Question("Cancel this date?", text, "Cancel this date", values)
        return await self._save(
            session_to_json(session), {"skip": on}, f"{session.name} doesn't meet on {on}."
        )

    async def _cancel(self, group: str) -> Said | Question:
        session = self._session(group)
        if not self.confirmed:
            values = {"do": "cancel", "session": session.name}
            text = f"{session.name} ({describe(session)}) will not meet any more."
            return Question("Cancel the lab session for good?", text, "Cancel the session", values)
        author, reason = self.viewer.author, self.why()

        async def cancel() -> Said:
            await self.tools.rules.cancel_session(session.name, author, reason)
            return Said(f"{session.name} was cancelled.")

        return await self.write_down(self._writing(group, "cancel lab session", session.name, {}), cancel)

    async def _save(self, base: Mapping[str, Any], values: Mapping[str, str], done: str) -> Said:
        """Saves a session with what was typed over it, by the checks of the command line."""
        today = self.tools.clock().astimezone(ZoneInfo(base["timezone"])).date()
        document = session_document(base, values, today)
        author, reason = self.viewer.author, self.why()

        async def save() -> Said:
            session = await self.tools.rules.save_session(document, author, reason)
            return Said(f"{done} It meets {describe(session)}.")

        writing = self._writing(base["group"], "save lab session", base["name"], {"session": document})
        return await self.write_down(writing, save)

    def _fields(self) -> dict[str, str]:
        """What the form says, without what was left empty."""
        sent = {key: self.get_body_argument(key, "").strip() for key in _FIELDS}
        return {key: text for key, text in sent.items() if text}

    def _session(self, group: str) -> LabSession:
        """The session that the form names. Raises BadOption if the class has none of that name."""
        session = self.tools.rules.session(self.get_body_argument("session", ""))
        if session.group != group:
            raise BadOption(f"The class {group} has no lab session {session.name!r}.")
        return session

    def _writing(self, group: str, action: str, name: str, document: dict[str, Any]) -> Writing:
        return Writing(self.viewer.reserve, action, f"session:{name}", (group,), document)

    def _day(self, today: date) -> date:
        """A day of the week that the address asks for."""
        try:
            asked = date.fromisoformat(self.get_query_argument("week", ""))
        except ValueError:
            return today
        return asked if abs(asked - today) < timedelta(days=3660) else today


def usual_seats(tiers: Iterable[Mapping[str, Any]]) -> int:
    """Eight places of the first tier with a GPU, the one that a form shows, or as many as there can be."""
    total, each = next(((tier["total"], tier["device_count"]) for tier in tiers if tier["total"]), (0, 1))
    return min(_USUAL_SEATS, total // each) or 1


async def class_use(rules: RuleService, group: str, now: datetime) -> Use:
    """What the class's members used. Raises LedgerFault."""
    allowed, zone = rules.rulebook.of_group(group), rules.rulebook.known.timezone
    budget = allowed.budgets[0] if allowed.budgets else None
    window = None if budget is None else window_at(budget.period, now)
    limited = budget is not None and window is not None and budget.gpu_seconds != UNLIMITED
    if window is None:
        week_ago = midnight(now.astimezone(ZoneInfo(zone)).date() - timedelta(days=6), zone)
        window = Window(week_ago, now)
    report = await rules.report(By.USER, Window(window.start, max(window.end, now)), zone, (group,))
    seconds = budget.gpu_seconds if limited and budget is not None else None
    rows = tuple(
        UseRow(
            user=line.name,
            hours=f"{line.gpu_seconds / 3600:.1f}",
            percent=None if not seconds else min(100.0, round(100 * line.gpu_seconds / seconds, 1)),
        )
        for line in report.lines[:_MOST_USERS]
    )
    return Use(
        title=_title(budget),
        limit="" if seconds is None else f"{seconds / 3600:g}",
        total=f"{report.total.gpu_seconds / 3600:.1f}",
        rows=rows,
        more=max(0, len(report.lines) - _MOST_USERS),
    )


def _title(budget: Budget | None) -> str:
    return "in the last 7 days" if budget is None else words(budget.period)


def _session_row(session: LabSession, following: Sequence[Meeting], scene: Scene) -> SessionRow:
    zone, titles = ZoneInfo(session.timezone), scene.titles
    shown = ZoneInfo(scene.timezone)
    return SessionRow(
        name=session.name,
        words=describe(session),
        seats=f"{session.seats} × {titles.get(session.tier, session.tier)}",
        lead_minutes=round(session.lead_seconds / 60),
        following=tuple(
            (each.on.isoformat(), f"{each.start.astimezone(zone):%a %d %b, %H:%M}") for each in following
        ),
        next_day="" if not following else following[0].start.astimezone(shown).date().isoformat(),
        changes=_changes(session, scene.now.astimezone(zone).date()),
    )


def _changes(session: LabSession, today: date) -> tuple[str, ...]:
    """The cancelled and the moved dates from `today` on, in their order."""
    cancelled = [(day, f"{day:%a %d %b} cancelled") for day in session.exdates if day >= today]
    moved = [
        (each.on, f"{each.on:%a %d %b} {_change_words(session, each)}")
        for each in session.changes
        if max(each.on, each.begins.date()) >= today
    ]
    return tuple(words for _, words in sorted(cancelled + moved))


def _change_words(session: LabSession, change: Change) -> str:
    if change.begins == datetime.combine(change.on, session.begins):
        return "not as long as usual, or longer"
    return f"moved to {change.begins:%a %d %b, %H:%M}"
