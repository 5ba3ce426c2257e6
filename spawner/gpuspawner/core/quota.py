"""The words of quotas: limits, the period that a budget counts in, and what a user is allowed in the end."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from types import MappingProxyType

from .want import Want

UNLIMITED = math.inf
"""A limit that was lifted on purpose. None is something else: nobody said anything about it."""
ALL_TIERS = ("*",)
"""Every tier, said on purpose."""


class SubjectKind(StrEnum):
    """Whom a quota is for."""

    EVERYBODY = "everybody"
    GROUP = "group"
    USER = "user"


@dataclass(frozen=True, slots=True, order=True)
class Subject:
    """Whom a quota is for: everybody, each member of a hub group, or one user."""

    kind: SubjectKind
    name: str = ""

    def __str__(self) -> str:
        return self.kind.value if self.kind is SubjectKind.EVERYBODY else f"{self.kind.value}:{self.name}"

    def covers(self, user: str, groups: Collection[str]) -> bool:
        """Whether it is for this user, a member of these groups."""
        match self.kind:
            case SubjectKind.EVERYBODY:
                return True
            case SubjectKind.GROUP:
                return self.name in groups
            case SubjectKind.USER:
                return self.name == user


EVERYBODY = Subject(SubjectKind.EVERYBODY)


class PeriodKind(StrEnum):
    """In what a budget counts."""

    DAY = "day"
    WEEK = "week"
    TERM = "term"


@dataclass(frozen=True, slots=True)
class Period:
    """A day, a week from a weekday, or a term between two dates, in a named time zone (IANA).

    `first_weekday` is 0 for Monday, as `date.weekday` counts. `first` and `last` are the term's first and
    last day; both belong to it.
    """

    kind: PeriodKind
    timezone: str = "UTC"
    first_weekday: int = 0
    first: date | None = None
    last: date | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """One run of a period: from `start` until just before `end`, both in UTC."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Budget:
    """So many GPU-seconds in each run of the period; `gpu_seconds` may be UNLIMITED."""

    gpu_seconds: float
    period: Period


@dataclass(frozen=True, slots=True)
class Limits:
    """What one quota says. None: it says nothing about that; UNLIMITED: it lifts that limit.

    `leases`, `devices` and `slices` are at once, over all servers of one user. A device is a whole GPU or a
    MIG instance. `weight` is the share in the queue, `priority` goes before it (more is sooner).
    `guaranteed_devices` is what a group as a whole is entitled to; it may be a fraction.
    `extend_seconds` is by how much a session may be made longer in all. Before `minimum_seconds` of a session
    have passed, its GPU is not asked back for somebody else.
    """

    tiers: tuple[str, ...] | None = None
    leases: float | None = None
    devices: float | None = None
    slices: float | None = None
    budget: Budget | None = None
    session_seconds: float | None = None
    extend_seconds: float | None = None
    minimum_seconds: float | None = None
    weight: float | None = None
    priority: int | None = None
    guaranteed_devices: float | None = None


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits, and the users or groups that they apply to."""

    subject: Subject
    limits: Limits


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one user may have, after everything that applies to them was put together.

    A user may start while any of `budgets` has something left: they come from several groups whose periods
    can't be compared. No budget at all is no limit. `group` is the group whose weight and entitlement count
    in the queue: "" if none of the user's groups has any, "user:ada" for a user's own weight. `titles`:
    what the spawn page calls the tiers, for sentences; `wants`: what each of this hub's tiers asks for.
    """

    tiers: tuple[str, ...] = ALL_TIERS
    leases: float = UNLIMITED
    devices: float = UNLIMITED
    slices: float = UNLIMITED
    budgets: tuple[Budget, ...] = ()
    session_seconds: float = UNLIMITED
    extend_seconds: float = 0.0
    minimum_seconds: float = 0.0
    weight: float = 1.0
    priority: int = 0
    group: str = ""
    guaranteed_devices: float = 0.0
    titles: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), compare=False)
    wants: Mapping[str, Want] = field(default_factory=lambda: MappingProxyType({}), compare=False)

    def title(self, tier: str) -> str:
        """What the spawn page calls the tier; its name if the settings don't have it."""
        return self.titles.get(tier, tier)

    def allows_tier(self, tier: str) -> bool:
        """Whether the tier may be used."""
        return self.tiers == ALL_TIERS or tier in self.tiers
