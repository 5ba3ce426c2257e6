"""The operations on the rules for admins, instructors and users: change, show, report, extend.

The caller checks the rights: the unix socket is for the admin, the pages check scopes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from ...config.quotas import check_group, limits_to_json, subject_from_text
from ...config.sessions import session_from_json, session_to_json
from ...core.decision import Decision, DecisionKind, drain_of
from ...core.errors import BadOption, ConfigError, LeaseConflict, NotAllowed, Refusal
from ...core.model import Lease, LeaseState
from ...core.quota import UNLIMITED, Allowance, Quota, Subject, SubjectKind, Window
from ...core.session import LabSession, Meeting
from ...core.units import Clock, utc_now
from ..decide.allow.budget import Spent
from ..decide.allow.period import format_local
from ..decide.allow.quota import Ask, Holding, holding_of, refusals
from ..decide.allow.report import By, Report, make_report
from ..decide.allow.rules import Rules
from ..decide.when.calendar import Defaults, from_ical, to_ical
from ..decide.when.deadline import extension_seconds
from ..decide.when.sessions import TierWords, check_dates, check_session, meetings, without_room
from ..decide.when.timetable import checked_rule
from ..ledger import Ledger
from .allocator import Allocator
from .audit import Audit
from .calendar_feeds import CalendarFeeds
from .gate import QuotaGate
from .quota_ends import QuotaEnds
from .rulebook import Rulebook

UPCOMING = timedelta(days=60)
"""The next meetings of a session are shown for this time ahead."""
_SHOWN_MEETINGS = 5

_LOOKS_AHEAD = timedelta(days=7)
"""So far ahead a drained GPU is held against the lab sessions."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a user may have and has.

    `refused` has by tier all refusals that would apply now, the most permanent first; tiers that are allowed
    are not in it.
    """

    allowed: Allowance
    holdings: tuple[Holding, ...]
    spent: tuple[Spent, ...]
    refused: Mapping[str, tuple[Refusal, ...]]


@dataclass(frozen=True, slots=True)
class QuotaView:
    """One subject's limits in the form of the settings: in force, configured, and changed at run time."""

    subject: Subject
    limits: Mapping[str, Any]
    settings: Mapping[str, Any]
    changed: Mapping[str, Any]


class RuleService:
    """The rulebook's changes and answers. All methods on one event loop."""

    def __init__(
        self,
        rulebook: Rulebook,
        gate: QuotaGate,
        allocator: Allocator,
        ledger: Ledger,
        clock: Clock = utc_now,
    ) -> None:
        self.rulebook = rulebook
        self._gate = gate
        self._allocator = allocator
        self._quota_ends = QuotaEnds(rulebook, allocator)
        self._ledger = ledger
        self._clock = clock
        self.audit = Audit(ledger, clock=clock)
        """Makes and records each change that somebody asks for."""
        self.machines: Callable[[], Collection[str]] = frozenset
        """The names of the machines, also of those whose GPUs aren't known yet."""
        self.feeds = CalendarFeeds()
        """Addresses for calendar programs; the broker sets those that outlive it."""

    # ---- quotas

    def quotas(self) -> list[QuotaView]:
        """Every quota there is, by subject."""
        of_file = {
            subject: limits_to_json(quota.limits) for subject, quota in self.rulebook.base.quotas.items()
        }
        changed = self.rulebook.rules.changed
        quotas: dict[Subject, Quota] = {quota.subject: quota for quota in self.rulebook.rules.quotas}
        return [
            QuotaView(
                subject,
                limits_to_json(quota.limits),
                of_file.get(subject, {}),
                dict(changed.get(subject, {})),
            )
            for subject, quota in quotas.items()
        ]

    async def change_quota(
        self,
        subject: str,
        values: Mapping[str, Any],
        author: str,
        reason: str,
        *,
        end_servers: bool = False,
    ) -> tuple[Lease, ...]:
        """Change keys of a subject's quota; None removes a change. It applies at once.

        A lease that holds a GPU keeps it. With `end_servers`, the subject's leases that are over the new
        quota end after warnings, unless they are allowed again before; they are returned. The change and
        these ends are one commit. A waiting lease that is no longer allowed leaves the queue. Raises
        BadOption for invalid values, LedgerFault.
        """
        change = self._quota_change(subject, values, author, reason)
        ending: dict[str, Lease] = {}

        def ends(rules: Rules) -> list[Decision]:
            found = self._beyond(change, rules) if end_servers else ()
            ending.update((lease.id, lease) for lease in found)
            return [
                replace(change, kind=DecisionKind.END, subject=lease.id, document={"quota": change.subject})
                for lease in found
                if lease.id not in rules.to_end
            ]

        await self.rulebook.decide(change, following=ends)
        await self._allocator.recheck()
        late = ends(self.rulebook.rules)
        if late:  # they got their GPU while the change was being recorded
            await self.rulebook.decide(*late)
        return tuple(ending.values())

    def would_end(self, subject: str, values: Mapping[str, Any]) -> tuple[Lease, ...]:
        """Who would end by `change_quota` with `end_servers`. Raises BadOption for invalid values."""
        change = self._quota_change(subject, values, "", "")
        return self._beyond(change, self.rulebook.preview(change))

    def _quota_change(self, subject: str, values: Mapping[str, Any], author: str, reason: str) -> Decision:
        whom = _subject(subject)
        if not values:
            raise BadOption("Nothing was changed: give a key and a value, like devices=2.")
        return self.rulebook.decision(DecisionKind.QUOTA, str(whom), dict(values), author, reason)

    def _beyond(self, change: Decision, rules: Rules) -> tuple[Lease, ...]:
        whom = _subject(change.subject)
        return tuple(self._quota_ends.beyond(whom, self.rulebook.allowances(rules)))

    async def remove_quota(self, subject: str, author: str, reason: str) -> None:
        """Remove all run-time changes of a subject. Raises BadOption if there are none, LedgerFault."""
        changed = self.rulebook.rules.changed.get(_subject(subject))
        if not changed:
            raise BadOption(
                f"Nothing was changed for {subject} at run time. What stands in c.GpuSite.quotas is changed "
                "there, or lifted here with a value of 'unlimited'."
            )
        await self.change_quota(subject, dict.fromkeys(changed), author, reason)

    async def grant(self, subject: str, gpu_hours: float, author: str, reason: str) -> None:
        """Give GPU-hours in the present period, or take some. Raises BadOption, LedgerFault."""
        if not gpu_hours:
            raise BadOption("A grant of 0 GPU-hours changes nothing: give a number, like 5.")
        document = {"gpu_seconds": gpu_hours * 3600}
        await self._decide(DecisionKind.GRANT, str(_subject(subject)), document, author, reason)
        await self._allocator.recheck()

    async def standing(
        self, hub: str, user: str, groups: Iterable[str], server: str | None = None
    ) -> Standing:
        """What a user may have and has. Raises QuotaUnreadable, LedgerFault.

        The leases of `server`, which is about to start, don't count: they end first.
        """
        members = tuple(groups)
        allowed = self.rulebook.allowance(user, members)
        spent = await self._gate.spent(hub, user, members, allowed)
        holdings = tuple(
            holding_of(lease)
            for lease in self._allocator.leases()
            if (lease.hub, lease.user) == (hub, user) and lease.server != server
        )
        refused = {}
        for tier in self.rulebook.known.tiers:
            found = refusals(allowed, Ask(tier.name, tier.want), holdings, spent, self._clock())
            if found:
                refused[tier.name] = tuple(found)
        return Standing(allowed, holdings, tuple(spent), refused)

    # ---- devices and messages

    async def drain(self, uuid: str, author: str, reason: str) -> str:
        """Place nothing new on a device, until `undrain`, also over restarts; what runs there goes on.

        Returns which lab sessions lack places then, as a sentence; "" if none does. Raises BadOption for a
        device that isn't known, LedgerFault.
        """
        known = {view.device.uuid for view in self._allocator.snapshot().devices}
        if uuid not in known:
            raise BadOption(f"There is no GPU {uuid!r} here: see `gpuspawner status` for the UUIDs.")
        return await self._drain(uuid, author, reason)

    async def drain_machine(self, name: str, author: str, reason: str) -> str:
        """The same for all GPUs of a machine, also for those that it has later.

        Raises BadOption for a machine that isn't known, LedgerFault.
        """
        if name not in self.machines():
            raise BadOption(f"There is no machine {name!r} here: see `gpuspawner node list`.")
        return await self._drain(drain_of(name), author, reason)

    async def _drain(self, subject: str, author: str, reason: str) -> str:
        await self._decide(DecisionKind.DRAIN, subject, {}, author, reason)
        await self._allocator.set_drained(self.rulebook.rules.drained)
        return self.drain_warning()

    def drain_warning(self) -> str:
        """Which lab sessions of the next days don't fit on the GPUs in service; "" if nothing is drained."""
        if not self.rulebook.rules.drained:
            return ""
        now = self._clock()
        short = without_room(self.rulebook.rules.sessions.values(), self._fits, now, _LOOKS_AHEAD)
        if not short:
            return ""
        named = "; ".join(
            f"{each.meeting.session} ({each.seats} places, "
            f"{format_local(each.meeting.start, each.timezone, now)})"
            for each in short
        )
        return (
            f"Lab sessions that don't fit on the GPUs in service: {named}. Give the GPU back before "
            "they begin, or change the session."
        )

    async def undrain(self, uuid: str, author: str, reason: str) -> None:
        """Place servers on the device again. Raises BadOption if it isn't drained, or only with its machine;
        LedgerFault.
        """
        drained = self.rulebook.rules.drained
        machine = self._allocator.node_with(uuid)
        if uuid not in drained and drain_of(machine) in drained:
            raise BadOption(
                f"The GPU {uuid!r} is drained with its machine: run `gpuspawner node undrain {machine}`."
            )
        if uuid not in drained:
            raise BadOption(f"The GPU {uuid!r} is not drained.")
        await self._undrain(uuid, author, reason)

    async def undrain_machine(self, name: str, author: str, reason: str) -> None:
        """Place servers on the machine's GPUs again, but for those that are drained by themselves.

        Raises BadOption if it isn't drained, LedgerFault.
        """
        if drain_of(name) not in self.rulebook.rules.drained:
            raise BadOption(f"The machine {name!r} is not drained.")
        await self._undrain(drain_of(name), author, reason)

    async def _undrain(self, subject: str, author: str, reason: str) -> None:
        await self._decide(DecisionKind.DRAIN, subject, None, author, reason)
        await self._allocator.set_drained(self.rulebook.rules.drained)

    async def announce(self, subject: str, text: str, until: datetime, author: str) -> None:
        """Show a message to a class ("group:NAME") or to everybody; it replaces the one before.

        Raises BadOption for a subject that can't be used, LedgerFault.
        """
        document = {"text": text, "until": until.isoformat()}
        await self._decide(DecisionKind.MESSAGE, str(_audience(subject)), document, author, "a message")

    async def withdraw(self, subject: str, author: str) -> None:
        """Take back the message to a class or everybody. Raises BadOption if there is none, LedgerFault."""
        whom = _audience(subject)
        if whom not in self.rulebook.rules.messages:
            raise BadOption(f"There is no message to {whom}.")
        await self._decide(DecisionKind.MESSAGE, str(whom), None, author, "taken back")

    # ---- use

    async def report(
        self, by: By, window: Window, timezone: str, groups: Collection[str] | None = None
    ) -> Report:
        """The use in the window; with `groups` only that of their members. Raises LedgerFault."""
        charged = await self._ledger.charged(window.start)
        if groups is not None:
            charged = tuple(
                replace(each, groups=tuple(group for group in each.groups if group in groups))
                for each in charged
                if not set(groups).isdisjoint(each.groups)
            )
        return make_report(charged, by, window, timezone)

    def lease(self, lease_id: str) -> Lease:
        """The running lease with this id. Raises LeaseConflict if there is none."""
        lease = self._allocator.lease(lease_id)
        if lease is None or lease.state not in (LeaseState.RUNNING, LeaseState.ASLEEP):
            raise LeaseConflict("This server isn't running: start it again.")
        return lease

    def extension_left_seconds(self, lease_id: str) -> float:
        """By how much the session may still be extended; 0 if nothing ends it or somebody waits.

        Raises LeaseConflict if it isn't running, QuotaUnreadable.
        """
        lease = self.lease(lease_id)
        allowed = self.rulebook.allowance(lease.user, lease.groups)
        if allowed.session_seconds == UNLIMITED or self._allocator.competing(lease.want):
            return 0.0
        done = self.rulebook.rules.extended_seconds.get(lease_id, 0.0)
        return max(0.0, extension_seconds(allowed.extend_seconds, done, math.inf))

    def why_not_extended(self, lease_id: str) -> str:
        """Why the session can't be extended now by a minute or more, for its user; "" if it can.

        Also "" where the quota has no longest session. Raises LeaseConflict if it isn't running,
        QuotaUnreadable.
        """
        lease = self.lease(lease_id)
        allowed = self.rulebook.allowance(lease.user, lease.groups)
        if allowed.session_seconds == UNLIMITED:
            return ""
        if waiting := self._allocator.competing(lease.want):
            return f"You can't extend it now: {_others_wait(waiting)} for such a GPU."
        if allowed.extend_seconds < 60:
            return "Your quota doesn't let you extend it."
        if self.extension_left_seconds(lease_id) < 60:
            return f"You can't extend it further: your quota allows {_in_all(allowed.extend_seconds)}."
        return ""

    async def extend(self, lease_id: str, seconds: float, author: str) -> float:
        """Make a session longer, as far as the quota allows and if nobody waits. Returns the added seconds.

        Raises LeaseConflict if it isn't running, NotAllowed with the reason, LedgerFault.
        """
        lease = self.lease(lease_id)
        allowed = self.rulebook.allowance(lease.user, lease.groups)
        if allowed.session_seconds == UNLIMITED:
            raise NotAllowed("This server has no end: there is nothing to extend.")
        waiting = self._allocator.competing(lease.want)
        if waiting:
            save = "save your work" if author == lease.user else f"{lease.user} has to save the work"
            raise NotAllowed(
                f"{_others_wait(waiting)} for such a GPU, so this server can't be extended: {save}."
            )
        done = self.rulebook.rules.extended_seconds.get(lease_id, 0.0)
        more = extension_seconds(allowed.extend_seconds, done, seconds)
        if more <= 0:
            limit = _in_all(allowed.extend_seconds) if allowed.extend_seconds else "none"
            if author == lease.user:
                raise NotAllowed(f"Your quota allows no further extension ({limit}): save your work.")
            raise NotAllowed(
                f"The quota of {lease.user} allows no further extension ({limit}): {lease.user} has to save "
                "the work."
            )
        await self._decide(DecisionKind.EXTENSION, lease_id, {"seconds": more}, author, "extended")
        return more

    # ---- lab sessions

    def sessions(self) -> list[tuple[LabSession, list[Meeting]]]:
        """Every session, by name, with the next times that it meets."""
        now = self._clock()
        window = Window(now, now + UPCOMING)
        listed = sorted(self.rulebook.rules.sessions.values(), key=lambda each: each.name)
        return [(session, meetings(session, window)[:_SHOWN_MEETINGS]) for session in listed]

    def session(self, name: str) -> LabSession:
        """The session of that name. Raises BadOption if there is none."""
        found = self.rulebook.rules.sessions.get(name)
        if found is None:
            known = ", ".join(map(repr, sorted(self.rulebook.rules.sessions))) or "none"
            raise BadOption(f"There is no lab session {name!r}: there are {known}.")
        return found

    async def save_session(self, document: Mapping[str, Any], author: str, reason: str) -> LabSession:
        """Add a session, or replace the one of the same name. Returns the session as it was stored.

        Raises BadOption for what can't be read and for a date on which it doesn't meet, SessionUnfit with
        what would fit, LedgerFault.
        """
        present = self.rulebook.rules.sessions
        session = self._checked(document, tuple(present.values()))
        check_dates(session, present.get(session.name))
        await self._decide(DecisionKind.SESSION, session.name, session_to_json(session), author, reason)
        return session

    async def cancel_session(self, name: str, author: str, reason: str) -> None:
        """End a session for good. Raises BadOption if there is none, LedgerFault."""
        await self._decide(DecisionKind.SESSION, self.session(name).name, None, author, reason)

    def calendar(self, shown: Callable[[LabSession], bool] = lambda session: True) -> bytes:
        """The sessions as an iCalendar, all or those for which `shown` is true."""
        return to_ical(filter(shown, self.rulebook.rules.sessions.values()), self._clock())

    def groups_with_sessions(self) -> list[str]:
        """The groups that the settings name, and those that ever had a session."""
        decided = (item.document or {} for item in self.rulebook.history(DecisionKind.SESSION))
        had = {str(document["group"]) for document in decided if "group" in document}
        return sorted(had | set(self.rulebook.known.groups or ()))

    def read_calendar(self, text: str, defaults: Defaults) -> Sequence[LabSession]:
        """The sessions of a calendar. Raises BadOption for what can't be read."""
        return from_ical(text.encode(), replace(defaults, timezone=self.rulebook.known.timezone))

    def session_groups(self, names: Iterable[str]) -> set[str]:
        """The groups of those of these sessions that there are."""
        known = self.rulebook.rules.sessions
        return {known[name].group for name in names if name in known}

    async def import_calendar(
        self, text: str, defaults: Defaults, author: str, reason: str
    ) -> Sequence[LabSession]:
        """Import the sessions of a calendar, all or none of them.

        Raises BadOption for what can't be read, SessionUnfit with what would fit, LedgerFault.
        """
        found = self.read_calendar(text, defaults)
        taken = dict(self.rulebook.rules.sessions)
        for session in found:
            taken[session.name] = self._checked(session_to_json(session), tuple(taken.values()))
        for session in found:
            await self._decide(DecisionKind.SESSION, session.name, session_to_json(session), author, reason)
        return found

    def _checked(self, document: Mapping[str, Any], others: Sequence[LabSession]) -> LabSession:
        session = session_from_json(document, self.rulebook.known)
        self._check_group(session)
        if session.rule:
            session = replace(session, rule=checked_rule(session.rule, session.timezone))
        check_session(session, others, self._fits, self._clock(), self._tier_words(session.tier))
        return session

    def _tier_words(self, name: str) -> TierWords:
        known = self.rulebook.known
        want = next(tier.want for tier in known.tiers if tier.name == name)
        return TierWords(known.titles.get(name, name), self._allocator.not_counted(want))

    def _check_group(self, session: LabSession) -> None:
        group = Subject(SubjectKind.GROUP, session.group)
        try:
            check_group(group, self.rulebook.known, f"The lab session {session.name!r}")
        except ConfigError as error:
            raise BadOption(f"{error}.") from None

    def _fits(self, wanted: Mapping[str, int]) -> bool:
        wants = {tier.name: tier.want for tier in self.rulebook.known.tiers}
        return self._allocator.fits([(wants[tier], count) for tier, count in wanted.items()])

    async def _decide(
        self, kind: DecisionKind, subject: str, document: Mapping[str, Any] | None, author: str, reason: str
    ) -> Decision:
        decision = self.rulebook.decision(kind, subject, document, author, reason)
        await self.rulebook.decide(decision)
        return decision


def report_window(start: datetime | None, end: datetime | None, now: datetime) -> Window:
    """The window of a report, by default the last 30 days. Raises BadOption for an empty one."""
    last = end or now
    first = start or last - timedelta(days=30)
    if first >= last:
        raise BadOption("The start of the report is not before its end: swap them.")
    return Window(first, last)


def _audience(text: str) -> Subject:
    """A class or everybody. Raises BadOption."""
    subject = _subject(text)
    if subject.kind is SubjectKind.USER:
        raise BadOption("A message is for a class or for everybody: write group:NAME.")
    return subject


def _subject(text: str) -> Subject:
    try:
        return subject_from_text(text)
    except ConfigError as error:
        raise BadOption(f"{error}.") from None


def _others_wait(count: int) -> str:
    return "1 other waits" if count == 1 else f"{count} others wait"


def _in_all(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:g} {'hour' if hours == 1 else 'hours'} in all"
