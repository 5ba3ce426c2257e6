"""A machine that is away, and one that is back: nothing serves before Docker was compared with the ledger."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from gpuspawner.broker.enforce.presence import Presence, PresenceParts
from gpuspawner.broker.observe.metrics import Metrics
from gpuspawner.core.errors import EngineFault
from gpuspawner.node.api import NodeFacts

THERE, AWAY = NodeFacts("b"), NodeFacts("b", away="the machine b can't be reached: cut")


@dataclass
class Seen:
    """What the presence did, in order; `compared` are the answers of the comparison, then all are good."""

    did: list[str] = field(default_factory=list)
    compared: list[bool | Exception] = field(default_factory=list)
    during: Callable[[], None] = lambda: None

    async def set_away(self, reason: str) -> None:
        self.did.append(f"away {reason!r}")

    async def compare(self) -> bool:
        self.did.append("compare")
        self.during()
        answer = self.compared.pop(0) if self.compared else True
        if isinstance(answer, Exception):
            raise answer
        return answer

    def offer(self, facts: NodeFacts) -> None:
        self.did.append(f"offer {facts.name}")

    def presence(self, facts: NodeFacts) -> Presence:
        parts = PresenceParts(
            "b", self.set_away, self.compare, self.offer, Metrics([]), logging.getLogger("t"), 0.0
        )
        return Presence(parts, facts)


async def test_a_machine_that_is_there_is_offered_at_once() -> None:
    seen = Seen()
    await seen.presence(THERE).follow()
    assert seen.did == ["offer b"]


async def test_a_machine_serves_again_only_after_a_good_comparison() -> None:
    seen = Seen(compared=[False, EngineFault("down")])
    presence = seen.presence(AWAY)
    await presence.follow()
    presence.on_facts(AWAY)
    await presence.follow()
    assert seen.did == [f"away {AWAY.away!r}"]  # said once
    presence.on_facts(THERE)
    await presence.follow()
    with pytest.raises(EngineFault):
        await presence.follow()
    assert seen.did[1:] == ["compare", "compare"]
    await presence.follow()
    assert seen.did[3:] == ["compare", "away ''", "offer b"]


async def test_a_machine_that_goes_away_during_the_comparison_stays_away() -> None:
    seen = Seen()
    presence = seen.presence(AWAY)
    await presence.follow()
    presence.on_facts(THERE)
    seen.during = lambda: presence.on_facts(AWAY)
    await presence.follow()
    await presence.follow()
    assert seen.did == [f"away {AWAY.away!r}", "compare"]
