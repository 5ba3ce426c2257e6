"""POST /offer on the unix socket: what each tier offers one user now, for the spawn page."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from ...core.quota import UNLIMITED
from ...protocol.messages import RefusalMessage
from ...protocol.rules import (
    AllowanceDocument,
    KeptDocument,
    LikelyWait,
    OfferDocument,
    TierOffer,
    WhoAsks,
)
from ..decide.allow.offer import Kept, Offer, end_sentence, kept_sentence, own_sentence
from ..decide.line.estimate import Estimate
from ..leases.endings import Endings
from ..leases.offers import Asker, Offers
from ..leases.rule_service import RuleService
from .rules import RuleHandler, allowance_document, answering
from .socket import Site, likely


def offer_routes(site: Site, rules: RuleService, endings: Endings, offers: Offers) -> list[tuple[Any, ...]]:
    """The route, for `make_app`."""
    return [(r"/offer", OfferHandler, {"site": site, "rules": rules, "endings": endings, "offers": offers})]


class OfferHandler(RuleHandler):
    """POST /offer"""

    offers: Offers

    def initialize(self, site: Site, **more: Any) -> None:
        super().initialize(site, **more)
        self.offers = more["offers"]

    @answering
    async def post(self) -> None:
        """What each tier offers the user now."""
        who = self.read(WhoAsks)
        await self.rules.rulebook.note_properties(who.properties)
        asker = Asker(who.hub, who.user, who.server, who.groups, who.node)
        standing, offers = await self.offers.look(asker)
        timezone, now = self.rules.rulebook.known.timezone, self.site.service.now()
        self.send(offer_document(allowance_document(standing), offers, timezone, now))


def offer_document(
    allowance: AllowanceDocument, offers: Iterable[Offer], timezone: str, now: datetime
) -> OfferDocument:
    """What each tier offers the user of `allowance` now."""
    return OfferDocument(
        timezone=timezone, tiers=tuple(_tier(each, timezone, now) for each in offers), allowance=allowance
    )


def _tier(offer: Offer, timezone: str, now: datetime) -> TierOffer:
    refusal = offer.refusals[0] if offer.refusals else None
    capacity, end, own = offer.capacity, offer.end, offer.own_session
    return TierOffer(
        tier=offer.tier,
        refused=None if refusal is None else RefusalMessage(reason=refusal.reason, message=refusal.message),
        allowed_at=offer.allowed_at,
        free=offer.free,
        total=None if capacity is None else capacity.total,
        waiting=0 if capacity is None else capacity.waiting,
        starts_now=offer.starts_now,
        wait=None if offer.wait is None else _wait(offer.wait),
        kept=tuple(_kept(each, kept_sentence(each, now)) for each in offer.kept),
        own_session=None if own is None else _kept(own, own_sentence(own, now)),
        session_seconds=None if offer.session_seconds == UNLIMITED else offer.session_seconds,
        ends_at=None if end is None else end.at,
        ends_message="" if end is None else end_sentence(end, timezone, now),
        gpu_hours_an_hour=offer.gpu_hours_an_hour,
    )


def _wait(wait: Estimate) -> LikelyWait:
    earliest, latest = wait.earliest_seconds, wait.latest_seconds
    return LikelyWait(
        earliest_at=datetime.fromtimestamp(earliest, UTC),
        latest_at=datetime.fromtimestamp(latest, UTC),
        message=likely(earliest, latest),
    )


def _kept(kept: Kept, message: str) -> KeptDocument:
    held = kept.reservation
    return KeptDocument(
        session=held.meeting.session,
        group=held.group,
        places=kept.places,
        begins_at=held.meeting.start,
        ends_at=held.meeting.end,
        unused_free_at=held.release_at,
        message=message,
    )
