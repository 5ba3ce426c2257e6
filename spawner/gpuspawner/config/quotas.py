"""Quotas from their settings: `c.GpuSite.quotas`, run-time changes and group properties to values. Pure.

All three have the same keys, so one parser reads them. Every error names the entry, the key and the line
that would be right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from difflib import get_close_matches
from functools import cache
from typing import Any
from zoneinfo import available_timezones

from ..core.errors import ConfigError
from ..core.model import Tier
from ..core.quota import (
    ALL_TIERS,
    EVERYBODY,
    UNLIMITED,
    Budget,
    Limits,
    Period,
    PeriodKind,
    Quota,
    Subject,
    SubjectKind,
)
from ..core.text import printable
from ..core.want import Mode, Want

UNLIMITED_TEXT = "unlimited"
"""How a limit is lifted in the settings, at run time and in JSON."""
LIMIT_KEYS = (
    "tiers", "leases", "devices", "slices", "gpu_hours", "period", "timezone", "session_hours",
    "extend_hours", "minimum_hours", "weight", "priority", "guaranteed_devices",
)  # fmt: skip
"""The keys of a quota, in the order in which they are shown."""
_SUBJECT_KEYS = ("user", "group")
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_TERM = re.compile(r"^(\d{4}-\d{2}-\d{2}) to (\d{4}-\d{2}-\d{2})$")
_MAX_COUNT = 10_000
_MAX_HOURS = 1_000_000.0
_MAX_PRIORITY = 100
_PERIOD_EXAMPLES = '"day", "week", "week from sunday" or "2026-10-12 to 2027-02-12"'


@dataclass(frozen=True, slots=True)
class Known:
    """What a quota may name: the tiers, the hub's groups (None: not known here), and the site's time zone."""

    tiers: tuple[Tier, ...] = ()
    groups: frozenset[str] | None = None
    timezone: str = "UTC"

    @property
    def titles(self) -> dict[str, str]:
        """What the spawn page calls each tier."""
        return {tier.name: tier.title for tier in self.tiers}

    @property
    def wants(self) -> dict[str, Want]:
        """What each tier asks for."""
        return {tier.name: tier.want for tier in self.tiers}


def parse_quotas(
    raw: Sequence[object], known: Known, place_of: Callable[[int], str] = lambda number: ""
) -> tuple[Quota, ...]:
    """Quotas from `c.GpuSite.quotas`. Raises ConfigError for what can't work, with the line that would.

    `place_of` says of an entry's number (from 1) where it stands, "jupyterhub_config.py:12: ", or "".
    """
    quotas = []
    for number, entry in enumerate(raw, start=1):
        where = f"{place_of(number)}c.GpuSite.quotas, entry {number}"
        if not isinstance(entry, Mapping):
            raise ConfigError(
                f'{where}, is {entry!r}: write it like {{"group": "students", "devices": 1, "gpu_hours": 10}}'
            )
        subject = parse_subject(entry, where)
        limits = {key: value for key, value in entry.items() if key not in _SUBJECT_KEYS}
        quotas.append(parse_quota(subject, limits, known, f"{where} ({subject})"))
    first_of: dict[Subject, int] = {}
    for number, quota in enumerate(quotas, start=1):
        first = first_of.setdefault(quota.subject, number)
        if first < number:
            raise ConfigError(
                f"{place_of(number)}c.GpuSite.quotas, entry {number} ({quota.subject}): entry {first} is for "
                f"{quota.subject} too: put both into one"
            )
    return tuple(quotas)


def parse_subject(entry: Mapping[str, object], where: str) -> Subject:
    """Whom an entry is for: its `group`, its `user`, or everybody. Raises ConfigError."""
    named = [key for key in _SUBJECT_KEYS if key in entry]
    if len(named) == 2:
        raise ConfigError(f'{where}, has "user" and "group": make two entries of it, one for each')
    if not named:
        return EVERYBODY
    name = entry[named[0]]
    if not isinstance(name, str) or not 0 < len(name) <= 255 or not printable(name):
        raise ConfigError(f'{where}: {named[0]} is {name!r}: give a name, like "{named[0]}": "students"')
    return Subject(SubjectKind(named[0]), name)


def subject_from_text(text: str) -> Subject:
    """The subject of "everybody", "group:students" or "user:ada", as `str` writes it. Raises ConfigError."""
    kind, colon, name = text.partition(":")
    if text == SubjectKind.EVERYBODY.value:
        return EVERYBODY
    if kind in _SUBJECT_KEYS and colon and 0 < len(name) <= 255 and printable(name):
        return Subject(SubjectKind(kind), name)
    raise ConfigError(f'A quota is for "everybody", "group:NAME" or "user:NAME", not for {text!r}')


def parse_quota(subject: Subject, raw: Mapping[str, object], known: Known, where: str) -> Quota:
    """One quota from its keys. Raises ConfigError, naming `where` and the key."""
    unknown = sorted(str(key) for key in set(raw) - set(LIMIT_KEYS))
    if unknown:
        close = get_close_matches(unknown[0], LIMIT_KEYS, 1)
        advice = f'write "{close[0]}"' if close else f"use {', '.join(LIMIT_KEYS)}"
        raise ConfigError(f"{where}: there is no key {unknown[0]!r}: {advice}")
    check_group(subject, known, where)
    limits = Limits(
        tiers=_parse_tiers(raw.get("tiers"), known, where),
        leases=_parse_count(raw, "leases", where),
        devices=_parse_count(raw, "devices", where),
        slices=_parse_count(raw, "slices", where),
        budget=_parse_budget(raw, known, where),
        session_seconds=_seconds(_parse_hours(raw, "session_hours", where)),
        extend_seconds=_seconds(_parse_hours(raw, "extend_hours", where, may_be_zero=True)),
        minimum_seconds=_seconds(_parse_minimum(raw, where)),
        weight=_parse_weight(raw.get("weight"), where),
        priority=_parse_priority(raw.get("priority"), where),
        guaranteed_devices=_parse_guaranteed(raw.get("guaranteed_devices"), subject, where),
    )
    _check_contradictions(limits, known, where)
    return Quota(subject, limits)


def raw_limits(raw: Iterable[Mapping[str, Any]]) -> dict[Subject, dict[str, Any]]:
    """The keys of each entry of the file, without whom it is for."""
    return {
        parse_subject(entry, "c.GpuSite.quotas"): {
            key: value for key, value in entry.items() if key not in _SUBJECT_KEYS
        }
        for entry in raw
    }


def parse_properties(group: str, properties: Mapping[str, object], known: Known) -> Quota | None:
    """The quota in a hub group's `properties`; None if it has none of the keys.

    Other keys are left alone: they belong to others. Raises ConfigError, as everywhere, for values that
    can't work: a limit that can't be read must not become no limit.
    """
    ours = {key: value for key, value in properties.items() if key in LIMIT_KEYS}
    if not ours:
        return None
    where = f"The properties of the hub's group {group!r}"
    return parse_quota(Subject(SubjectKind.GROUP, group), ours, replace(known, groups=None), where)


def check_timezone(value: object, where: str, line: str = '"timezone": "{}"') -> str:
    """A time zone of the IANA database. Raises ConfigError with the nearest that exists, put into `line`."""
    zones = _zones()
    if isinstance(value, str) and value in zones:
        return value
    close = get_close_matches(str(value), sorted(zones), 1, 0.5)
    example = line.format(close[0] if close else "Europe/Berlin")
    raise ConfigError(f"{where}: there is no time zone {value!r}: write {example}")


@cache
def _zones() -> frozenset[str]:
    """The time zones there are; reading their folder takes 30 ms."""
    return frozenset(available_timezones())


def parse_period(value: object, timezone: str, where: str) -> Period:
    """A period from its text. Raises ConfigError for one that doesn't exist."""
    text = " ".join(value.lower().split()) if isinstance(value, str) else ""
    if text == "day":
        return Period(PeriodKind.DAY, timezone)
    if text == "week":
        return Period(PeriodKind.WEEK, timezone)
    if text.startswith("week from ") and text[10:] in _WEEKDAYS:
        return Period(PeriodKind.WEEK, timezone, _WEEKDAYS.index(text[10:]))
    term = _TERM.match(text)
    if term is None:
        raise ConfigError(f'{where}: there is no period {value!r}: write "period": {_PERIOD_EXAMPLES}')
    try:
        first, last = date.fromisoformat(term[1]), date.fromisoformat(term[2])
    except ValueError as error:
        raise ConfigError(
            f'{where}: period is {value!r}: {error}. Write "period": {_PERIOD_EXAMPLES}'
        ) from None
    if last < first:
        right = f"{last} to {first}"
        raise ConfigError(f'{where}: period ends before it begins: write "period": "{right}"')
    return Period(PeriodKind.TERM, timezone, first=first, last=last)


def period_to_text(period: Period) -> str:
    """The text that `parse_period` reads."""
    if period.kind is PeriodKind.TERM:
        return f"{period.first} to {period.last}"
    if period.kind is PeriodKind.WEEK and period.first_weekday:
        return f"week from {_WEEKDAYS[period.first_weekday]}"
    return period.kind.value


def limits_to_json(limits: Limits) -> dict[str, Any]:
    """The keys of the settings that say these limits; what is not said is left out."""
    budget, session, extend = limits.budget, limits.session_seconds, limits.extend_seconds
    minimum = limits.minimum_seconds
    values: dict[str, Any] = {
        "tiers": None if limits.tiers is None else _plain_tiers(limits.tiers),
        "leases": _plain(limits.leases),
        "devices": _plain(limits.devices),
        "slices": _plain(limits.slices),
        "gpu_hours": None if budget is None else _plain(budget.gpu_seconds / 3600),
        "period": None if budget is None else period_to_text(budget.period),
        "timezone": None if budget is None else budget.period.timezone,
        "session_hours": None if session is None else _plain(session / 3600),
        "extend_hours": None if extend is None else _plain(extend / 3600),
        "minimum_hours": None if minimum is None else _plain(minimum / 3600),
        "weight": limits.weight,
        "priority": limits.priority,
        "guaranteed_devices": limits.guaranteed_devices,
    }
    return {key: value for key, value in values.items() if value is not None}


def value_from_text(key: str, text: str) -> Any:
    """A key's value as the command line gives it: "2", "0.5", "unlimited", "cpu,gpu". Raises ConfigError."""
    if key not in LIMIT_KEYS:
        close = get_close_matches(key, LIMIT_KEYS, 1)
        raise ConfigError(f"There is no key {key!r}: use {close[0] if close else ', '.join(LIMIT_KEYS)}")
    if key in ("period", "timezone") or text == UNLIMITED_TEXT:
        return text
    if key == "tiers":
        return [name.strip() for name in text.split(",") if name.strip()]
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{key} is {text!r}: give a number, or {UNLIMITED_TEXT!r}") from None


def _plain(value: float | None) -> float | str | None:
    if value is None or value == UNLIMITED:
        return None if value is None else UNLIMITED_TEXT
    return int(value) if value == int(value) else value


def _plain_tiers(tiers: tuple[str, ...]) -> list[str] | str:
    return UNLIMITED_TEXT if tiers == ALL_TIERS else list(tiers)


def _seconds(hours: float | None) -> float | None:
    return None if hours is None else hours * 3600


def check_group(subject: Subject, known: Known, where: str) -> None:
    """Raises ConfigError if the subject is a group that the hub doesn't have, as far as that is known."""
    if subject.kind is not SubjectKind.GROUP or known.groups is None or subject.name in known.groups:
        return
    close = get_close_matches(subject.name, sorted(known.groups), 1)
    advice = f'write "group": "{close[0]}", or ' if close else ""
    raise ConfigError(
        f"{where}: the hub has no group {subject.name!r}: {advice}add it to c.JupyterHub.load_groups, "
        f'like "{subject.name}": {{"users": []}}'
    )


def _parse_tiers(value: object, known: Known, where: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if value == UNLIMITED_TEXT:
        return ALL_TIERS
    names = [tier.name for tier in known.tiers]
    if not isinstance(value, list | tuple) or not value:
        raise ConfigError(f'{where}: tiers is {value!r}: write "tiers": {_list(names[:2] or ["cpu"])}')
    for name in value:
        if name not in names:
            close = get_close_matches(str(name), names, 1)
            advice = f"write {close[0]!r}" if close else f"there are {', '.join(map(repr, names))}"
            raise ConfigError(f"{where}: tiers has {name!r}, and c.GpuSite.tiers has no such tier: {advice}")
    return tuple(dict.fromkeys(value))


def _list(names: Collection[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


def _number(value: object) -> float | None:
    """`value` if it is a finite number; bool is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if -_MAX_HOURS <= value <= _MAX_HOURS else None


def _parse_count(raw: Mapping[str, object], key: str, where: str) -> float | None:
    value = raw.get(key)
    if value is None:
        return None
    if value == UNLIMITED_TEXT:
        return UNLIMITED
    number = _number(value)
    if number is None or number % 1 or not 0 <= number <= _MAX_COUNT:
        raise ConfigError(
            f'{where}: {key} is {value!r}: give a whole number from 0 to {_MAX_COUNT}, like "{key}": 1, or '
            f'"{UNLIMITED_TEXT}"'
        )
    return int(number)


def _parse_hours(
    raw: Mapping[str, object], key: str, where: str, *, may_be_zero: bool = False
) -> float | None:
    value = raw.get(key)
    if value is None:
        return None
    if value == UNLIMITED_TEXT:
        return UNLIMITED
    number = _number(value)
    if number is None or number < 0 or (number == 0 and not may_be_zero):
        least = "0 or more" if may_be_zero else "more than 0"
        raise ConfigError(
            f'{where}: {key} is {value!r}: give a number of hours, {least}, like "{key}": 10, or '
            f'"{UNLIMITED_TEXT}"'
        )
    return float(number)


def _parse_minimum(raw: Mapping[str, object], where: str) -> float | None:
    """`minimum_hours`, which has an end: without one no GPU would ever come back."""
    hours = _parse_hours(raw, "minimum_hours", where, may_be_zero=True)
    if hours == UNLIMITED:
        raise ConfigError(
            f'{where}: minimum_hours is "{UNLIMITED_TEXT}": give a number of hours, like "minimum_hours": 0.5'
        )
    return hours


def _parse_budget(raw: Mapping[str, object], known: Known, where: str) -> Budget | None:
    hours = _parse_hours(raw, "gpu_hours", where, may_be_zero=True)
    timezone = known.timezone
    if raw.get("timezone") is not None:
        timezone = check_timezone(raw["timezone"], where)
    period = None if raw.get("period") is None else parse_period(raw["period"], timezone, where)
    if hours is None:
        given = "period" if period else "timezone" if raw.get("timezone") is not None else None
        if given:
            raise ConfigError(
                f'{where}: {given} belongs to gpu_hours, which is missing: add "gpu_hours": 10, or leave '
                f"{given} out"
            )
        return None
    return Budget(hours * 3600, period or Period(PeriodKind.WEEK, timezone))


def _parse_weight(value: object, where: str) -> float | None:
    if value is None:
        return None
    number = _number(value)
    if number is None or not 0 < number <= _MAX_COUNT:
        raise ConfigError(
            f'{where}: weight is {value!r}: give a number above 0, like "weight": 2 for twice the share'
        )
    return float(number)


def _parse_priority(value: object, where: str) -> int | None:
    if value is None:
        return None
    number = _number(value)
    if number is None or number % 1 or abs(number) > _MAX_PRIORITY:
        raise ConfigError(
            f"{where}: priority is {value!r}: give a whole number from -{_MAX_PRIORITY} to {_MAX_PRIORITY}, "
            'like "priority": 10'
        )
    return int(number)


def _parse_guaranteed(value: object, subject: Subject, where: str) -> float | None:
    if value is None:
        return None
    if subject.kind is not SubjectKind.GROUP:
        raise ConfigError(
            f'{where}: guaranteed_devices is for a group as a whole: give the entry a "group", or leave it '
            "out"
        )
    number = _number(value)
    if number is None or not 0 <= number <= _MAX_COUNT:
        raise ConfigError(
            f"{where}: guaranteed_devices is {value!r}: give a number, 0 or more, like "
            '"guaranteed_devices": 2'
        )
    return float(number)


def _check_contradictions(limits: Limits, known: Known, where: str) -> None:
    """Raises ConfigError where one key takes away what another gives."""
    named = [tier for tier in known.tiers if limits.tiers is not None and tier.name in limits.tiers]
    for tier in named:
        sliced, count = tier.want.mode is Mode.SLICE, tier.want.device_count
        key, limit = ("slices", limits.slices) if sliced else ("devices", limits.devices)
        if tier.needs_gpu and limit is not None and count > limit:
            raise ConfigError(
                f"{where}: tiers has {tier.name!r}, which takes {count}, but {key} is {limit:g}: "
                f'write "{key}": {count}, or leave the tier out'
            )
    if any(tier.needs_gpu for tier in named) and limits.leases == 0:
        raise ConfigError(f'{where}: leases is 0, but tiers has some with a GPU: write "leases": 1')
    session, minimum = limits.session_seconds, limits.minimum_seconds
    if session is not None and minimum is not None and minimum > session:
        raise ConfigError(
            f"{where}: minimum_hours is {minimum / 3600:g}, but a session ends after {session / 3600:g}: "
            f'write "minimum_hours": {session / 3600:g}, or less'
        )
    if limits.session_seconds is not None and limits.session_seconds == UNLIMITED and limits.extend_seconds:
        raise ConfigError(
            f"{where}: session_hours is {UNLIMITED_TEXT!r}, so extend_hours has no meaning: leave it out"
        )
