"""Ends servers after both warnings: session limit, GPU-hours, a changed quota, a lab session, an idle GPU.

One round checks everything; pure code says what is due (`decide/when/deadline.py`, `decide/when/idle.py`).
The ledger keeps which warnings of an end were given, so that a restart of the broker moves no end: the next
broker goes on from there. A warning is recorded after it was given; one that a killed broker had not recorded
is given again. Warnings of an idle GPU are only in memory: what an earlier broker said of it is void, and the
first round removes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

from ...config.idle import IdleRules
from ...core.errors import GpuSpawnerError, LedgerFault, Refusal
from ...core.model import Lease, Mode
from ...core.paced import paced
from ...core.quota import Allowance
from ...core.session import EndAction
from ...core.states import WITH_CONTAINER
from ...core.units import Clock, utc_now
from ..decide.when.deadline import (
    WARNINGS_SECONDS,
    Cause,
    Deadline,
    Told,
    due,
    earliest,
    ended,
    ends_at,
    session_deadline,
    warns_of_end,
)
from ..decide.when.gpu_use import GpuUse
from ..decide.when.idle import Activity, Look, Step, Warned, idle_since, judge, warns_of_idleness
from ..decide.when.sessions import Occupant, Reservation, make_room
from ..ledger.end_warnings import EndWarning
from .allocator import Allocator
from .budget_ends import BudgetEnds
from .gate import Cap, QuotaGate
from .quota_ends import QuotaEnds
from .rulebook import Rulebook

ROUND_SECONDS = 20.0
"""The interval of the rounds."""
GATHER_SECONDS = 3.0
"""After a change (a rule, an extension, a server that started) the next round comes that soon: pages show the
end of a server as of the last round."""
UNKNOWN_AFTER_SECONDS = 300.0
"""The hub's report on a server's kernels is valid for this long; then nothing is known about them."""
_AT_ONCE = 20
"""So many servers are looked at before the loop may do something else."""
_LAB_LOOKAHEAD = timedelta(seconds=WARNINGS_SECONDS[0] + 2 * ROUND_SECONDS)

GpuUses = Callable[[Lease], GpuUse]
"""When a lease last used its GPUs, as the node tells it."""


Sleep = Callable[[Lease, str], Awaitable[bool]]
"""Puts a lease to sleep for good, with the reason, until its user wakes it; False where its mode can't."""


async def cannot_sleep(lease: Lease, reason: str) -> bool:
    """No mode can: the server is stopped."""
    return False


class Ender(Protocol):
    """Tells the user of a lease, and ends it: the LeaseService."""

    async def tell(self, lease_id: str, sentence: str) -> None:
        """Gives the lease's user a notice; does nothing if the lease has ended."""
        ...

    async def release(self, lease_id: str, reason: str) -> bool:
        """Ends the lease; True once it is closed."""
        ...


@dataclass(frozen=True, slots=True)
class Kernels:
    """The hub's report on a server's kernels, and its time."""

    busy: bool
    active_at: datetime | None
    told_at: datetime


@dataclass(slots=True)
class Followed:
    """What is remembered of one running lease."""

    began_at: datetime
    used_at: datetime
    seen_from: datetime
    told: Told = field(default_factory=Told)
    warned: Warned = field(default_factory=Warned)
    capped: bool = False
    """Whether its user was told that it ends for a lab session."""
    of_end: str = ""
    """The notice that it ends; notices of other modules are not changed."""
    of_idleness: str = ""
    """The notice that it is idle."""
    slept: bool = False
    """Whether its user was told that it was put to sleep."""
    left_over: str = ""
    """The notice that an earlier broker gave for either, and that counts no more."""
    recorded: tuple[int, datetime | None] = (0, None)
    """What the ledger has of `told`: how many warnings, and when the last was given."""


class WarningLedger(Protocol):
    """Keeps which warnings of an end were given: the Ledger. Both raise LedgerFault."""

    async def end_warnings(self) -> tuple[EndWarning, ...]:
        """Those of all running leases."""
        ...

    async def note_end_warnings(self, *given: EndWarning, withdrawn: Iterable[str] = ()) -> None:
        """Records warnings, and leases of which none counts any more."""
        ...


@dataclass(frozen=True, slots=True)
class EndingParts:
    """What the rounds use. Messages give times in `timezone`."""

    rulebook: Rulebook
    gate: QuotaGate
    allocator: Allocator
    service: Ender
    ledger: WarningLedger
    gpu_use: GpuUses
    idle: IdleRules
    timezone: str = "UTC"
    clock: Clock = utc_now
    sleep: Sleep = cannot_sleep
    can_sleep: Callable[[Lease], bool] = lambda lease: False
    """Whether its mode can put a lease to sleep; where it can't, warnings say that the server is stopped."""


class Endings:
    """Warns and ends; to be used from one event loop."""

    def __init__(self, parts: EndingParts, log: logging.Logger) -> None:
        self._parts = parts
        self._budget_ends = BudgetEnds(
            parts.rulebook, parts.gate, parts.allocator, parts.service, parts.can_sleep
        )
        self._quota_ends = QuotaEnds(parts.rulebook, parts.allocator)
        self._log = log
        self._followed: dict[str, Followed] = {}
        self._kernels: dict[str, Kernels] = {}
        self._restored = False
        self._changed = asyncio.Event()
        parts.rulebook.on_change.append(self.look_soon)
        parts.allocator.waits.told_end = self.told_end

    def look_soon(self) -> None:
        """Something changed that may move an end."""
        self._changed.set()

    async def run(self) -> None:
        """Rounds until cancelled; a fault is logged, and the next round tries again."""
        while True:
            await self._pause()
            try:
                await self.round()
            except GpuSpawnerError as error:
                self._log.warning("Sessions can't be checked now, retrying: %s", error)
            except Exception:  # the top of this loop
                self._log.exception("Checking the sessions failed; the next round tries again")

    async def _pause(self) -> None:
        await asyncio.sleep(GATHER_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(ROUND_SECONDS - GATHER_SECONDS):
                await self._changed.wait()
        self._changed.clear()

    def note_kernels(self, lease_id: str, busy: bool, active_at: datetime | None) -> None:
        """Store the hub's report on a server's kernels; what those did that are gone stays known."""
        before, now = self._kernels.get(lease_id), self._parts.clock()
        known = [active_at, None if before is None else before.active_at, now if busy else None]
        last = max((at for at in known if at is not None), default=None)
        self._kernels[lease_id] = Kernels(busy, last, now)

    def deadline_of(self, lease_id: str) -> Deadline | None:
        """When the lease really ends, as its user was told, as of the last round; None if nothing ends it."""
        followed = self._followed.get(lease_id)
        if followed is None or followed.told.deadline is None:
            return None
        return replace(followed.told.deadline, at=ends_at(followed.told.deadline, followed.told))

    def told_end(self, lease_id: str) -> datetime | None:
        """When the lease gives its GPU back, if its user was warned; None: not warned, or it only sleeps."""
        deadline = self.deadline_of(lease_id)
        if deadline is None or deadline.action is not EndAction.STOP:
            return None
        return deadline.at if self._followed[lease_id].told.warnings else None

    def idle_since(self, lease: Lease) -> datetime | None:
        """Since when nobody uses the server; None if somebody does, or if it isn't known."""
        if lease.state not in WITH_CONTAINER:
            return None
        return idle_since(self._activity(lease, self._parts.clock()))

    async def round(self) -> None:
        """Check everything once. Raises LedgerFault if the ledger can't be read or written."""
        self._parts.gate.kept.renew(self._parts.clock())
        await self._parts.allocator.recheck()
        running = [lease for lease in self._parts.allocator.leases() if lease.state in WITH_CONTAINER]
        self._forget_all_but({lease.id for lease in running})
        await self._restore(running)
        now = self._parts.clock()
        budget_ends = await self._budget_ends.look(running, now)
        quota_ends = self._quota_ends.look(self._kept_until)
        own = {
            lease.id: earliest(
                [
                    self._session_end(lease, self._allowance(lease)),
                    budget_ends.get(lease.id),
                    quota_ends.get(lease.id),
                    self._cap_end(lease),
                ]
            )
            async for lease in paced(running, _AT_ONCE)
        }
        lab_ends = self._lab_ends(running, own, now)
        async for lease in paced(running, _AT_ONCE):
            await self._tell_of_cap(lease)
            await self._warn_or_end(lease, earliest([own[lease.id], lab_ends.get(lease.id)]), now)
            await self._look_at_idleness(lease, now)
            await self._remove_left_over(lease)

    # ---- when a server ends

    def _allowance(self, lease: Lease) -> Allowance | None:
        """None if its groups can't be read: a running server isn't ended because of that."""
        try:
            return self._parts.rulebook.allowance(lease.user, lease.groups)
        except Refusal:
            return None

    def _session_end(self, lease: Lease, allowed: Allowance | None) -> Deadline | None:
        if allowed is None:
            return None
        extended = self._parts.rulebook.rules.extended_seconds.get(lease.id, 0.0)
        return session_deadline(self._follow(lease).began_at, allowed.session_seconds, extended)

    def _cap_end(self, lease: Lease) -> Deadline | None:
        cap = self._cap(lease)
        return None if cap is None else Deadline(cap.ends_at, Cause.LAB_SESSION)

    def _cap(self, lease: Lease) -> Cap | None:
        """When it has to end for a lab session; None if none needs its place, or if it began after that."""
        cap = self._parts.gate.cap_of(lease.id)
        return None if cap is None or cap.ends_at <= self._follow(lease).began_at else cap

    def _lab_ends(
        self, running: Iterable[Lease], own: Mapping[str, Deadline | None], now: datetime
    ) -> dict[str, Deadline]:
        """Which servers have to end for a lab session, and when."""
        sessions = self._parts.rulebook.rules.sessions
        ends: dict[str, Deadline] = {}
        for kept in self._parts.gate.kept.near(now, _LAB_LOOKAHEAD):
            session = sessions[kept.meeting.session]
            starts_soon = kept.meeting.start - now <= _LAB_LOOKAHEAD and now < kept.release_at
            if not starts_soon or session.move_out is EndAction.NOTHING:
                continue
            for lease_id in self._in_the_way(kept, running, own):
                ends.setdefault(lease_id, Deadline(kept.meeting.start, Cause.LAB_SESSION, session.move_out))
        return ends

    def _in_the_way(
        self, kept: Reservation, running: Iterable[Lease], own: Mapping[str, Deadline | None]
    ) -> tuple[str, ...]:
        """Which leases have to end so that the session's places are free when it begins."""
        want = next(tier.want for tier in self._parts.rulebook.known.tiers if tier.name == kept.tier)
        members = [lease for lease in running if kept.group in lease.groups]
        taken = sum(lease.tier == kept.tier for lease in members)
        missing = max(0, kept.seats - taken)
        others = [lease for lease in running if lease not in members]
        gone = frozenset(
            lease.id
            for lease in others
            if (end := own[lease.id]) is not None and end.at <= kept.meeting.start
        )
        needed_at = max(kept.meeting.start, self._parts.clock())
        occupants = [
            Occupant(lease.id, self._follow(lease).began_at)
            for lease in others
            if lease.id not in gone and self._kept_until(lease) <= needed_at
        ]
        return make_room(
            occupants,
            lambda leaving: self._parts.allocator.places(want, missing, gone | leaving) >= missing,
        )

    def _kept_until(self, lease: Lease) -> datetime:
        """Until when its quota lets the lease keep its GPU, whoever else needs it."""
        allowed = self._allowance(lease)
        minimum = 0.0 if allowed is None else allowed.minimum_seconds
        return self._follow(lease).began_at + timedelta(seconds=minimum)

    # ---- warning and ending

    async def _tell_of_cap(self, lease: Lease) -> None:
        """Tell the user of a new server, once, that it has to end for a lab session."""
        cap, followed = self._cap(lease), self._follow(lease)
        if cap is not None and not followed.capped:
            await self._parts.service.tell(lease.id, cap.sentence)
            followed.capped, followed.of_end = True, cap.sentence

    async def _warn_or_end(self, lease: Lease, deadline: Deadline | None, now: datetime) -> None:
        """What was told is remembered last: if telling fails, the next round does it."""
        followed = self._follow(lease)
        notice = due(deadline, followed.told, now, self._parts.timezone)
        if notice.withdrawn:
            await self._take_back(lease, followed.of_end, followed.of_idleness)
            followed.of_end = ""
        if notice.ends:
            assert deadline is not None
            await self._end_for(lease, deadline, notice.sentence, now)
        elif notice.sentence:
            await self._parts.service.tell(lease.id, notice.sentence)
            followed.of_end = notice.sentence
        before = self.told_end(lease.id)
        followed.told = notice.told
        if self.told_end(lease.id) != before:
            self._parts.allocator.waits.look_soon()
        await self._record(lease.id, followed)

    async def _record(self, lease_id: str, followed: Followed) -> None:
        """Record the warnings in the ledger if they changed; what fails is tried again by the next round."""
        told = followed.told
        if (told.warnings, told.last_at) == followed.recorded:
            return
        if told.warnings and told.last_at is not None:
            given = EndWarning(lease_id, told.warnings, told.last_at, followed.of_end)
            await self._parts.ledger.note_end_warnings(given)
        elif followed.recorded[0]:
            await self._parts.ledger.note_end_warnings(withdrawn=[lease_id])
        followed.recorded = (told.warnings, told.last_at)

    async def _restore(self, running: Iterable[Lease]) -> None:
        """Once: what an earlier broker told of servers' ends is told."""
        if self._restored:
            return
        leases = {lease.id: lease for lease in running}
        for each in await self._parts.ledger.end_warnings():
            if each.lease_id not in leases:
                continue
            followed = self._follow(leases[each.lease_id])
            followed.told = Told(None, each.warnings, each.last_at)
            followed.recorded = (each.warnings, each.last_at)
            followed.of_end = each.sentence
            if followed.left_over == each.sentence:
                followed.left_over = ""
        self._restored = True

    async def _look_at_idleness(self, lease: Lease, now: datetime) -> None:
        followed = self._follow(lease)
        look = Look(now, self._parts.allocator.competing(lease.want) > 0, self._parts.timezone)
        rules = self._parts.idle
        if rules.action is EndAction.SLEEP and not self._parts.can_sleep(lease):
            rules = replace(rules, action=EndAction.STOP)
        verdict = judge(rules, self._activity(lease, now), followed.warned, look)
        match verdict.step:
            case Step.BACK:
                await self._take_back(lease, followed.of_idleness, followed.of_end)
                followed.warned, followed.of_idleness, followed.slept = Warned(), "", False
            case Step.FIRST_WARNING | Step.SECOND_WARNING:
                await self._parts.service.tell(lease.id, verdict.sentence)
                followed.of_idleness = verdict.sentence
                first = verdict.step is Step.FIRST_WARNING
                followed.warned = Warned(now) if first else replace(followed.warned, second_at=now)
            case Step.ACT:
                slept = await self._end(lease, rules.action, f"idle: {verdict.sentence}")
                if slept and not followed.slept:
                    await self._parts.service.tell(lease.id, verdict.sentence)
                    followed.of_idleness, followed.slept = verdict.sentence, True

    async def _remove_left_over(self, lease: Lease) -> None:
        """Remove an earlier broker's warning: its user has to be warned again, and it names a wrong time."""
        followed = self._follow(lease)
        if followed.left_over:
            await self._take_back(lease, followed.left_over, followed.of_idleness or followed.of_end)
            followed.left_over = ""

    async def _take_back(self, lease: Lease, sentence: str, still: str) -> None:
        """Remove a warning that no longer applies, for one that still does; another notice stays."""
        present = self._parts.allocator.lease(lease.id)
        if sentence and present is not None and present.notice == sentence:
            await self._parts.service.tell(lease.id, still or present.kept_asleep)

    def _activity(self, lease: Lease, now: datetime) -> Activity:
        """The use of the lease's devices and of its kernels, as far as it is known.

        Before this broker's first look, the devices may have been used.
        """
        followed, use = self._follow(lease), self._parts.gpu_use(lease)
        if use.used_at is not None:
            followed.used_at = max(followed.used_at, use.used_at)
        used_at = followed.used_at if use.measured else None
        told, kept_until = self._kernels.get(lease.id), self._kept_until(lease)
        if told is None or (now - told.told_at).total_seconds() > UNKNOWN_AFTER_SECONDS:
            return Activity(used_at, None, kept_until=kept_until, seen_from=followed.seen_from)
        return Activity(used_at, told.busy, told.active_at, kept_until, followed.seen_from)

    def _follow(self, lease: Lease) -> Followed:
        if lease.id not in self._followed:
            ours = warns_of_end(lease.notice) or warns_of_idleness(lease.notice)
            # In turns a lease changes its state often: after a restart its session counts from the request.
            began_at = lease.created_at if lease.mode is Mode.TURNS else lease.since
            now = self._parts.clock()
            self._followed[lease.id] = Followed(began_at, now, now, left_over=lease.notice if ours else "")
        return self._followed[lease.id]

    def _forget_all_but(self, lease_ids: set[str]) -> None:
        for known in (self._followed, self._kernels):
            for lease_id in [each for each in known if each not in lease_ids]:
                del known[lease_id]

    async def _end_for(self, lease: Lease, deadline: Deadline, sentence: str, now: datetime) -> None:
        if deadline.cause is Cause.GPU_HOURS and deadline.action is EndAction.SLEEP:
            if await self._budget_ends.put_to_sleep(lease, now):
                await self._parts.sleep(lease, f"{deadline.cause}: {sentence}")
                return
            deadline = replace(deadline, action=EndAction.STOP)
            sentence = ended(deadline)
        await self._end(lease, deadline.action, f"{deadline.cause}: {sentence}")

    async def _end(self, lease: Lease, action: EndAction, reason: str) -> bool:
        """Put it to sleep if that is wanted and can be done, else stop it. Returns whether it sleeps."""
        try:
            if action is EndAction.SLEEP and await self._parts.sleep(lease, reason):
                return True
            await self._parts.service.release(lease.id, reason)
        except LedgerFault:
            raise
        except GpuSpawnerError as error:  # the lease has ended in the ledger; a later round does the rest
            self._log.warning("A server that has to end still runs, retrying: %s lease=%s", error, lease.id)
        return False
