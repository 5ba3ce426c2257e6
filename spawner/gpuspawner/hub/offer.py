"""What the spawn page can offer now: asks broker and Docker, with short time limits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ..core.errors import EngineFault, Refusal
from ..core.image_needs import obstacle, read_machine, read_needs
from ..core.image_reference import AllowedImages
from ..core.model import Tier
from ..protocol.rules import WhoAsks
from .docker import DockerEngine
from .form import TierCard, make_cards, with_obstacle, with_refusal
from .quota import refused_tiers
from .shared import HubShared
from .tasks import all_or_none

BROKER_SECONDS = 2.0
LABELS_SECONDS = 1.0
_SILENT = "The GPU broker doesn't answer right now."


async def look(
    tiers: Sequence[Tier],
    default_image: str,
    images: AllowedImages,
    shared: HubShared,
    who: WhoAsks,
) -> list[TierCard]:
    """The tiers with what is free now, and what this user may not have, with the reason.

    Without the broker, those with a GPU are shown as unavailable.
    """
    broker, docker = shared.broker, shared.docker
    document, problem = None, ""
    refused: dict[str, Refusal] = {}
    if any(tier.needs_gpu for tier in tiers):
        try:
            async with asyncio.timeout(BROKER_SECONDS):
                document = await broker.tiers()
                refused = await refused_tiers(broker, who)
        except Refusal as refusal:
            problem = refusal.message
        except TimeoutError:
            problem = _SILENT
    obstacles = await _obstacles({tier: tier.image or default_image for tier in tiers}, document, docker)
    cards = [
        with_obstacle(card, obstacles.get(card.tier.name, ""), usable=bool(images))
        for card in make_cards(tiers, document, problem)
    ]
    return [with_refusal(card, refused.get(card.tier.name)) for card in cards]


async def _obstacles(
    wanted: dict[Tier, str], document: dict[str, Any] | None, docker: DockerEngine
) -> dict[str, str]:
    """By tier name, why the tier's image can't work here. An unknown fact is no obstacle.

    Only images on this machine can be checked. The start checks again after the pull.
    """
    machine, found = read_machine(document), {}
    with suppress(EngineFault, TimeoutError):
        async with asyncio.timeout(LABELS_SECONDS):
            distinct = list(dict.fromkeys(wanted.values()))
            seen = await all_or_none(*(docker.find_image(image) for image in distinct))
            documents = dict(zip(distinct, seen, strict=True))
            for tier, image in wanted.items():
                needs = read_needs(documents[image] or {})
                if why := obstacle(image, needs, tier.needs_gpu, machine):
                    found[tier.name] = why
    return found
