"""Lab sessions: when they meet, whether they fit, what is kept for them, and which servers have to end. Pure.

Rules are expanded in local time and then put into the time zone, so a class stays at 10:00 when the clocks
change. The caller, which knows the devices, says what fits on them (`Fits`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from dateutil.rrule import rrulestr

from ....core.errors import BadOption, SessionReserved, SessionUnfit
from ....core.quota import Window
from ....core.session import LabSession, Meeting
from ..allow.period import format_local

Fits = Callable[[Mapping[str, int]], bool]
"""Whether this many places of each tier fit on the empty devices at once."""

HORIZON = timedelta(days=366)
"""How far ahead a session without an end is checked against the others."""
STARTING_SECONDS = 120.0
"""After this time a server that was started before a class is no longer counted as starting."""
SHORTEST_SECONDS = 1200.0
"""A start that a session would end sooner than that is refused: both its warnings need 15 minutes."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """What is kept for a meeting: `seats` places of the tier, from `keep_from` until `release_at`."""

    meeting: Meeting
    group: str
    tier: str
    seats: int
    timezone: str
    keep_from: datetime
    release_at: datetime

    def kept(self, now: datetime, taken: int) -> int:
        """How many places must stay free now, when members of the group have `taken`."""
        return max(0, self.seats - taken) if self.keep_from <= now < self.release_at else 0


@dataclass(frozen=True, slots=True)
class Occupant:
    """A server that is not of the session and may be in its way; `since` is when it got its GPU."""

    lease_id: str
    since: datetime


def meetings(session: LabSession, window: Window) -> list[Meeting]:
    """The times at which the session meets that touch the window, in order."""
    zone = ZoneInfo(session.timezone)
    changed = {change.on: change for change in session.changes}
    begin = datetime.combine(session.first, session.begins)
    # What the rule puts outside of the window may have been moved into it, and the other way round.
    margin = timedelta(days=2, seconds=session.length_seconds)
    found = []
    for local in _local_begins(session, begin, window.end.astimezone(zone).replace(tzinfo=None) + margin):
        if local.date() in changed or local.date() in session.exdates:
            continue
        found.append((local.date(), local, session.length_seconds))
    found += [
        (change.on, change.begins, change.length_seconds)
        for change in session.changes
        if change.on not in session.exdates
    ]
    made = [_meeting(session.name, on, local.replace(tzinfo=zone), seconds) for on, local, seconds in found]
    return sorted(each for each in made if each.start < window.end and each.end > window.start)


@dataclass(frozen=True, slots=True)
class TierWords:
    """What a refusal says of a tier: its `title` on the spawn page, and `not_counted`: a sentence that names
    its devices that don't count now; "" if all count."""

    title: str
    not_counted: str = ""


def check_session(
    session: LabSession,
    others: Iterable[LabSession],
    fits: Fits,
    now: datetime,
    words: TierWords | None = None,
) -> None:
    """Refuse a session that doesn't fit on the devices or beside the others, and say what would fit.

    Raises SessionUnfit. Looks `HORIZON` ahead; the others are supposed to fit among themselves. `words` are
    those of the session's tier.
    """
    window = Window(now, now + HORIZON)
    own = meetings(session, window)
    if not own:
        raise SessionUnfit(
            f"The session {session.name!r} has no date after now: check its first day, its rule and its end."
        )
    for one, following in pairwise(own):
        if following.start < one.end:
            raise SessionUnfit(
                f"The session {session.name!r} would meet twice at once on {one.on} and {following.on}: make "
                "it shorter, or change its rule."
            )
    by_name = {other.name: other for other in others if other.name != session.name}
    booked = [each for other in by_name.values() for each in meetings(other, window)]
    clashes = []
    for meeting in own:
        beside = _worst(meeting, booked, by_name, session, fits)
        if beside is not None:
            clashes.append((meeting, *beside))
    if clashes:
        words = words or TierWords(session.tier)
        refusal = _unfit_sentence(session, words.title, clashes, len(own), now)
        raise SessionUnfit(f"{refusal} {words.not_counted}".rstrip())


def check_dates(session: LabSession, before: LabSession | None) -> None:
    """Refuse to cancel or move a date on which the session doesn't meet, and name the nearest dates.

    `before` is the session as it was, None for a new one: only dates that it doesn't have are looked at.
    Raises BadOption.
    """
    cancelled = set(session.exdates) - set(before.exdates if before else ())
    moved = {change.on for change in session.changes} - {
        change.on for change in (before.changes if before else ())
    }
    for day in sorted(cancelled | moved):
        if not _rule_meets_on(session, day):
            raise BadOption(_no_meeting_sentence(session, day))


def reservations(sessions: Iterable[LabSession], now: datetime, until: datetime) -> list[Reservation]:
    """What is kept, or will be until `until`, in the order of time; meetings that are over are left out."""
    found = []
    for session in sessions:
        lead, grace = timedelta(seconds=session.lead_seconds), timedelta(seconds=session.grace_seconds)
        for meeting in meetings(session, Window(now, until + lead)):
            if meeting.start - lead < until:
                found.append(
                    Reservation(
                        meeting=meeting,
                        group=session.group,
                        tier=session.tier,
                        seats=session.seats,
                        timezone=session.timezone,
                        keep_from=meeting.start - lead,
                        release_at=min(meeting.start + grace, meeting.end),
                    )
                )
    return sorted(found, key=lambda each: (each.keep_from, each.meeting))


def without_room(
    sessions: Iterable[LabSession], fits: Fits, now: datetime, ahead: timedelta
) -> list[Reservation]:
    """The next meeting of each session within `ahead` whose places don't fit beside what is kept by then."""
    coming = reservations(sessions, now, now + ahead)
    found: dict[str, Reservation] = {}
    for each in coming:
        demand: Counter[str] = Counter()
        for other in coming:
            if other.keep_from <= each.keep_from < other.meeting.end:
                demand[other.tier] += other.seats
        if not fits(demand):
            found.setdefault(each.meeting.session, each)
    return list(found.values())


def longest_start(
    now: datetime, session_seconds: float, in_the_way: Iterable[Reservation]
) -> tuple[float, str]:
    """How long a server that starts now may keep its GPU, and a sentence if that is shorter ("" if not).

    `in_the_way` are the reservations, kept from now on, that would lack places if it stayed. Before a session
    begins, the start may use what time is left. Raises SessionReserved where that is too little.
    """
    seconds, sentence = session_seconds, ""
    for reservation in in_the_way:
        left = (reservation.meeting.start - now).total_seconds()
        if seconds <= left:
            continue
        name, zone = reservation.meeting.session, reservation.timezone
        if left < SHORTEST_SECONDS:
            again = reservation.release_at if left <= 0 else reservation.meeting.end
            raise SessionReserved(
                f"The lab session {name!r} has these GPUs {_span(reservation, now)}: choose CPU, or start "
                f"after {format_local(again, zone, now)}.",
                again_at=again,
            )
        seconds = left
        at = format_local(reservation.meeting.start, zone, now)
        sentence = f"This server ends on {at}, when the lab session {name!r} needs its GPU."
    return seconds, sentence


def make_room(occupants: Iterable[Occupant], enough: Callable[[frozenset[str]], bool]) -> tuple[str, ...]:
    """Which servers end so that a session has its places: the newest first, and none unnecessarily.

    `enough` says whether the session's places are free without these leases. If not even all of them are
    enough, all that help go: the rest is not theirs to give.
    """
    ordered = sorted(occupants, key=lambda each: (each.since, each.lease_id), reverse=True)
    leaving: list[str] = []
    for occupant in ordered:
        if enough(frozenset(leaving)):
            break
        leaving.append(occupant.lease_id)
    for lease_id in list(leaving):  # a newer one may free nothing useful
        without = frozenset(leaving) - {lease_id}
        if enough(frozenset(leaving)) and enough(without):
            leaving.remove(lease_id)
    return tuple(leaving)


def prestarts(
    users: Sequence[str], begun: Mapping[str, datetime], ready: Collection[str], at_once: int, now: datetime
) -> list[str]:
    """Whose server is started now: the next in turn, while fewer than `at_once` are still starting.

    `begun` is when each was started, `ready` who has a running one. A start that takes longer than
    `STARTING_SECONDS` no longer holds up the others.
    """
    starting = sum(
        user not in ready and (now - at).total_seconds() < STARTING_SECONDS for user, at in begun.items()
    )
    return [user for user in users if user not in begun][: max(0, at_once - starting)]


def _local_begins(session: LabSession, begin: datetime, until: datetime) -> list[datetime]:
    if not session.rule:
        return [begin]
    rule = rrulestr(session.rule, dtstart=begin)
    return list(rule.between(begin, max(begin, until), inc=True))


def _rule_meets_on(session: LabSession, day: date) -> bool:
    begin = datetime.combine(session.first, session.begins)
    following = _local_begins(session, begin, datetime.combine(day, time.max))
    return any(each.date() == day for each in following)


def _no_meeting_sentence(session: LabSession, day: date) -> str:
    """For example "cs231n doesn't meet on 2026-12-01: it meets on 2026-11-30 and 2026-12-07."."""
    start = f"{session.name} doesn't meet on {day}"
    for change in session.changes:
        if change.begins.date() == day and change.on != day:
            return f"{start} by its rule; that is its meeting of {change.on}: name {change.on}."
    by_rule = replace(session, changes=())
    noon = datetime.combine(day, time(12), UTC)
    around = [each.on for each in meetings(by_rule, Window(noon - HORIZON, noon + HORIZON))]
    near = [on for on in around if on < day][-1:] + [on for on in around if on > day][:1]
    if not near:
        first = datetime.combine(session.first, time(), UTC) - timedelta(days=1)
        near = [each.on for each in meetings(by_rule, Window(first, first + HORIZON))][:1]
    if not near:
        return f"{start}, and it has no other date."
    dates = " and ".join(map(str, near))
    return f"{start}: the nearest {'dates are' if len(near) > 1 else 'date is'} {dates}."


def _meeting(name: str, on: date, local: datetime, seconds: float) -> Meeting:
    start = local.astimezone(UTC)
    return Meeting(start, start + timedelta(seconds=seconds), name, on)


def _worst(
    meeting: Meeting,
    booked: Iterable[Meeting],
    by_name: Mapping[str, LabSession],
    session: LabSession,
    fits: Fits,
) -> tuple[int, tuple[str, ...]] | None:
    """How many seats fit at the meeting's fullest moment, and the sessions beside it; None if all fit."""
    beside = [each for each in booked if each.start < meeting.end and each.end > meeting.start]
    worst: tuple[int, tuple[str, ...]] | None = None
    for moment in {max(meeting.start, each.start) for each in [meeting, *beside]}:
        there = [by_name[each.session] for each in beside if each.start <= moment < each.end]
        demand: dict[str, int] = {}
        for other in there:
            demand[other.tier] = demand.get(other.tier, 0) + other.seats
        most = _most(session, demand, fits)
        if most < session.seats and (worst is None or most < worst[0]):
            in_the_way = _most(session, {}, fits) > most
            worst = (most, tuple(sorted(other.name for other in there)) if in_the_way else ())
    return worst


def _most(session: LabSession, demand: Mapping[str, int], fits: Fits) -> int:
    """The most seats, up to the session's, that fit beside the demand."""
    low, high = 0, session.seats
    while low < high:
        middle = (low + high + 1) // 2
        wanted = {**demand, session.tier: demand.get(session.tier, 0) + middle}
        low, high = (middle, high) if fits(wanted) else (low, middle - 1)
    return low


def _unfit_sentence(
    session: LabSession,
    title: str,
    clashes: Sequence[tuple[Meeting, int, tuple[str, ...]]],
    total: int,
    now: datetime,
) -> str:
    most = min(seats for _, seats, _ in clashes)
    meeting, _, names = next(each for each in clashes if each[1] == most)
    when = format_local(meeting.start, session.timezone, now)
    beside = f" beside {' and '.join(map(repr, names))}" if names else ""
    what = f"{session.seats} {'place' if session.seats == 1 else 'places'} of the tier {title!r}"
    dates = f" ({len(clashes)} of its {total} dates)" if total > 1 else ""
    fits = "none fits" if most == 0 else f"{most} {'fits' if most == 1 else 'fit'}"
    advice = "choose another time or tier" if most == 0 else f"ask for {most}, or choose another time or tier"
    return f"The session {session.name!r} needs {what} on {when}{dates}, and{beside} {fits}: {advice}."


def _span(reservation: Reservation, now: datetime) -> str:
    local = [
        each.astimezone(ZoneInfo(reservation.timezone))
        for each in (reservation.meeting.start, reservation.meeting.end)
    ]
    return f"from {local[0]:%H:%M} to {local[1]:%H:%M} ({reservation.timezone})"
