"""Quotas and lab sessions of everybody: what holds, what was changed at run time; change and take back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any
from urllib.parse import quote

from tornado.web import HTTPError

from ....config.quotas import value_from_text
from ....core.errors import BadOption, ConfigError
from ....core.model import Lease
from ....core.quota import SubjectKind
from ....core.session import LabSession
from ....core.text import isolated
from ...decide.when.timetable import describe
from ...leases.rule_service import QuotaView
from ..classes.week import Week, make_week
from ..table import Column, Table, Wish, make_table
from ..writing import Question, Said, Writing
from .base import AdminPage

KEYS = (
    "tiers", "leases", "devices", "slices", "gpu_hours", "period", "session_hours", "extend_hours",
    "minimum_hours", "weight", "priority", "guaranteed_devices",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class QuotaLine:
    """One subject's limits, in words; `changed` are those of run time."""

    subject: str
    limits: str
    changed: str


@dataclass(frozen=True, slots=True)
class SessionLine:
    """A lab session, and the address of its class."""

    name: str
    group: str
    words: str
    seats: str
    href: str


@dataclass(frozen=True, slots=True)
class RulesPage:
    """Everything that the templates show."""

    simulated: bool
    problems: tuple[str, ...]
    quotas: Table[QuotaLine]
    sessions: Table[SessionLine]
    week: Week
    titles: Mapping[str, str]
    keys: tuple[str, ...]


COLUMNS: tuple[Column[QuotaLine], ...] = (
    Column("subject", "Whom", lambda row: row.subject),
    Column("limits", "Limits", lambda row: row.limits),
    Column("changed", "Changed at run time", lambda row: row.changed or None),
)


class RulesHandler(AdminPage):
    """`GET POST admin/rules/`"""

    template = "admin_rules.html"
    live_template = "admin_rules_live.html"
    page = "rules/"

    async def content(self, *path: str) -> RulesPage:
        rules, now = self.tools.rules, self.tools.clock()
        sessions = [session for session, _ in rules.sessions()]
        today, wish = now.astimezone(self.zone).date(), self.wish()
        titles = {tier.name: tier.title for tier in rules.rulebook.known.tiers}
        return RulesPage(
            simulated=self.tools.simulated,
            problems=rules.rulebook.rules.problems,
            quotas=make_table(map(_quota_line, rules.quotas()), COLUMNS, wish, words=lambda row: row.subject),
            sessions=make_table((self._line(each, titles) for each in sessions), (), Wish(page=wish.page)),
            titles=titles,
            week=make_week(sessions, self._day(today), str(self.zone), now),
            keys=KEYS,
        )

    async def carry_out(self, what: str, *path: str) -> Said | Question:
        subject = self.get_body_argument("subject", "").strip()[:300]
        author, reason, rules = self.viewer.author, self.why(), self.tools.rules
        kind, _, name = subject.partition(":")
        groups = (name,) if kind == SubjectKind.GROUP.value else ()
        match what:
            case "change":
                return await self._change(subject, groups)
            case "reset":
                writing = Writing(self.viewer.admin, "reset quota", subject, groups, {})

                async def reset() -> Said:
                    await rules.remove_quota(subject, author, reason)
                    return Said(f"{isolated(str(subject))}: what the settings say holds again.")

                return await self.write_down(writing, reset)
            case _:
                raise HTTPError(400, "no such change: %s", what)

    async def _change(self, subject: str, groups: tuple[str, ...]) -> Said | Question:
        """Changes one key of a quota; asks back if servers end because of it."""
        key, text = self.get_body_argument("key", ""), self.get_body_argument("value", "").strip()
        values, rules = {key: self._value(key, text)}, self.tools.rules
        end_servers = self.get_body_argument("end_servers", "") == "yes"
        if end_servers and not self.confirmed and (ending := rules.would_end(subject, values)):
            form = {"do": "change", "subject": subject, "key": key, "value": text, "end_servers": "yes"}
            return self._asked_back(ending, form)
        document = {"values": values, "end_servers": end_servers}
        writing = Writing(self.viewer.admin, "change quota", subject, groups, document)

        async def change() -> Said:
            ended = await rules.change_quota(
                subject, values, self.viewer.author, self.why(), end_servers=end_servers
            )
            said = f"{isolated(subject)}: {key} is {text or 'as in the settings'} now."
            return Said(f"{said} {_ends(len(ended))}" if end_servers else said)

        return await self.write_down(writing, change)

    def _asked_back(self, ending: Sequence[Lease], form: Mapping[str, str]) -> Question:
        one = len(ending) == 1
        servers = "1 running server" if one else f"{len(ending)} running servers"
        names = tuple(
            f"{isolated(each.user)}, {isolated(each.server or 'default server')} "
            f"({isolated(self.title_of(each.tier))})"
            for each in ending
        )
        value = f"= {form['value']}" if form["value"] else "as in the settings"
        text = (
            f"{isolated(form['subject'])} gets {form['key']} {value}. {servers} "
            f"{'is over that limit and ends' if one else 'are over that limit and end'} in 15 minutes, or "
            "later where users have a minimum time. Users are warned now and 5 minutes before the end. What "
            "they don't save to a file is lost."
        )
        return Question(f"End {servers}?", text, f"Change it and end {servers}", dict(form), names)

    def _line(self, session: LabSession, titles: Mapping[str, str]) -> SessionLine:
        return SessionLine(
            name=session.name,
            group=session.group,
            words=describe(session),
            seats=f"{session.seats} × {titles.get(session.tier, session.tier)}",
            href=f"{self.site.prefix}classes/{quote(session.group, safe='')}/sessions/",
        )

    def _value(self, key: str, text: str) -> Any:
        """What was typed, as the settings have it; nothing typed takes the change back."""
        if key not in KEYS:
            raise BadOption(f"Choose one of {', '.join(KEYS)}.")
        try:
            return value_from_text(key, text) if text else None
        except ConfigError as error:
            raise BadOption(f"{error}.") from None

    def _day(self, today: date) -> date:
        try:
            return date.fromisoformat(self.get_query_argument("week", ""))
        except ValueError:
            return today


def _ends(count: int) -> str:
    if not count:
        return "No running server is over it."
    return f"{'1 server is' if count == 1 else f'{count} servers are'} warned and will end."


def _quota_line(view: QuotaView) -> QuotaLine:
    return QuotaLine(str(view.subject), _pairs(view.limits), _pairs(view.changed))


def _pairs(values: Mapping[str, Any]) -> str:
    """For example "devices 2, tiers cpu and gpu"."""
    return ", ".join(f"{key.replace('_', ' ')} {_text(value)}" for key, value in values.items())


def _text(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
