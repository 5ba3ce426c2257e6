"""What the spawn page says of each tier and of the user's quota, from the broker's answers. Pure.

Words only; how they look is in `templates/`. Sizes are bytes, percentages 0-100.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from zoneinfo import ZoneInfo

from ..core.model import Guarantee, Mode, Tier
from ..core.units import format_bytes
from ..protocol.messages import TierDocument, TiersDocument
from ..protocol.rules import AllowanceDocument, BudgetDocument, OfferDocument, TierOffer

_NOUNS = {Mode.WHOLE: "GPU", Mode.SLICE: "slice", Mode.MIG: "MIG instance", Mode.TURNS: "seat"}
_SIMULATED = "Simulated: this hub has no such GPU. Code that asks for a GPU finds none."
_WORTH = {
    Mode.WHOLE: "Hard: while your server runs, nobody else can use this GPU.",
    Mode.MIG: "Hard: the hardware separates your part of the GPU from the others.",
    Mode.SLICE: "Guarded: a process that uses more than this memory is ended within seconds.",
    Mode.TURNS: "Guarded: while it is your turn, you have the GPU to yourself. Between turns your program is "
    "paused, and continues where it was.",
}
_TIME_SLICING = "Users share the compute by time-slicing; nothing limits it."
_PERIODS = {"day": "today", "week": "this week", "week from sunday": "this week"}
NOT_NOW = "Not available now."


class State(StrEnum):
    """What a click on Start would do."""

    NOW = "now"
    WAIT = "wait"
    OFF = "off"
    """It can't be chosen."""


@dataclass(frozen=True, slots=True)
class Meter:
    """A small bar: a part of a device, or of a quota."""

    label: str
    text: str
    percent: float


@dataclass(frozen=True, slots=True)
class TierCard:
    """One tier, as the spawn page shows it. Empty texts and tuples are left out."""

    tier: Tier
    state: State
    badge: str
    """The state in two or three words."""
    free: str = ""
    """How many are free now, of how many, and who waits."""
    device: str = ""
    meters: tuple[Meter, ...] = ()
    guarantee: str = ""
    notes: tuple[str, ...] = ()
    """When a server that starts now would end, what it costs, what is kept for lab sessions, its image."""
    limits: str = ""
    """Main memory, processes and cores."""
    reason: str = ""
    """Why it can't be chosen, and what would change that."""

    @property
    def usable(self) -> bool:
        """Whether it can be chosen."""
        return self.state is not State.OFF

    def without(self, said: Collection[str]) -> TierCard:
        """The card without these sentences, which the page says once for all cards."""
        return replace(
            self,
            guarantee="" if self.guarantee in said else self.guarantee,
            notes=tuple(each for each in self.notes if each not in said),
            limits="" if self.limits in said else self.limits,
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What is known when the page is made. `tiers` and `offer` are None if the broker didn't answer.

    `limits` and `images` give a sentence by tier name: the lab's limits, and what is to be said of its image.
    """

    tiers: TiersDocument | None = None
    offer: OfferDocument | None = None
    limits: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)


def make_cards(tiers: Sequence[Tier], found: Found) -> list[TierCard]:
    """The cards of the site's tiers, in its order."""
    documents = {each.name: each for each in (found.tiers.tiers if found.tiers else ())}
    offers = {each.tier: each for each in (found.offer.tiers if found.offer else ())}
    simulated = found.tiers is not None and found.tiers.simulated
    has_budget = found.offer is not None and bool(found.offer.allowance.budgets)
    return [
        _with_more(
            _card(tier, documents.get(tier.name), offers.get(tier.name), simulated),
            offers.get(tier.name),
            found,
            has_budget,
        )
        for tier in tiers
    ]


def with_obstacle(card: TierCard, why: str, *, usable: bool) -> TierCard:
    """The card with the reason why its image can't work; it stays usable if another image can be chosen."""
    if not why:
        return card
    if usable:
        return replace(card, notes=(*card.notes, why))
    return replace(card, state=State.OFF, badge="Not available", reason=card.reason or why)


def _card(tier: Tier, document: TierDocument | None, offer: TierOffer | None, simulated: bool) -> TierCard:
    if not tier.needs_gpu:
        if offer is not None and offer.refused is not None:
            return _off(tier, offer.refused.message)
        return TierCard(tier, State.NOW, "Starts at once")
    if document is None or offer is None or document.total is None or offer.total is None:
        return _off(tier, NOT_NOW)
    card = _hardware(tier, document, offer, simulated)
    noun, wanted = _noun(tier, simulated), tier.want.device_count
    if document.total < wanted:
        reason = f"{_too_few(wanted, document.total, noun)}{_drained(document.drained)}"
        return replace(card, state=State.OFF, badge="Not available", reason=reason)
    free = f"{offer.free or 0} of {_count(offer.total, noun)} free now."
    if offer.waiting:
        free += f" {offer.waiting} {'waits' if offer.waiting == 1 else 'wait'} in line."
    free += _drained(document.drained)
    card = replace(card, free=free)
    if offer.refused is not None:
        return replace(card, state=State.OFF, badge="Not available", reason=offer.refused.message)
    if offer.starts_now:
        return card
    wait = f"You will wait in line: {offer.wait.message}." if offer.wait else "You will wait in line."
    return replace(card, state=State.WAIT, badge="Queue", free=f"{free} {wait}")


def _too_few(wanted: int, in_service: int, noun: str) -> str:
    """Why a tier can't be chosen: the machine is too small, or devices are drained or faulty."""
    there = f"{in_service or 'none'} {'are' if in_service > 1 else 'is'}"
    return f"Needs {_count(wanted, noun)}; {there} in service for this tier now."


def _drained(count: int) -> str:
    """A sentence about devices that an admin has taken out of use; "" if there are none."""
    if not count:
        return ""
    return f" An admin has taken {_count(count, 'GPU')} out of use for now."


def _off(tier: Tier, reason: str) -> TierCard:
    return TierCard(tier, State.OFF, "Not available", reason=reason)


def _hardware(tier: Tier, document: TierDocument, offer: TierOffer, simulated: bool) -> TierCard:
    """The card with the device, and which part of it a server gets."""
    fraction = (offer.gpu_hours_an_hour or 1.0) / max(1, document.device_count)
    models = " or ".join(document.device_models)
    device = f"{document.device_count} × {models}" if models and document.device_count > 1 else models
    if tier.want.mode is Mode.TURNS and models and not simulated:
        people = f" by up to {document.total} people" if document.total else ""
        device = f"A whole {models} whenever you compute, shared in turns{people}"
    shared = tier.want.mode is Mode.SLICE and document.compute_guarantee == Guarantee.NONE and not simulated
    guarantee = _SIMULATED if simulated else _WORTH[tier.want.mode] + (f" {_TIME_SLICING}" if shared else "")
    meters = _meters(tier, document, fraction, shared)
    return TierCard(tier, State.NOW, "Free now", device=device, meters=meters, guarantee=guarantee)


def _meters(tier: Tier, document: TierDocument, fraction: float, shared: bool) -> tuple[Meter, ...]:
    """Memory and compute of one GPU. `fraction` (0-1): the part of the GPU that a MIG instance is."""
    memory, whole, percent = document.memory_bytes, document.device_memory_bytes, document.compute_percent
    if memory is None or not whole:
        return ()
    each = " each" if document.device_count > 1 else ""
    if tier.want.mode is Mode.MIG:
        return (Meter("GPU memory", f"{format_bytes(memory)}{each}", 100 * min(1.0, fraction)),)
    part = "" if memory >= whole else f" of {format_bytes(whole)}"
    found = [Meter("GPU memory", f"{format_bytes(memory)}{part}{each}", min(100.0, 100 * memory / whole))]
    if percent is not None:
        limit = "up to " if tier.want.mode is Mode.SLICE else ""
        found.append(
            Meter("Compute", "shared" if shared else f"{limit}{percent:g} %", 100.0 if shared else percent)
        )
    return tuple(found)


def _with_more(card: TierCard, offer: TierOffer | None, found: Found, has_budget: bool) -> TierCard:
    """The card with what else is known of it. A tier that can't be chosen doesn't say when it would end."""
    notes: list[str] = []
    if offer is not None:
        if card.usable and offer.ends_message:
            notes.append(offer.ends_message)
        if card.usable and has_budget and offer.gpu_hours_an_hour:
            cost = f"{offer.gpu_hours_an_hour:.3g}"
            hour = "One hour of turns" if card.tier.want.mode is Mode.TURNS else "One hour"
            notes.append(f"{hour} costs {cost} GPU-hour{'' if cost == '1' else 's'}.")
        if offer.own_session is not None:
            notes.append(offer.own_session.message)
        notes.extend(each.message for each in offer.kept)
    image = found.images.get(card.tier.name, "")
    return replace(
        card,
        notes=(*notes, *([image] if image else [])),
        limits=f"Your server gets {limits}." if (limits := found.limits.get(card.tier.name)) else "",
    )


# ---- the user's quota


def make_quota(offer: OfferDocument | None) -> tuple[Meter, ...]:
    """The user's GPU-hours, and what their other servers hold of what they may hold at once.

    Nothing where nothing is limited.
    """
    if offer is None:
        return ()
    allowance = offer.allowance
    return (*(_budget(each) for each in allowance.budgets), *_held(allowance))


def _budget(budget: BudgetDocument) -> Meter:
    left, limit = max(0.0, budget.left_gpu_seconds) / 3600, budget.limit_gpu_seconds / 3600
    renewed = "" if budget.renewed_at is None else f"; new ones {_day(budget.renewed_at, budget.timezone)}"
    period = _PERIODS.get(budget.period, f"from {budget.period}")
    text = f"{left:.1f} of {limit:g} left {period}{renewed}"
    return Meter("GPU-hours", text, 100 * left / limit if limit > 0 else 0.0)


def _held(allowance: AllowanceDocument) -> list[Meter]:
    limits = (
        ("Servers with a GPU", allowance.held_leases, allowance.leases),
        ("GPUs", allowance.held_devices, allowance.devices),
        ("Slices", allowance.held_slices, allowance.slices),
    )
    return [
        Meter(label, f"{held} of {limit} in use by your other servers", 100 * min(held, limit) / limit)
        for label, held, limit in limits
        if limit and held
    ]


def _day(at: datetime, timezone: str) -> str:
    local = at.astimezone(ZoneInfo(timezone))
    return f"on {local:%A} at {local:%H:%M} ({timezone})"


def _noun(tier: Tier, simulated: bool) -> str:
    noun = _NOUNS[tier.want.mode]
    return f"simulated {noun}" if simulated else noun


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
