"""What the broker says of a user's quota: asked for the spawn page, and before each start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from ..config.quotas import LIMIT_KEYS
from ..core.errors import NotAllowed, Refusal, all_refusals
from ..core.model import Tier
from ..protocol.client import BrokerClient
from ..protocol.patience import patience
from ..protocol.rules import AllowanceDocument, WhoAsks
from .names import usable_groups

ASK_SECONDS = 2.0


class HubGroup(Protocol):
    """A group as the hub's database has it; `properties` is JSON."""

    name: str
    properties: Mapping[str, Any] | None


def who_asks(hub: str, user: str, server: str, groups: Iterable[HubGroup]) -> WhoAsks:
    """The user with the groups that a message can name, and of their properties what is a limit."""
    found = {group.name: group for group in groups}
    listed = [found[name] for name in usable_groups(found)[0]]
    properties = {
        group.name: {key: value for key, value in (group.properties or {}).items() if key in LIMIT_KEYS}
        for group in listed
    }
    return WhoAsks(
        hub=hub,
        user=user,
        server=server,
        groups=tuple(group.name for group in listed),
        properties=properties,
    )


async def refused_tiers(broker: BrokerClient, who: WhoAsks) -> dict[str, Refusal]:
    """Why this user can't start a tier now, by the tier's name.

    Raises Refusal if the broker can't say: without it there are no GPUs, and a server without one starts.
    """
    async with patience(ASK_SECONDS):
        found = await broker.ask("/allowance", AllowanceDocument, who)
    kinds = all_refusals()
    return {
        tier: kinds.get(refusal.reason, NotAllowed)(refusal.message)
        for tier, refusal in found.refused.items()
    }


async def check(broker: BrokerClient, who: WhoAsks, tier: Tier) -> None:
    """Raises the refusal that the user's quota has for the tier, before anything is begun.

    The broker asks once more, under its lock, when it gives the lease. One that can't be reached is waited
    for by the request of the lease, and isn't needed for a server without a GPU.
    """
    refused: dict[str, Refusal] = {}
    with suppress(Refusal, TimeoutError):
        refused = await refused_tiers(broker, who)
    if tier.name in refused:
        raise refused[tier.name]
