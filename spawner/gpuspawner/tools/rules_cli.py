"""`gpuspawner quota | report | session`: what users may have, what they used, and lab sessions, as typed."""

from __future__ import annotations

import asyncio
import csv
import getpass
import io
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode
from zoneinfo import ZoneInfo

from pydantic import ValidationError
from traitlets import Bool, Unicode

from ..broker.decide.allow.period import midnight
from ..broker.decide.when.typed import parse_count, parse_day, session_document
from ..config.quotas import subject_from_text, value_from_text
from ..core.errors import BadOption, BrokerUnavailable, ConfigError, Refusal
from ..core.text import for_spreadsheet, for_terminal, printable
from ..protocol.client import BrokerClient
from ..protocol.messages import Message, document, sentence_of
from ..protocol.rules import (
    CalendarAddress,
    CalendarImport,
    Grant,
    QuotaChange,
    QuotaRemoval,
    QuotasDocument,
    ReportDocument,
    ReportLine,
    SessionCancel,
    SessionChange,
    SessionDocument,
    SessionsDocument,
)
from .cli import Command, cell, local_time, make_console, site_zone, table
from .doctor import ELSEWHERE, unreachable

T = TypeVar("T")
M = TypeVar("M", bound=Message)

Verb = Callable[[Sequence[str]], None]

_MAX_REASON = 255
"""Characters of a reason, as the broker takes them."""


_IN_SETTINGS = re.compile(r'"(\w+)": (?:"([^"]*)"|\[("[^\]]*)\]|(-?[\d.]+))')
"""A key and its value as they stand in the settings, which the broker's sentences tell."""


def as_typed(sentence: str, subject: str = "=") -> str:
    """A sentence about settings with keys and values as they are typed: `devices=1`, `tiers=cpu,gpu`.

    `subject` is what stands between "group" or "user" and its name.
    """

    def typed(found: re.Match[str]) -> str:
        key, text, names, number = found.groups()
        value = names.replace('"', "").replace(", ", ",") if names else number or text
        if key in ("group", "user"):
            return f"{key}{subject}{value}"
        return f'{key}="{value}"' if " " in value else f"{key}={value}"

    return _IN_SETTINGS.sub(typed, sentence)


class WrongWords(Exception):
    """The words after the command are not what it takes: it shows its usage."""


class RuleCommand(Command):
    """What the commands of this file share: verbs, a reason, and sentences in place of tracebacks."""

    aliases = {**Command.aliases, "reason": "RuleCommand.reason"}  # noqa: RUF012

    reason = Unicode(
        "",
        help="""
        The reason, for the ledger: it is shown later beside the change.

        Default: none.
        Example: `gpuspawner quota set group:students devices=2 --reason "exam week"`
        """,
    ).tag(config=True)

    usage = ""
    """What can be typed, a line for each verb."""
    before_name = "="
    """What is typed between "group" and its name."""

    def verbs(self) -> Mapping[str, Verb]:
        """The command's verbs."""
        raise NotImplementedError

    def start(self) -> None:
        """Runs the verb; `exit_status` is 1 for a refusal, 2 for an invalid command line."""
        verbs = self.verbs()
        verb, *rest = self.extra_args or [""]
        if verb not in verbs:
            self._show_usage(2)
            return
        if len(self.reason) > _MAX_REASON or not printable(self.reason):
            self._fail(1, f"A reason is text of up to {_MAX_REASON} printable characters: write it shorter.")
            return
        try:
            verbs[verb](rest)
        except WrongWords:
            self._show_usage(1)
        except BrokerUnavailable as error:
            path = self.settings().site.socket_path
            self._fail(1, f"{unreachable(error, path, self.config_file)}. {ELSEWHERE}")
        except (Refusal, ConfigError) as error:
            self._fail(1, as_typed(str(error), self.before_name))

    def ask(self, work: Callable[[BrokerClient], Awaitable[T]]) -> T:
        """What the broker answers. Raises Refusal, ConfigError."""

        async def run() -> T:
            client = BrokerClient(self.settings().site.socket_path)
            try:
                return await work(client)
            finally:
                await client.close()

        return asyncio.run(run())

    def sessions(self) -> SessionsDocument:
        """All lab sessions. Raises Refusal, ConfigError, BrokerUnavailable."""
        return self.ask(lambda client: client.ask_all("/api/sessions", SessionsDocument))

    def zone(self) -> str:
        """The site's time zone as the broker has it. Raises Refusal, ConfigError, BrokerUnavailable."""
        return self.ask(site_zone)

    @property
    def author(self) -> str:
        """Who types this; with sudo, the account that did."""
        return os.environ.get("SUDO_USER") or getpass.getuser()

    def say(self, sentence: str) -> None:
        """Prints what was done; nothing with --json."""
        if not self.json:
            print(for_terminal(sentence))

    def _show_usage(self, status: int) -> None:
        self.exit_status = status
        print(f"{self.name.replace('-', ' ')}: {self.usage}", file=sys.stderr)

    def _fail(self, status: int, sentence: str) -> None:
        self.exit_status = status
        print(f"{self.name.replace('-', ' ')}: {for_terminal(sentence)}", file=sys.stderr)


class Quota(RuleCommand):
    """Shows and changes what users and groups may have, while the broker runs."""

    name = "gpuspawner-quota"
    before_name = ":"
    description = __doc__
    usage = """use:
  gpuspawner quota show [WHO]               limits, and what was changed
  gpuspawner quota set WHO KEY=VALUE ...    change limits now, without a restart
  gpuspawner quota remove WHO               take these changes back
  gpuspawner quota grant WHO HOURS          more GPU-hours now (-2.5: fewer)
WHO is everybody, group:NAME or user:NAME. KEYs are those of c.GpuSite.quotas:
  tiers=cpu,gpu   devices=2   leases=3   gpu_hours=10   session_hours=4   ...
Add --reason "..." to say why; a grant needs one. Running servers keep their
GPUs; with --end-servers, set ends those beyond the new limits, after warnings."""
    examples = usage
    flags = {  # noqa: RUF012
        **Command.flags,
        "end-servers": (
            {"Quota": {"end_servers": True}},
            "with `set`: running servers that are beyond the new limits are warned and end in 15 minutes",
        ),
    }

    end_servers = Bool(
        False,
        help="""
        With `set`: running servers that are beyond the new limits are warned, and end in 15 minutes. The
        earliest ones of each user stay.

        Default: off. They keep their GPUs until they end.
        Example: `gpuspawner quota set group:students devices=1 --end-servers`
        """,
    ).tag(config=True)

    def verbs(self) -> Mapping[str, Verb]:
        return {"show": self._show, "set": self._set, "remove": self._remove, "grant": self._grant}

    def _show(self, words: Sequence[str]) -> None:
        wanted = str(subject_from_text(words[0])) if words else None
        answer = self.ask(lambda client: client.ask_all("/api/quotas", QuotasDocument))
        quotas = tuple(each for each in answer.quotas if wanted in (None, each.subject))
        history = tuple(each for each in answer.history if wanted in (None, each.subject))
        if self.json:
            print(
                json.dumps(
                    document(answer.model_copy(update={"quotas": quotas, "history": history})), indent=1
                )
            )
            return
        console = make_console()
        shown = table("Quotas", "For", "Limits", "Changed at run time")
        for each in quotas:
            shown.add_row(cell(each.subject), cell(_pairs(each.limits)), cell(_pairs(each.changed)))
        if quotas:
            console.print(shown)
        else:
            alone = "" if wanted is None else f" for {cell(wanted)} alone; the limits of others may apply"
            console.print(f"No limits are set{alone}.")
        if history:
            zone = self.zone()
            past = table("Changes", f"When ({zone})", "For", "What", "By", "Why")
            for item in history:
                cells = (item.subject, _changed(item.document or {}), item.author, item.reason)
                past.add_row(local_time(item.at, zone, seconds=False), *map(cell, cells))
            console.print(past)
        for problem in answer.problems:
            console.print(f"[bold red]{cell(problem)}[/]")

    def _set(self, words: Sequence[str]) -> None:
        if len(words) < 2:
            raise WrongWords
        values = {}
        for word in words[1:]:
            key, equals, text = word.partition("=")
            if not equals:
                raise BadOption(f"{word!r} is not KEY=VALUE: write it like devices=2.")
            values[key] = value_from_text(key, text)
        change = _made(
            QuotaChange,
            subject=str(subject_from_text(words[0])),
            values=values,
            end_servers=self.end_servers,
            author=self.author,
            reason=self.reason,
        )
        self.ask(lambda client: client.tell("POST", "/api/quotas", change))
        ends = "; running servers beyond it are warned, and end in 15 minutes" if self.end_servers else ""
        self.say(f"Set: {change.subject} may have {_pairs(values)}{ends}")

    def _remove(self, words: Sequence[str]) -> None:
        if len(words) != 1:
            raise WrongWords
        removal = _made(
            QuotaRemoval, subject=str(subject_from_text(words[0])), author=self.author, reason=self.reason
        )
        self.ask(lambda client: client.tell("DELETE", "/api/quotas", removal))
        self.say(
            f"Removed: for {removal.subject}, what c.GpuSite.quotas and the hub's groups say applies again"
        )

    def _grant(self, words: Sequence[str]) -> None:
        if len(words) != 2:
            raise WrongWords
        try:
            subject, hours = words[0], float(words[1])
        except ValueError:
            raise BadOption(f"{words[1]!r} is no number of GPU-hours: write it like 5 or -2.5.") from None
        if not self.reason:
            raise BadOption('A grant needs a reason, for the ledger: add --reason "…".')
        grant = _made(
            Grant,
            subject=str(subject_from_text(subject)),
            gpu_hours=hours,
            author=self.author,
            reason=self.reason,
        )
        self.ask(lambda client: client.tell("POST", "/api/grants", grant))
        self.say(f"Granted: {grant.subject} has {_granted(hours)} in the present period")


class Report(RuleCommand):
    """Shows who used how many GPU-hours: by user, group, tier, day or machine."""

    name = "gpuspawner-report"
    description = __doc__
    aliases = {  # noqa: RUF012
        **RuleCommand.aliases,
        "by": "Report.by",
        "start": "Report.first_day",
        "end": "Report.last_day",
    }
    flags = {  # noqa: RUF012
        **Command.flags,
        "csv": ({"Report": {"as_csv": True}}, "print CSV instead of a table"),
    }

    by = Unicode(
        "user",
        help="""
        What the report has a line for: `user`, `group`, `tier`, `day` or `node` (the machine).

        Default: user. A user in several groups counts in each.
        Example: `gpuspawner report --by group`
        """,
    ).tag(config=True)
    first_day = Unicode(
        "",
        help="""
        The first day of the report, in the site's time zone.

        Default: 30 days before its last.
        Example: `gpuspawner report --start 2026-10-12`
        """,
    ).tag(config=True)
    last_day = Unicode(
        "",
        help="""
        The last day of the report; the whole day counts.

        Default: today, up to now.
        Example: `gpuspawner report --end 2027-02-12`
        """,
    ).tag(config=True)
    as_csv = Bool(
        False,
        help="""
        Print CSV instead of a table.

        Default: off. GPU-hours have three decimals. A name that a spreadsheet would take for a formula
        (it begins with =, +, - or @) has an apostrophe before it.
        Example: `gpuspawner report --csv > use.csv`
        """,
    ).tag(config=True)

    def verbs(self) -> Mapping[str, Verb]:
        return {"": self._show}

    def _show(self, _words: Sequence[str]) -> None:
        zone = self.zone()
        query = {"by": self.by, "timezone": zone}
        query |= days(self.first_day, self.last_day, zone)
        found = self.ask(lambda client: client.ask_all(f"/api/report?{urlencode(query)}", ReportDocument))
        key = _by_name if self.by == "day" else _by_use  # over all pages
        lines = sorted(found.lines, key=key)
        rows = [
            (line.name, f"{line.gpu_seconds / 3600:.3f}", str(line.user_count), str(line.lease_count))
            for line in (*lines, found.total)
        ]
        if self.json:
            print(json.dumps(document(found), indent=1))
        elif self.as_csv:
            print(_csv((self.by, "gpu_hours", "users", "leases"), rows[:-1]), end="")
        else:
            ends = [local_time(at, zone, seconds=False) for at in (found.start, found.end)]
            console = make_console()
            console.print(f"From {ends[0]} to {ends[1]} ({zone})")
            shown = table("GPU-hours", self.by, "GPU-hours", "Users", "Servers")
            for row in rows:
                shown.add_row(*map(cell, row))
            console.print(shown)


class Session(RuleCommand):
    """Shows and changes lab sessions: times at which GPUs are kept for a group."""

    name = "gpuspawner-session"
    description = __doc__
    usage = """use:
  gpuspawner session list
  gpuspawner session add NAME group=GROUP tier=TIER seats=COUNT when="Mon 10-12"
  gpuspawner session change NAME KEY=VALUE ...
  gpuspawner session cancel NAME [DATE]     one date, or all of it
  gpuspawner session calendar               all as iCalendar
  gpuspawner session subscribe [GROUP]      the address for calendar programs
  gpuspawner session import FILE group=GROUP tier=TIER seats=COUNT
More KEYs of add and change:
  from=DATE until=DATE timezone=ZONE   default: from today, without end
  rule=RRULE                           as iCalendar writes it, for unusual weeks
  skip=DATE,DATE                       dates on which it doesn't meet
  move="DATE:NEW DATE 14-16"           one date meets at another time
  lead=MINUTES                         its places are kept from so long before
  grace=MINUTES                        unused places go back so long after
  prestart=MINUTES                     its servers are started so long before
  move_out=stop|nothing                what becomes of servers in the way"""
    examples = usage

    def verbs(self) -> Mapping[str, Verb]:
        return {
            "list": self._list,
            "add": self._add,
            "change": self._change,
            "cancel": self._cancel,
            "calendar": self._calendar,
            "subscribe": self._subscribe,
            "import": self._import,
        }

    def _list(self, _words: Sequence[str]) -> None:
        self._print(self.sessions())

    def _add(self, words: Sequence[str]) -> None:
        name, values = _name_and_values(words)
        missing = [key for key in ("group", "tier", "seats", "when") if key not in values]
        if missing:
            raise BadOption(
                f"The lab session needs {missing[0]}=…, like group=cs231n tier=gpu seats=24 "
                'when="Mondays 10-12".'
            )
        present = self.sessions()
        if any(each.session["name"] == name for each in present.sessions):
            raise BadOption(f"There is a lab session {name!r} already: change it, or use another name.")
        self._save({"name": name, "timezone": present.timezone}, values)

    def _change(self, words: Sequence[str]) -> None:
        name, values = _name_and_values(words)
        self._save(self._known(name), values)

    def _cancel(self, words: Sequence[str]) -> None:
        if not 1 <= len(words) <= 2:
            raise WrongWords
        name = words[0]
        if len(words) == 2:
            self._save(self._known(name), {"skip": words[1]})
            self.say(f"Cancelled: {name} doesn't meet on {words[1]}")
            return
        cancel = _made(SessionCancel, author=self.author, reason=self.reason)
        self.ask(lambda client: client.tell("DELETE", f"/api/sessions/{quote(name)}", cancel))
        self.say(f"Cancelled: the lab session {name} doesn't meet any more")

    def _calendar(self, _words: Sequence[str]) -> None:
        print(self.ask(lambda client: client.text("/api/sessions/calendar")), end="")

    def _subscribe(self, words: Sequence[str]) -> None:
        if len(words) > 1:
            raise WrongWords
        query = f"?{urlencode({'group': words[0]})}" if words else ""
        path = f"/api/sessions/calendar/address{query}"
        print(self.ask(lambda client: client.ask(path, CalendarAddress)).address)

    def _import(self, words: Sequence[str]) -> None:
        path, values = _name_and_values(words)
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadOption(f"The calendar {path} can't be read: {error}.") from None
        body = _made(
            CalendarImport,
            calendar=text,
            group=values.get("group", "everybody"),
            tier=values.get("tier", "gpu"),
            seats=parse_count(values.get("seats", "1"), "seats"),
            author=self.author,
            reason=self.reason,
        )
        self._print(self.ask(lambda client: client.ask("/api/sessions/calendar", SessionsDocument, body)))

    def _known(self, name: str) -> dict[str, Any]:
        answer = self.sessions()
        found = [each.session for each in answer.sessions if each.session["name"] == name]
        if not found:
            names = ", ".join(repr(each.session["name"]) for each in answer.sessions) or "none"
            raise BadOption(f"There is no lab session {name!r}: there are {names}.")
        return dict(found[0])

    def _save(self, base: dict[str, Any], values: Mapping[str, str]) -> None:
        today = datetime.now(ZoneInfo(base["timezone"])).date()
        change = _made(
            SessionChange,
            session=session_document(base, values, today),
            author=self.author,
            reason=self.reason,
        )
        taken = self.ask(lambda client: client.ask("/api/sessions", SessionDocument, change))
        zone = taken.session["timezone"]
        self._print(SessionsDocument(sessions=(taken,), problems=(), timezone=zone))

    def _print(self, answer: SessionsDocument) -> None:
        if self.json:
            print(json.dumps(document(answer), indent=1))
            return
        shown = table("Lab sessions", "Name", "Group", "Places", "When", "Next", "Cancelled")
        for each in answer.sessions:
            session = each.session
            zone = session["timezone"]
            following = ", ".join(local_time(at.start, zone, seconds=False) for at in each.next[:3])
            today = f"{datetime.now(ZoneInfo(zone)):%Y-%m-%d}"
            cancelled = ", ".join(day for day in session["exdates"] if day >= today)
            places = f"{session['seats']} x {session['tier']}"
            cells = (session["name"], session["group"], places, each.words, following, cancelled)
            shown.add_row(*map(cell, cells))
        console = make_console()
        console.print(shown if answer.sessions else "There are no lab sessions.")
        for problem in answer.problems:
            console.print(f"[bold red]{cell(problem)}[/]")


def _made(kind: type[M], **values: Any) -> M:
    """The message with what was typed. Raises BadOption, naming the field and its valid values."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise BadOption(f"{sentence_of(error, kind)}.") from None


def _by_name(line: ReportLine) -> str:
    return line.name


def _by_use(line: ReportLine) -> tuple[float, str]:
    return -line.gpu_seconds, line.name


def _name_and_values(words: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Raises WrongWords."""
    if not words or any("=" not in word for word in words[1:]):
        raise WrongWords
    return words[0], {key: text for key, _, text in (word.partition("=") for word in words[1:])}


def _pairs(values: Mapping[str, Any]) -> str:
    """As typed, "devices=2, tiers=cpu,gpu"; for a removed change "devices taken back"."""
    return ", ".join(
        f"{key} taken back"
        if value is None
        else f"{key}={','.join(value) if isinstance(value, list) else value}"
        for key, value in values.items()
    )


def _changed(change: Mapping[str, Any]) -> str:
    """A line of the history: a quota's keys as typed, or what a grant gave."""
    seconds = change.get("gpu_seconds")
    return _pairs(change) if seconds is None else _granted(seconds / 3600)


def _granted(hours: float) -> str:
    """For example "1 GPU-hour more"."""
    noun = "GPU-hour" if abs(hours) == 1 else "GPU-hours"
    return f"{abs(hours):g} {noun} {'more' if hours > 0 else 'less'}"


def _csv(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first cell of a row is a name that somebody chose; the others are numbers."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([for_spreadsheet(name), *numbers] for name, *numbers in rows)
    return text.getvalue()


def days(first: str, last: str, zone: str) -> dict[str, str]:
    """`start` and `end` of a query, for days as somebody typed them; "" is left out. Raises BadOption."""
    found = {}
    if first:
        found["start"] = midnight(parse_day(first), zone).isoformat()
    if last:
        found["end"] = midnight(parse_day(last) + timedelta(days=1), zone).isoformat()
    return found
