"""What the page of a class shows, computed from its roster, as values for the templates. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote
from zoneinfo import ZoneInfo

from ....core.units import ordinal
from ....protocol.classes import AnnouncementDocument, MemberDocument, MemberState, RosterDocument
from ..meters import Meter, memory_meter
from ..words import Moment, length, moment

IDLE_SECONDS = 300
"""Shorter idleness is not shown: everybody thinks between two cells."""
_WORDS = {
    MemberState.WAITING: ("waits", "warning"),
    MemberState.STARTING: ("starts", "info"),
    MemberState.RUNNING: ("runs", "success"),
    MemberState.ASLEEP: ("paused", "secondary"),
    MemberState.ENDING: ("ends", "secondary"),
    MemberState.CPU: ("on CPU", "secondary"),
    MemberState.NOTHING: ("no server", "light"),
    MemberState.NEVER: ("never started", "light"),
}
"""What a state is called, and the colour of its badge in the hub's Bootstrap."""
_SUMMARY = (  # a member with several servers counts in the first that fits
    ("with a GPU", (MemberState.STARTING, MemberState.RUNNING, MemberState.ASLEEP, MemberState.ENDING)),
    ("waiting", (MemberState.WAITING,)),
    ("on CPU", (MemberState.CPU,)),
    ("no server", (MemberState.NOTHING,)),
    ("never started", (MemberState.NEVER,)),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the roster. `mark` is the server's name in a form, and `field` the form's field for it.

    `lease_id` and `mark` are "" without a GPU and without a server.
    """

    id: str
    lease_id: str
    field: str
    mark: str
    user: str
    server: str
    badge: str
    colour: str
    since: Moment | None
    tier: str
    meter: Meter | None
    compute: str
    idle: Moment | None
    ends: str
    place: str
    wait: str
    stuck: str
    stuck_since: Moment | None
    notice: str
    last: Moment | None


@dataclass(frozen=True, slots=True)
class Longest:
    """Who waits longest."""

    user: str
    since: Moment
    place: str
    wait: str


@dataclass(frozen=True, slots=True)
class Told:
    """The message that the class reads now."""

    text: str
    author: str
    until: str


@dataclass(frozen=True, slots=True)
class ClassPage:
    """Everything that the templates show. `may_write`: whether the viewer may stop, extend and write."""

    group: str
    simulated: bool
    may_write: bool
    rows: tuple[Row, ...]
    stuck: tuple[Row, ...]
    longest: Longest | None
    counts: tuple[tuple[str, int], ...]
    members: int
    members_fault: str
    members_as_of: Moment | None
    message: Told | None


@dataclass(frozen=True, slots=True)
class Scene:
    """What every row needs: the time, on whose clock it is told, and the titles of tiers by name."""

    now: datetime
    timezone: str
    titles: Mapping[str, str]

    def clock(self, at: datetime) -> str:
        """A time of this day as "14:30", of another with its day."""
        local, today = at.astimezone(ZoneInfo(self.timezone)), self.now.astimezone(ZoneInfo(self.timezone))
        return f"{local:%H:%M}" if local.date() == today.date() else f"{local:%a %H:%M}"

    def moment(self, at: datetime | None) -> Moment | None:
        """A past time for people."""
        return None if at is None else moment(at.isoformat(), self.now)


def class_page(roster: RosterDocument, scene: Scene, *, may_write: bool, simulated: bool) -> ClassPage:
    """The page of the class."""
    rows = tuple(_row(member, scene) for member in roster.members)
    return ClassPage(
        group=roster.group,
        simulated=simulated,
        may_write=may_write,
        rows=rows,
        stuck=tuple(row for row in rows if row.stuck),
        longest=_longest(roster.members, scene),
        counts=_counts(roster),
        members=len({member.user for member in roster.members}),
        members_fault=roster.members_fault,
        members_as_of=scene.moment(roster.members_as_of) if roster.members_fault else None,
        message=None if roster.message is None else _told(roster.message, scene),
    )


def _row(member: MemberDocument, scene: Scene) -> Row:
    badge, colour = _WORDS[member.state]
    return Row(
        id=member.lease_id or _row_id(member),
        lease_id=member.lease_id or "",
        field="lease" if member.lease_id else "server",
        mark=member.lease_id or (mark_of(member.user, member.server) if has_server(member) else ""),
        user=member.user,
        server=member.server,
        badge=badge,
        colour=colour,
        since=scene.moment(member.since),
        tier=scene.titles.get(member.tier, member.tier),
        meter=_meter(member),
        compute="" if member.compute_percent is None else f"{member.compute_percent:.0f} %",
        idle=_idle(member, scene),
        ends="" if member.ends_at is None else scene.clock(member.ends_at),
        place=_place(member),
        wait=_wait(member, scene),
        stuck=member.stuck,
        stuck_since=scene.moment(member.stuck_since),
        notice=member.notice,
        last=scene.moment(member.last_at),
    )


def has_server(member: MemberDocument) -> bool:
    """Whether there is something to stop."""
    return member.state not in (MemberState.NOTHING, MemberState.NEVER)


def _row_id(member: MemberDocument) -> str:
    """The same for as long as the server is there, wherever its row stands: a mark stays with its server."""
    return hashlib.sha256(mark_of(member.user, member.server).encode()).hexdigest()[:16]


def mark_of(user: str, server: str) -> str:
    """A server without a GPU, as a form names it."""
    return f"{quote(user, safe='')}/{quote(server, safe='')}"


def _meter(member: MemberDocument) -> Meter | None:
    used, quota = member.memory_used_bytes, member.memory_quota_bytes
    if used is None or not quota:
        return None
    return memory_meter(used, quota)


def _idle(member: MemberDocument, scene: Scene) -> Moment | None:
    if member.idle_since is None or (scene.now - member.idle_since).total_seconds() < IDLE_SECONDS:
        return None
    return scene.moment(member.idle_since)


def _place(member: MemberDocument) -> str:
    return "" if member.position is None else f"{ordinal(member.position)} in line"


def _wait(member: MemberDocument, scene: Scene) -> str:
    """When they are likely served: "likely 14:30 to 15:10"."""
    if member.earliest_at is None or member.latest_at is None:
        return ""
    earliest, latest = scene.clock(max(member.earliest_at, scene.now)), scene.clock(member.latest_at)
    return f"likely {earliest}" if earliest == latest else f"likely {earliest} to {latest}"


def _longest(members: Sequence[MemberDocument], scene: Scene) -> Longest | None:
    waiting = [each for each in members if each.state is MemberState.WAITING and each.since is not None]
    first = min(waiting, key=lambda each: each.since or scene.now, default=None)
    since = None if first is None else scene.moment(first.since)
    if first is None or since is None:
        return None
    return Longest(first.user, since, _place(first), _wait(first, scene))


def _counts(roster: RosterDocument) -> tuple[tuple[str, int], ...]:
    """How many members there are of each kind, without empty kinds; who has several servers counts once."""
    place = {state: number for number, (_, states) in enumerate(_SUMMARY) for state in states}
    kind: dict[str, int] = {}
    for member in roster.members:
        kind[member.user] = min(place[member.state], kind.get(member.user, len(_SUMMARY)))
    counts = Counter(kind.values())
    return tuple((words, counts[number]) for number, (words, _) in enumerate(_SUMMARY) if counts[number])


def _told(message: AnnouncementDocument, scene: Scene) -> Told:
    left = length((message.until - scene.now).total_seconds())
    return Told(message.text, message.author, f"until {scene.clock(message.until)} ({left} left)")
