"""What "My GPU" needs beside the status: curves, the ledger's records, and what the buttons do."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

from ....core.decision import Announcement
from ....core.errors import Fault, Refusal
from ....core.units import Clock, utc_now
from ...api.access import Viewer
from ...api.public.actions import Actions
from ...api.rules import allowance_document
from ...leases.announcements import messages_for
from ...leases.rule_service import RuleService
from ...ledger import Ledger, Write
from ...observe.sampler import Point, Sampler
from .page import Records

PAST_SHOWN = 10
PAST_DAYS = 120
_LOG = logging.getLogger("gpuspawner.broker")


class Desk(Protocol):
    """See `BrokerDesk`."""

    actions: Actions

    def curve(self, lease_id: str) -> Sequence[Point]:
        """The last hour of a lease."""

    def extend_seconds(self, lease_id: str) -> float:
        """By how much the lease's session may still be extended."""

    def why_not_extended(self, lease_id: str) -> str:
        """Why it can't be extended now; "" if it can."""

    def messages(self, viewer: Viewer) -> tuple[Announcement, ...]:
        """What the viewer's classes, or everybody, are told now."""

    def told(self) -> object:
        """Equal as long as nobody is told anything else."""

    async def records(self, viewer: Viewer) -> Records:
        """What the ledger knows of the viewer."""

    async def write(self, write_id: str) -> Write | None:
        """A write of the audit log."""


class BrokerDesk:
    """The broker's own. All methods on its event loop."""

    def __init__(
        self, rules: RuleService, ledger: Ledger, sampler: Sampler, actions: Actions, clock: Clock = utc_now
    ) -> None:
        self.actions = actions
        self._rules, self._ledger, self._sampler, self._clock = rules, ledger, sampler, clock

    def curve(self, lease_id: str) -> Sequence[Point]:
        """The last hour of a lease, the oldest point first."""
        return self._sampler.curve(lease_id)

    def extend_seconds(self, lease_id: str) -> float:
        """By how much the lease's session may still be extended; 0 where nothing ends it, or others wait."""
        try:
            return self._rules.extension_left_seconds(lease_id)
        except Refusal:
            return 0.0

    def why_not_extended(self, lease_id: str) -> str:
        """Why the lease's session can't be extended now; "" if it can, or if it has no longest session."""
        try:
            return self._rules.why_not_extended(lease_id)
        except Refusal:
            return "You can't extend it now: your quota can't be read."

    def messages(self, viewer: Viewer) -> tuple[Announcement, ...]:
        """What the viewer's classes, or everybody, are told now, the newest first."""
        return messages_for(viewer.groups, self._rules.rulebook.rules.messages, self._clock())

    def told(self) -> object:
        """All messages that are shown now."""
        now = self._clock()
        return tuple(each for each in self._rules.rulebook.rules.messages.values() if now < each.until)

    async def records(self, viewer: Viewer) -> Records:
        """The viewer's allowance and latest sessions; without what can't be read now."""
        if not viewer.owns or viewer.hub is None:
            return Records()
        try:
            standing = await self._rules.standing(viewer.hub, viewer.name, viewer.groups)
            since = self._clock() - timedelta(days=PAST_DAYS)
            past = await self._ledger.sessions(since, PAST_SHOWN, (viewer.hub, viewer.name))
            servers = await self._ledger.servers_ended(viewer.hub, [viewer.name])
        except (Fault, Refusal) as error:
            _LOG.warning("The records of %s can't be shown: %s", viewer.name, error)
            return Records()
        ended = tuple(each for each in reversed(past) if each.lease.state.value == "closed")
        servers_ended = {name: at for (_, name), at in servers.items()}
        return Records(allowance_document(standing), ended, servers_ended)

    async def write(self, write_id: str) -> Write | None:
        """A write of the audit log. Raises LedgerFault."""
        return await self._ledger.audited_write(write_id)
