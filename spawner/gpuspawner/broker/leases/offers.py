"""What each tier offers one user now, from quota, lab sessions, devices and queue: for the spawn page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from ...core.errors import Refusal
from ...core.model import GpuRequest, Tier
from ...core.quota import UNLIMITED
from ...core.states import AWAKE
from ...core.units import Clock, utc_now
from ...core.want import Want
from ..decide.allow.budget import runs_out_at
from ..decide.allow.offer import Kept, Offer, end_of_start
from .allocator import Allocator
from .gate import QuotaGate
from .rule_service import RuleService, Standing


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, with the hub's groups; the leases of `server`, which is about to start, don't count.

    `node` is the only machine that may serve, because the user's files are there; "" if any will do.
    """

    hub: str
    user: str
    server: str | None
    groups: tuple[str, ...]
    node: str = ""

    def want(self, tier: Tier) -> Want:
        """What a server of this tier asks of the devices."""
        return replace(tier.want, node=self.node or None)


class Offers:
    """Answers from memory, apart from the GPU-hours, which are read from the ledger."""

    def __init__(
        self, rules: RuleService, gate: QuotaGate, allocator: Allocator, clock: Clock = utc_now
    ) -> None:
        self._rules = rules
        self._gate = gate
        self._allocator = allocator
        self._clock = clock

    async def look(self, asker: Asker) -> tuple[Standing, list[Offer]]:
        """What the user may have and has, and each tier's offer. Raises QuotaUnreadable, LedgerFault."""
        standing = await self._rules.standing(asker.hub, asker.user, asker.groups, asker.server)
        now = self._clock()
        offers = [self._offer(tier, asker, standing, now) for tier in self._rules.rulebook.known.tiers]
        return standing, await self._with_waits(offers, asker)

    async def _with_waits(self, offers: list[Offer], asker: Asker) -> list[Offer]:
        """The offers with the likely wait of those that would have to wait."""
        waits = {each.tier for each in offers if each.capacity and not each.refusals and not each.starts_now}
        if not waits:
            return offers
        tiers = [tier for tier in self._rules.rulebook.known.tiers if tier.name in waits]
        guest = self._allocator.guest(_request(tier, asker) for tier in tiers)
        found = await self._allocator.waits.of_guest(guest)
        return [replace(each, wait=found.get(each.tier)) for each in offers]

    def _offer(self, tier: Tier, asker: Asker, standing: Standing, now: datetime) -> Offer:
        refusals = standing.refused.get(tier.name, ())
        if not tier.needs_gpu:
            return Offer(tier.name, refusals, starts_now=not refusals)
        allowed, cap = standing.allowed, None
        try:
            cap = self._gate.cap_for(asker.want(tier), asker.groups, allowed)
        except Refusal as refusal:
            refusals = (*refusals, refusal)
        charge = self._allocator.charged_as(asker.want(tier))
        runs_out = runs_out_at(standing.spent, (charge or 0.0) + self._held(asker), now)
        end = end_of_start(now, allowed, runs_out, None if cap is None else cap.ends_at)
        offer = Offer(
            tier=tier.name,
            refusals=refusals,
            capacity=self._allocator.capacity(asker.want(tier)),
            session_seconds=allowed.session_seconds,
            end=end,
            gpu_hours_an_hour=charge,
        )
        capped = UNLIMITED if cap is None else (cap.ends_at - now).total_seconds()
        return self._with_places(offer, tier, asker, min(allowed.session_seconds, capped))

    def _with_places(self, offer: Offer, tier: Tier, asker: Asker, seconds: float) -> Offer:
        """The offer with what is free, kept, and whether a session of that length would begin at once."""
        want, others = asker.want(tier), self._gate.kept_for_others(asker.groups)
        wants = {each.name: each.want for each in self._rules.rulebook.known.tiers}
        own = [Kept(*each) for each in self._gate.kept_for(asker.groups) if each[0].tier == tier.name]
        limit = None if seconds == UNLIMITED else seconds
        starts_now = not offer.refusals and self._allocator.begins(_request(tier, asker), limit)
        return replace(
            offer,
            free=self._allocator.spare(want, [(wants[held.tier], count) for held, count in others]),
            starts_now=starts_now,
            kept=self._in_the_way(want, [Kept(*each) for each in others]),
            own_session=own[0] if own else None,
        )

    def _held(self, asker: Asker) -> float:
        """How many devices the user's other servers are charged as now."""
        return sum(
            lease.gpu_fraction
            for lease in self._allocator.leases()
            if (lease.hub, lease.user) == (asker.hub, asker.user)
            and lease.state in AWAKE
            and lease.server != asker.server
        )

    def _in_the_way(self, want: Want, kept: Sequence[Kept]) -> tuple[Kept, ...]:
        """Those that are kept on devices that such a server could have."""
        wants = {each.name: each.want for each in self._rules.rulebook.known.tiers}
        return tuple(each for each in kept if self._allocator.competes(want, wants[each.reservation.tier]))


def _request(tier: Tier, asker: Asker) -> GpuRequest:
    """The request of a start that nobody has asked for yet."""
    name = f"guest for {tier.name}"
    return GpuRequest(
        name, asker.hub, asker.user, asker.server or "", tier.name, asker.want(tier), asker.groups
    )
