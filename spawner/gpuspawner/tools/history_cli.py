"""`gpuspawner audit | timeline | guard | images`: what happened, and which images are here, from the API."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlencode

from traitlets import Int, Unicode

from ..core.units import format_bytes
from ..protocol.history import AuditDocument, AuditEntry, GuardDocument, TimelineDocument, TimelineEntry
from ..protocol.messages import document
from ..protocol.paging import MOST, Listed
from ..protocol.pulls import ImageDocument, ImagesDocument
from .cli import cell, local_time, make_console, table
from .rules_cli import RuleCommand, Verb, days

L = TypeVar("L", bound=Listed)


class HistoryCommand(RuleCommand):
    """What the commands of the past share: how many entries are shown, in the site's time zone."""

    aliases = {**RuleCommand.aliases, "most": "HistoryCommand.most"}  # noqa: RUF012

    most = Int(
        50,
        min=0,
        max=MOST,
        help="""
        How many entries are shown, the newest first: up to 1000, or 0 for all.

        Default: 50, about two screens.
        Example: `gpuspawner audit --most=0 --json > audit.json`
        """,
    ).tag(config=True)

    def verbs(self) -> Mapping[str, Verb]:
        return {"": self._show}

    def _show(self, _words: Sequence[str]) -> None:
        raise NotImplementedError

    def pages(self, path: str, kind: type[L], query: Mapping[str, str]) -> L:
        """The newest `most` entries at this path, or all pages."""
        said = {key: text for key, text in query.items() if text}
        if self.most:
            said["limit"] = str(self.most)
            return self.ask(lambda client: client.ask(f"{path}?{urlencode(said)}", kind))
        return self.ask(lambda client: client.ask_all(f"{path}?{urlencode(said)}", kind))

    def show(self, answer: L, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints a table, or JSON."""
        if self.json:
            print(json.dumps(document(answer), indent=1))
            return
        shown = table(title, *columns)
        for row in rows:
            shown.add_row(*map(cell, row))
        console = make_console()
        console.print(shown)
        if answer.next is not None:
            console.print(f"\nThese are the newest {len(rows)}: add --most=0 for all.")


class AuditCommand(HistoryCommand):
    """Shows the audit log: who changed what, when and why, and the result."""

    name = "gpuspawner-audit"
    description = __doc__
    usage = "use: gpuspawner audit [--author=NAME] [--action=WORDS] [--most=NUMBER] [--json]"
    aliases = {  # noqa: RUF012
        **HistoryCommand.aliases,
        "author": "AuditCommand.author_name",
        "action": "AuditCommand.action",
    }

    author_name = Unicode(
        "",
        help="""
        Show only what this person or "service NAME" asked for.

        Default: none, so everybody's.
        Example: `gpuspawner audit --author=noether`
        """,
    ).tag(config=True)
    action = Unicode(
        "",
        help="""
        Show only this action, as the log writes it.

        Default: none, so all.
        Example: `gpuspawner audit --action="drain device"`
        """,
    ).tag(config=True)

    def _show(self, _words: Sequence[str]) -> None:
        zone = self.zone()
        query = {"author": self.author_name, "action": self.action}
        answer = self.pages("/api/audit", AuditDocument, query)
        columns = (f"When ({zone})", "By", "Way", "What", "For", "Details", "Why", "Result")
        self.show(answer, "Audit log", columns, [_audit_row(each, zone) for each in answer.entries])


class TimelineCommand(HistoryCommand):
    """Shows when which server held which GPUs, in a range of days."""

    name = "gpuspawner-timeline"
    description = __doc__
    usage = (
        "use: gpuspawner timeline [--start=DAY] [--end=DAY] [--user=NAME] [--device=UUID] [--most=NUMBER] "
        "[--json]"
    )
    aliases = {  # noqa: RUF012
        **HistoryCommand.aliases,
        "start": "TimelineCommand.first_day",
        "end": "TimelineCommand.last_day",
        "user": "TimelineCommand.user",
        "device": "TimelineCommand.device",
    }

    first_day = Unicode(
        "",
        help="""
        The first day, in the site's time zone.

        Default: 24 hours before the end.
        Example: `gpuspawner timeline --start 2026-10-12`
        """,
    ).tag(config=True)
    last_day = Unicode(
        "",
        help="""
        The last day; the whole day counts.

        Default: today, up to now.
        Example: `gpuspawner timeline --end 2026-10-13`
        """,
    ).tag(config=True)
    user = Unicode(
        "",
        help="""
        Show only the servers of this user.

        Default: none, so everybody's.
        Example: `gpuspawner timeline --user ada`
        """,
    ).tag(config=True)
    device = Unicode(
        "",
        help="""
        Show only who held this GPU or MIG instance, by its UUID.

        Default: none, so all.
        Example: `gpuspawner timeline --device GPU-5c3e…`
        """,
    ).tag(config=True)

    def _show(self, _words: Sequence[str]) -> None:
        zone = self.zone()
        query = {"user": self.user, "device": self.device}
        query |= days(self.first_day, self.last_day, zone)
        answer = self.pages("/api/timeline", TimelineDocument, query)
        several = len({each.node for each in answer.entries}) > 1
        columns = ("From", "Until", "User", "Server", "Tier", *(("Machine",) if several else ()), "GPUs")
        rows = [_stay_row(each, zone, (each.node,) if several else ()) for each in answer.entries]
        if not self.json:
            print(f"From {local_time(answer.start, zone)} to {local_time(answer.end, zone)} ({zone})")
        self.show(answer, "GPUs held", columns, rows)


class GuardCommand(HistoryCommand):
    """Shows the processes that the guard ended, and what their users were told."""

    name = "gpuspawner-guard"
    description = __doc__
    usage = "use: gpuspawner guard [--most=NUMBER] [--json]"

    def _show(self, _words: Sequence[str]) -> None:
        zone = self.zone()
        answer = self.pages("/api/guard", GuardDocument, {})
        rows = [
            (local_time(each.at, zone), each.user or "unknown", each.server, f"{each.name} ({each.pid})",
             each.device_uuid, each.sentence)
            for each in answer.entries
        ]  # fmt: skip
        self.show(
            answer,
            "Ended by the guard",
            (f"When ({zone})", "User", "Server", "Process", "GPU", "Message"),
            rows,
        )


class ImagesCommand(RuleCommand):
    """Shows the images of the settings: on this machine or not, and pulls in progress."""

    name = "gpuspawner-images"
    description = __doc__
    usage = "use: gpuspawner images [--json]"

    def verbs(self) -> Mapping[str, Verb]:
        return {"": self._show}

    def _show(self, _words: Sequence[str]) -> None:
        answer = self.ask(lambda client: client.ask("/api/images", ImagesDocument))
        if self.json:
            print(json.dumps(document(answer), indent=1))
            return
        shown = table("Images", "Image", "State")
        for each in answer.images:
            shown.add_row(cell(each.image), cell(_image_words(each)))
        make_console().print(shown)


def _audit_row(entry: AuditEntry, zone: str) -> tuple[str, ...]:
    details = "(long)" if entry.details is None else _details(entry.details)
    result = f"{entry.result}: {entry.message}" if entry.message else entry.result
    when = local_time(entry.at, zone)
    return (when, entry.author, entry.via, entry.action, entry.subject, details, entry.reason, result)


def _details(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False) if values else ""


def _stay_row(entry: TimelineEntry, zone: str, machine: tuple[str, ...]) -> tuple[str, ...]:
    until = "now" if entry.ended_at is None else local_time(entry.ended_at, zone)
    devices = ", ".join(entry.device_uuids)
    began = local_time(entry.started_at, zone)
    return (began, until, entry.user, entry.server, entry.tier, *machine, devices)


def _image_words(image: ImageDocument) -> str:
    if image.pull is not None:
        return image.pull.message
    if image.here is None:
        return "not looked at yet"
    return "not on this machine" if image.size_bytes is None else format_bytes(image.size_bytes)
