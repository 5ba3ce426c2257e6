"""What "My GPU" shows, computed from documents, as values for the templates. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType

from ....core.decision import Announcement
from ....core.units import format_time
from ....protocol.rules import AllowanceDocument, BudgetDocument
from ...api.access import Viewer
from ...api.roster import is_over
from ...api.visible import Document, visible_status
from ...decide.allow.period import format_local
from ...ledger import PastSession
from ..counts import ModelRow, models, summary
from ..meters import Meter
from ..rows import Asked, Holding, Rows
from .card import Card, Facts, lease_card, place_card


@dataclass(frozen=True, slots=True)
class BudgetRow:
    """GPU-hours of one period: used, of how many, and when there are new ones."""

    meter: Meter
    period: str
    renewed: str
    """When there are new ones, on the clocks of the budget; "" if there are none."""


@dataclass(frozen=True, slots=True)
class PastRow:
    """A session that has ended."""

    began: str
    began_words: str
    tier: str
    server: str
    length: str
    gpu_hours: str


@dataclass(frozen=True, slots=True)
class OwnPage:
    """The viewer's own leases and places, their GPU-hours and past sessions, and what is free."""

    viewer: Viewer
    simulated: bool
    summary: str
    cards: tuple[Card, ...]
    models: tuple[ModelRow, ...]
    notices: tuple[Holding, ...]
    spawn_url: str
    budgets: tuple[BudgetRow, ...] = ()
    past: tuple[PastRow, ...] = ()
    messages: tuple[Announcement, ...] = ()
    """What their classes, or everybody, are told."""
    default_runs: bool = False
    """Without a lease, the default server runs all the same: without a GPU."""


@dataclass(frozen=True, slots=True)
class Records:
    """What the ledger knows of the viewer; None and empty where it isn't asked or can't be read."""

    allowance: AllowanceDocument | None = None
    past: Sequence[PastSession] = ()
    servers_ended: Mapping[str, datetime] = field(default_factory=lambda: MappingProxyType({}))
    """When the last lease of each of the viewer's servers ended."""


def own_page(facts: Facts, tiers: Document, viewer: Viewer, hub_url: str, records: Records) -> OwnPage:
    """The page for `viewer`. `facts.status` is the whole document; `hub_url` ends with a slash.

    Counts come from the whole document; everything with a name comes from the part that the viewer
    may see.
    """
    status = facts.status
    seen = visible_status(status, viewer)
    rows = Rows(status, tiers, Asked(viewer, hub_url, facts.now))
    cards = [
        lease_card(lease, rows.lease(lease), facts)
        for lease in seen["leases"]
        if lease["state"] != "waiting" and viewer.is_mine(lease)
    ]
    cards += [place_card(entry, rows.place(entry), facts) for entry in seen["queue"] if viewer.is_mine(entry)]
    return OwnPage(
        viewer=viewer,
        simulated=bool(status["simulated"]),
        summary=summary(status),
        cards=tuple(cards),
        models=models(status["devices"]),
        notices=tuple(card.holding for card in cards if card.holding.notice),
        spawn_url=f"{hub_url}spawn",
        budgets=budget_rows(records.allowance, facts.now),
        past=tuple(_past(each, rows) for each in records.past),
        default_runs=_default_runs(viewer, records) and not any(not card.holding.server for card in cards),
    )


def _default_runs(viewer: Viewer, records: Records) -> bool:
    """Whether the default server runs. The hub learns seconds later that it has ended with its lease."""
    servers = viewer.servers or {}
    return "" in servers and not is_over(servers[""], records.servers_ended.get(""))


def budget_rows(allowance: AllowanceDocument | None, now: datetime) -> tuple[BudgetRow, ...]:
    """The budgets of GPU-hours."""
    return () if allowance is None else tuple(_budget(each, now) for each in allowance.budgets)


def _budget(budget: BudgetDocument, now: datetime) -> BudgetRow:
    limit, used = budget.limit_gpu_seconds, budget.used_gpu_seconds
    percent = 100 * used / limit if limit else 100.0
    meter = Meter(
        percent=percent,
        text=f"{used / 3600:.1f} of {limit / 3600:g} GPU-hours used",
        left=f"{budget.left_gpu_seconds / 3600:.1f} left",
        level="danger" if percent >= 100 else "warning" if percent >= 90 else "",
    )
    at = budget.renewed_at
    renewed = "" if at is None else format_local(at, budget.timezone, now)
    return BudgetRow(meter, budget.period, renewed)


def _past(each: PastSession, rows: Rows) -> PastRow:
    minutes = max(1, round(each.awake_seconds / 60))
    hours, rest = divmod(minutes, 60)
    return PastRow(
        began=each.began_at.isoformat(),
        began_words=format_time(each.began_at),
        tier=rows.tier(each.lease.tier),
        server=each.lease.server,
        length=f"{hours} h {rest} min" if hours else f"{rest} min",
        gpu_hours=f"{each.awake_seconds * each.lease.gpu_fraction / 3600:.2f}",
    )


def facts_at(status: Document, now: datetime) -> Facts:
    """Facts without curves and buttons, for a service without a broker behind it."""
    return Facts(status, now, False, False, lambda lease_id: (), lambda lease_id: 0.0)
