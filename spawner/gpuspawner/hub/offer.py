"""What the spawn page can offer now: asks broker and Docker, with short time limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import EngineFault, Refusal
from ..core.image_needs import obstacle, read_machine, read_needs
from ..core.image_reference import AllowedImages
from ..core.model import Tier
from ..protocol.client import BrokerClient
from ..protocol.messages import TiersDocument, document
from ..protocol.patience import patience
from ..protocol.rules import OfferDocument, WhoAsks
from .cards import Found, make_cards, make_quota, with_obstacle
from .docker import DockerEngine
from .form import Offered
from .options import NO_IMAGES
from .shared import HubShared
from .tasks import all_or_none

BROKER_SECONDS = 2.0
LABELS_SECONDS = 1.0
_MOST_IMAGES = 30
"""At most this many images of the list are looked for on this machine each time that the page is shown."""
_SILENT = "The GPU broker doesn't answer right now."


@dataclass(frozen=True, slots=True)
class Menu:
    """What the site offers: its tiers, the image of those without their own, the images to choose from.

    `limits` gives the sentence about a lab's limits, by tier name.
    """

    tiers: tuple[Tier, ...]
    default_image: str
    images: AllowedImages = NO_IMAGES
    limits: Mapping[str, str] = field(default_factory=dict)

    def image_of(self, tier: Tier) -> str:
        """The image of the tier's servers, if none is chosen."""
        return tier.image or self.default_image


async def look(menu: Menu, shared: HubShared, who: WhoAsks) -> Offered:
    """The tiers with what is free now, and what this user may not have, with the reason.

    Without the broker, those with a GPU are shown as unavailable.
    """
    tiers: TiersDocument | None = None
    offer: OfferDocument | None = None
    problem = ""
    if any(tier.needs_gpu for tier in menu.tiers):
        try:
            async with patience(BROKER_SECONDS):
                tiers, offer = await _ask(shared.broker, who)
        except Refusal as refusal:
            problem = refusal.message
        except TimeoutError:
            problem = _SILENT
    present = await _inspect(_names(menu), shared.docker)
    first = shared.sizes.notes({tier.name: menu.image_of(tier) for tier in menu.tiers}, present)
    images = {tier: f"Its image isn't on this machine yet: {note}." for tier, note in first.items()}
    found = Found(tiers, offer, menu.limits, images)
    obstacles = _obstacles(menu, tiers, present)
    cards = [
        with_obstacle(card, obstacles.get(card.tier.name, ""), usable=bool(menu.images))
        for card in make_cards(menu.tiers, found)
    ]
    notes = shared.sizes.notes(menu.images.listed, present)
    return Offered(cards, make_quota(offer), menu.images, problem, notes)


async def _ask(broker: BrokerClient, who: WhoAsks) -> tuple[TiersDocument, OfferDocument]:
    return await broker.ask("/tiers", TiersDocument), await broker.ask("/offer", OfferDocument, who)


def _names(menu: Menu) -> list[str]:
    """The images that the page says something of, each once."""
    listed = list(menu.images.listed.values())[:_MOST_IMAGES]
    return list(dict.fromkeys((*map(menu.image_of, menu.tiers), *listed)))


async def _inspect(images: Iterable[str], docker: DockerEngine) -> dict[str, dict[str, Any] | None]:
    """By name, Docker's document of each image; None: it isn't on this machine. Empty if Docker is silent."""
    names = list(images)
    with suppress(EngineFault, TimeoutError):
        async with patience(LABELS_SECONDS):
            return dict(zip(names, await all_or_none(*map(docker.find_image, names)), strict=True))
    return {}


def _obstacles(
    menu: Menu, tiers: TiersDocument | None, present: Mapping[str, dict[str, Any] | None]
) -> dict[str, str]:
    """By tier name, why the tier's image can't work here. An unknown fact is no obstacle.

    Only images on this machine can be checked. The start checks again after the pull.
    """
    machine, found = read_machine(None if tiers is None else document(tiers)), {}
    for tier in menu.tiers:
        image = menu.image_of(tier)
        needs = read_needs(present.get(image) or {})
        if why := obstacle(image, needs, tier.needs_gpu, machine):
            found[tier.name] = why
    return found
