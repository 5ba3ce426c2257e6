"""When users' GPU-hours are used up, and in turns: the sleep until they have GPU-hours again.

A lease that is kept asleep is so in the ledger: the next broker gives it no turn either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from ...core.errors import Refusal
from ...core.model import Lease, Mode
from ...core.paced import paced
from ...core.session import EndAction
from ...core.states import AWAKE
from ..decide.allow.budget import Spent, best, describe_spent, runs_out_at
from ..decide.when.deadline import Cause, Deadline
from .allocator import Allocator
from .gate import QuotaGate
from .rulebook import Rulebook

_AT_ONCE = 20
"""So many users are looked at before the loop may do something else."""


class Teller(Protocol):
    """Gives the user of a lease a notice."""

    async def tell(self, lease_id: str, sentence: str) -> None:
        """Does nothing if the lease has ended."""
        ...


@dataclass(frozen=True, slots=True)
class BudgetEnds:
    """Called from the rounds of `Endings`; all methods raise LedgerFault."""

    rulebook: Rulebook
    gate: QuotaGate
    allocator: Allocator
    teller: Teller
    can_sleep: Callable[[Lease], bool]

    async def look(self, running: Iterable[Lease], now: datetime) -> dict[str, Deadline]:
        """When GPU-hours are used up, by lease id; leases kept asleep whose user has some again may wake.

        All servers of a user use the same GPU-hours. A lease in turns uses them only while it is awake, so
        its time is the earliest possible one: it is awake from now on.
        """
        of_user: dict[tuple[str, str], list[Lease]] = {}
        for lease in running:
            of_user.setdefault((lease.hub, lease.user), []).append(lease)
        ends: dict[str, Deadline] = {}
        async for leases in paced(of_user.values(), _AT_ONCE):
            spent = await self._spent(leases[-1])
            if spent is None:
                continue
            for lease in leases:
                if lease.kept_asleep and (not self.can_sleep(lease) or _has_room(spent)):
                    await self._may_wake(lease)
                elif not lease.kept_asleep and (end := self._end(lease, leases, spent, now)) is not None:
                    ends[lease.id] = end
        return ends

    async def put_to_sleep(self, lease: Lease, now: datetime) -> bool:
        """Keep it asleep until its user has GPU-hours again; False if it has to be stopped instead."""
        chosen = best(await self._spent(lease) or [])
        if chosen is None or not self.can_sleep(lease):
            return False
        why = (
            f"This server sleeps. {describe_spent(chosen, now)} Your variables are kept until it is stopped."
        )
        await self.allocator.keep_asleep(lease.id, why)
        await self.teller.tell(lease.id, why)
        return True

    async def _may_wake(self, lease: Lease) -> None:
        free = await self.allocator.keep_asleep(lease.id, "")
        if free is not None and free.notice != lease.notice:
            await self.teller.tell(lease.id, free.notice)

    async def _spent(self, lease: Lease) -> list[Spent] | None:
        """None if its groups can't be read: nothing is changed because of that."""
        try:
            allowed = self.rulebook.allowance(lease.user, lease.groups)
        except Refusal:
            return None
        return await self.gate.spent(lease.hub, lease.user, lease.groups, allowed)

    def _end(
        self, lease: Lease, leases: Iterable[Lease], spent: Sequence[Spent], now: datetime
    ) -> Deadline | None:
        sleeps = lease.mode is Mode.TURNS
        awake = sum(
            each.gpu_fraction
            for each in leases
            if each.state in AWAKE or (sleeps and each.mode is Mode.TURNS and not each.kept_asleep)
        )
        at = runs_out_at(spent, awake, now)
        if at is None:
            return None
        action = EndAction.SLEEP if self.can_sleep(lease) else EndAction.STOP
        return Deadline(at, Cause.GPU_HOURS, action)


def _has_room(spent: Sequence[Spent]) -> bool:
    """Whether something may be used now."""
    chosen = best(spent)
    return chosen is None or chosen.left_gpu_seconds > 0
