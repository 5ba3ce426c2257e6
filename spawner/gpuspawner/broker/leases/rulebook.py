"""The rules in force and their changes, which are committed to the ledger first, then made in memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...config.quotas import Known, parse_properties
from ...core.decision import Decision, DecisionKind
from ...core.errors import BadOption, ConfigError, QuotaUnreadable
from ...core.quota import Allowance, Limits, Quota, Subject
from ...core.units import Clock, utc_now
from ..decide.allow.quota import by_subject, combine
from ..decide.allow.rules import Rules, fold, make_base, without_advice
from ..ledger import Ledger

AllowanceOf = Callable[[str, Iterable[str]], Allowance]
"""What a user with these groups may have. Raises QuotaUnreadable if a group's properties can't be read."""


class Rulebook:
    """Quotas, grants, lab sessions and extensions; to be used from one event loop.

    `base` are the entries of `c.GpuSite.quotas`, which were checked at load.
    """

    def __init__(
        self,
        ledger: Ledger,
        base: Sequence[Mapping[str, Any]],
        known: Known,
        *,
        clock: Clock = utc_now,
        log: logging.Logger | None = None,
    ) -> None:
        self._ledger = ledger
        self.base = make_base(base, known)
        self._clock = clock
        self._log = log or logging.getLogger(__name__)
        self._lock = asyncio.Lock()
        self._decisions: tuple[Decision, ...] = ()
        self._doubtful = False
        self.known = known
        self.rules = fold(self.base, (), known)
        self._limits_of: Rules | None = None
        self._by_subject: Mapping[Subject, Limits] = {}
        self._allowances: dict[tuple[str, tuple[str, ...]], Allowance] = {}
        """By user and groups; emptied when the rules change."""
        self.on_change: list[Callable[[], None]] = []
        """Called after each change, once memory has it; must not block or fail."""

    async def load(self) -> None:
        """Read the earlier decisions. Decisions that are no longer valid are logged. Raises LedgerFault."""
        self._decisions = await self._ledger.decisions()
        self._doubtful = False
        self.rules = fold(self.base, self._decisions, self.known)
        for problem in self.rules.problems:
            self._log.error("%s", problem)

    def of_group(self, group: str) -> Allowance:
        """What a member of this one group may have."""
        return combine(self._limits(), "", [group], {})

    def allowance(self, user: str, groups: Iterable[str]) -> Allowance:
        """What the user may have. Raises QuotaUnreadable if a group's properties can't be read."""
        members, limits = tuple(groups), self._limits()
        key = user, members
        if key not in self._allowances:
            found = self._combined(limits, user, members)
            self._allowances[key] = replace(found, titles=self.known.titles, wants=self.known.wants)
        return self._allowances[key]

    def preview(self, *decisions: Decision) -> Rules:
        """The rules in force after these decisions too. Raises BadOption for invalid values."""
        try:
            rules = fold(self.base, (*self._decisions, *decisions), self.known)
        except ConfigError as error:
            raise BadOption(f"{error}.") from None
        new = [problem for problem in rules.problems if problem not in self.rules.problems]
        if new:
            raise BadOption(without_advice(new[0]))
        return rules

    def allowances(self, rules: Rules) -> AllowanceOf:
        """What users may have by these rules, as from `preview`."""
        limits = by_subject(rules.quotas)
        return lambda user, groups: self._combined(limits, user, tuple(groups))

    def _combined(self, limits: Mapping[Subject, Limits], user: str, members: tuple[str, ...]) -> Allowance:
        return combine(limits, user, members, by_subject(self._of_properties(members)))

    async def decide(
        self, *decisions: Decision, following: Callable[[Rules], Sequence[Decision]] | None = None
    ) -> Rules:
        """Make changes: checked, committed at once, then in memory.

        `following` says what else has to be decided if these rules hold; all is one commit.

        Raises BadOption for what can't be used, LedgerFault if it could not be recorded. Where only the
        answer of the ledger was lost, it was recorded anyway: the ledger is read again before the next
        change, and `gpuspawner quota show` says what holds.
        """
        async with self._lock:
            if self._doubtful:
                await self.load()
            rules = self.preview(*decisions)
            if following is not None and (more := following(rules)):
                decisions = (*decisions, *more)
                rules = self.preview(*decisions)
            await asyncio.shield(self._commit(decisions, rules))
        for each in decisions:
            self._log.info(
                "Rule changed: %s of %s: %s (%s, by %s)",
                each.kind,
                each.subject,
                each.document,
                each.reason,
                each.author,
            )
        for callback in self.on_change:
            callback()
        return rules

    def decision(
        self, kind: DecisionKind, subject: str, document: Mapping[str, Any] | None, author: str, reason: str
    ) -> Decision:
        """A decision with the current time."""
        return Decision(self._clock(), kind, subject, document, author, reason)

    def history(self, kind: DecisionKind, subject: str | None = None) -> tuple[Decision, ...]:
        """The decisions of this kind, of one subject or of all, in order."""
        return tuple(
            item
            for item in self._decisions
            if item.kind is kind and (subject is None or item.subject == subject)
        )

    async def note_properties(self, properties: Mapping[str, Mapping[str, Any]]) -> None:
        """Record the limits that the hub reports for its groups, for the next start. Raises LedgerFault."""
        for group, values in properties.items():
            if dict(self.rules.properties.get(group, {})) != dict(values):
                told = self.decision(DecisionKind.PROPERTIES, group, values, "hub", "the group's properties")
                await self.decide(told)

    async def _commit(self, decisions: tuple[Decision, ...], rules: Rules) -> None:
        self._doubtful = True
        await self._ledger.decide(*decisions)
        self._doubtful = False
        self._decisions = (*self._decisions, *decisions)
        self.rules = rules

    def _limits(self) -> Mapping[Subject, Limits]:
        """The quotas by subject; computed again after a change."""
        if self._limits_of is not self.rules:
            self._limits_of, self._by_subject = self.rules, by_subject(self.rules.quotas)
            self._allowances.clear()
        return self._by_subject

    def _of_properties(self, groups: Iterable[str]) -> list[Quota]:
        found = []
        for group in groups:
            try:
                quota = parse_properties(group, self.rules.properties.get(group, {}), self.known)
            except ConfigError as error:
                raise QuotaUnreadable(
                    f"{error}. Ask an admin of the hub to change it, or choose CPU."
                ) from None
            if quota is not None:
                found.append(quota)
        return found
