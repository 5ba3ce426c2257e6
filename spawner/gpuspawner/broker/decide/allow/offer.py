"""What one tier offers one user now: allowed or not, free places, and how long a server would last. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from ....core.errors import Refusal
from ....core.quota import UNLIMITED, Allowance
from ..line.estimate import Estimate
from ..snapshot import Capacity
from ..when.deadline import Cause, Deadline, earliest
from ..when.sessions import Reservation
from .period import format_local


@dataclass(frozen=True, slots=True)
class Kept:
    """`places` that nobody has taken yet, kept for the group of a lab session."""

    reservation: Reservation
    places: int


@dataclass(frozen=True, slots=True)
class Offer:
    """What a tier offers a user now.

    `refusals` are all that a start would meet; the first is shown. `capacity` is None for a tier without a
    GPU; `free` counts places that are not kept for others. `end` is when a server that starts now ends.
    """

    tier: str
    refusals: tuple[Refusal, ...] = ()
    capacity: Capacity | None = None
    free: int | None = None
    starts_now: bool = True
    wait: Estimate | None = None
    kept: tuple[Kept, ...] = ()
    own_session: Kept | None = None
    session_seconds: float = UNLIMITED
    end: Deadline | None = None
    gpu_hours_an_hour: float | None = None

    @property
    def allowed_at(self) -> datetime | None:
        """When all refusals are over by themselves; None if one never is, or if there is none."""
        times = [each.again_at for each in self.refusals]
        known = [each for each in times if each is not None]
        return max(known) if known and len(known) == len(times) else None


def end_of_start(
    now: datetime, allowed: Allowance, hours_end: datetime | None, lab_end: datetime | None
) -> Deadline | None:
    """When a server that starts now ends: at the earliest of the user's limits; None if nothing ends it."""
    limit = None if allowed.session_seconds == UNLIMITED else timedelta(seconds=allowed.session_seconds)
    return earliest(
        [
            None if limit is None else Deadline(now + limit, Cause.SESSION_LIMIT),
            None if hours_end is None else Deadline(hours_end, Cause.GPU_HOURS),
            None if lab_end is None else Deadline(lab_end, Cause.LAB_SESSION),
        ]
    )


_ENDS = {
    Cause.SESSION_LIMIT: "That is the longest session that your quota allows",
    Cause.GPU_HOURS: "Your GPU-hours are used up then",
    Cause.LAB_SESSION: "A lab session needs the GPU then",
}


def end_sentence(end: Deadline, timezone: str, now: datetime) -> str:
    """For example: "A server that starts now ends on Monday 12:00 (Europe/Berlin). A lab session …"."""
    return f"A server that starts now ends on {format_local(end.at, timezone, now)}. {_ENDS[end.cause]}."


def kept_sentence(kept: Kept, now: datetime) -> str:
    """For example: "24 places are kept for the lab session 'cs231n' until 12:00 (Europe/Berlin)."."""
    held, zone = kept.reservation, ZoneInfo(kept.reservation.timezone)
    begins, ends, unused = (
        f"{each.astimezone(zone):%H:%M}" for each in (held.meeting.start, held.meeting.end, held.release_at)
    )
    are = "place is" if kept.places == 1 else "places are"
    times = f"until {ends}" if held.meeting.start <= now else f"from {begins} to {ends}"
    return (
        f"{kept.places} {are} kept for the lab session {held.meeting.session!r} {times} ({held.timezone}), "
        f"free then; what the class doesn't use is free from {unused}."
    )


def own_sentence(kept: Kept, now: datetime) -> str:
    """For members of the class: "Your lab session 'cs231n' has 24 places here until 12:00 (UTC)."."""
    held, zone = kept.reservation, ZoneInfo(kept.reservation.timezone)
    begins, ends = (f"{each.astimezone(zone):%H:%M}" for each in (held.meeting.start, held.meeting.end))
    times = f"until {ends}" if held.meeting.start <= now else f"from {begins} to {ends}"
    count = f"{kept.places} place{'' if kept.places == 1 else 's'}"
    return f"Your lab session {held.meeting.session!r} has {count} here {times} ({held.timezone})."
