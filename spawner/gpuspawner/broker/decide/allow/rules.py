"""The rules in force: the settings' quotas, overridden by the decisions made at run time. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ....config.quotas import Known, parse_quota, parse_quotas, raw_limits, subject_from_text
from ....config.sessions import session_from_json
from ....core.decision import Announcement, Decision, DecisionKind, Drain
from ....core.errors import BadOption, ConfigError
from ....core.quota import Quota, Subject
from ....core.session import LabSession
from .budget import Entry

_QUOTA_ADVICE = "Change it with `gpuspawner quota set`, or remove it."
_SESSION_ADVICE = "Change or cancel it."
"""What helps against a change or a session that was recorded and can't be used any more."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Quotas, grants, lab sessions by name, and by how many seconds leases were extended.

    `properties` are the limits that hub groups have in their own properties, by group. `drained` are the
    devices on which nothing new is placed, by UUID, and machines (`drain_of`); `messages` the latest for each
    class, past ones too.

    `to_end` are leases, by id, that end if their user's quota doesn't allow them, and since when that holds.

    `changed` are the run-time values by subject, `problems` sentences on those that can't be used any more,
    as when a tier was taken out of the settings: there the settings count.
    """

    quotas: tuple[Quota, ...] = ()
    entries: tuple[Entry, ...] = ()
    sessions: Mapping[str, LabSession] = field(default_factory=dict)
    extended_seconds: Mapping[str, float] = field(default_factory=dict)
    properties: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    changed: Mapping[Subject, Mapping[str, Any]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    drained: Mapping[str, Drain] = field(default_factory=dict)
    messages: Mapping[Subject, Announcement] = field(default_factory=dict)
    to_end: Mapping[str, datetime] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Base:
    """The settings' quotas by subject, as they are written and as they were parsed."""

    raw: Mapping[Subject, Mapping[str, Any]]
    quotas: Mapping[Subject, Quota]


def make_base(entries: Sequence[Mapping[str, Any]], known: Known) -> Base:
    """The base of these entries of `c.GpuSite.quotas`. Raises ConfigError for settings that can't work."""
    return Base(raw_limits(entries), {quota.subject: quota for quota in parse_quotas(entries, known)})


def fold(base: Base, decisions: Iterable[Decision], known: Known) -> Rules:
    """The rules that follow from the settings' entries and the decisions, in their order.

    Only what was changed is parsed: with 10,000 quotas in the settings a change takes no longer.
    """
    decisions = tuple(decisions)
    changed: dict[Subject, dict[str, Any]] = {}
    entries: list[Entry] = []
    documents: dict[str, Mapping[str, Any]] = {}
    extended: dict[str, float] = {}
    properties: dict[str, Mapping[str, Any]] = {}
    for item in decisions:
        document = item.document or {}
        match item.kind:
            case DecisionKind.QUOTA:
                values = changed.setdefault(subject_from_text(item.subject), {})
                values.update(document)
                for key in [key for key, value in document.items() if value is None]:
                    del values[key]
            case DecisionKind.GRANT:
                subject, seconds = subject_from_text(item.subject), float(document["gpu_seconds"])
                entries.append(Entry(subject, seconds, item.at, item.author, item.reason))
            case DecisionKind.SESSION if item.document is None:
                documents.pop(item.subject, None)
            case DecisionKind.SESSION:
                documents[item.subject] = document
            case DecisionKind.EXTENSION:
                extended[item.subject] = extended.get(item.subject, 0.0) + float(document["seconds"])
            case DecisionKind.PROPERTIES:
                properties[item.subject] = document
            case DecisionKind.DRAIN | DecisionKind.MESSAGE | DecisionKind.END:
                pass  # below: they change no quota
    drained, messages = _drained(decisions), _messages(decisions)
    changed = {subject: values for subject, values in changed.items() if values}
    quotas, problems = _quotas(base, changed, known)
    sessions, lost = _sessions(documents, known)
    return Rules(
        quotas=quotas,
        entries=tuple(entries),
        sessions=sessions,
        extended_seconds=extended,
        properties=properties,
        changed=changed,
        problems=(*problems, *lost),
        drained=drained,
        messages=messages,
        to_end=_to_end(decisions),
    )


def without_advice(problem: str) -> str:
    """One of `Rules.problems`, for somebody who asks for the change that it is about."""
    return problem.removesuffix(f" {_QUOTA_ADVICE}").removesuffix(f" {_SESSION_ADVICE}")


def _to_end(decisions: Iterable[Decision]) -> dict[str, datetime]:
    """Each change of a quota says anew who ends because of it."""
    ends: dict[str, Decision] = {}
    for item in decisions:
        if item.kind is DecisionKind.END:
            ends[item.subject] = item
        elif item.kind is DecisionKind.QUOTA and ends:
            ends = {key: each for key, each in ends.items() if _quota_of(each) != item.subject}
    return {lease_id: item.at for lease_id, item in ends.items()}


def _quota_of(end: Decision) -> str:
    """Whose quota was changed."""
    return str((end.document or {}).get("quota", ""))


def _drained(decisions: Iterable[Decision]) -> dict[str, Drain]:
    drained: dict[str, Drain] = {}
    for item in decisions:
        if item.kind is DecisionKind.DRAIN:
            drained.pop(item.subject, None)
            if item.document is not None:
                drained[item.subject] = Drain(item.at, item.author, item.reason)
    return drained


def _messages(decisions: Iterable[Decision]) -> dict[Subject, Announcement]:
    messages: dict[Subject, Announcement] = {}
    for item in decisions:
        if item.kind is DecisionKind.MESSAGE:
            subject = subject_from_text(item.subject)
            messages.pop(subject, None)
            if item.document is not None:
                until = datetime.fromisoformat(str(item.document["until"]))
                messages[subject] = Announcement(str(item.document["text"]), item.author, item.at, until)
    return messages


def _quotas(
    base: Base, changed: Mapping[Subject, Mapping[str, Any]], known: Known
) -> tuple[tuple[Quota, ...], list[str]]:
    """The settings' quotas with the changes over them, key by key."""
    quotas, problems = dict(base.quotas), []
    for subject, values in changed.items():
        merged = {**base.raw.get(subject, {}), **values}
        try:
            quotas[subject] = parse_quota(subject, merged, known, f"The quota of {subject}")
        except ConfigError as error:
            problems.append(f"{error}. {_QUOTA_ADVICE}")
    return tuple(quotas.values()), problems


def _sessions(
    documents: Mapping[str, Mapping[str, Any]], known: Known
) -> tuple[dict[str, LabSession], list[str]]:
    sessions, problems = {}, []
    for name, document in documents.items():
        try:
            sessions[name] = session_from_json(document, known)
        except BadOption as error:
            problems.append(f"The lab session {name!r} can't take place: {error} {_SESSION_ADVICE}")
    return sessions, problems
