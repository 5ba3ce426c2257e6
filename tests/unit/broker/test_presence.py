"""A machine that is away, and one that is back: nothing serves before Docker was compared with the ledger."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from gpuspawner.broker.enforce.presence import Presence, PresenceParts
from gpuspawner.broker.observe.metrics import Metrics
from gpuspawner.core.errors import EngineFault
from gpuspawner.node.api import NodeFacts

from tests.soon import SOON_SECONDS

THERE, AWAY = NodeFacts("b"), NodeFacts("b", away="the machine b can't be reached: cut")


@dataclass
class Seen:
    """What the presence did, in order; `compared` are the answers of the comparison, then all are good."""

    did: list[str] = field(default_factory=list)
    compared: list[bool | Exception] = field(default_factory=list)
    during: Callable[[], None] = lambda: None
    round_seconds: float | None = None

    async def set_away(self, reason: str) -> None:
        self.did.append(f"away {reason!r}")

    async def compare(self) -> bool:
        self.did.append("compare")
        self.during()
        answer = self.compared.pop(0) if self.compared else True
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def take_up(self, facts: NodeFacts) -> None:
        self.did.append(f"take up {facts.name}")

    def offer(self, facts: NodeFacts) -> None:
        self.did.append(f"offer {facts.name}")

    def presence(self, facts: NodeFacts) -> Presence:
        parts = PresenceParts(
            "b", self.set_away, self.take_up, self.compare, self.offer, Metrics([]), logging.getLogger("t"),
            round_seconds=self.round_seconds, retry_seconds=0.0,
        )  # fmt: skip
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
    assert seen.did[1:] == ["take up b", "compare", "compare"]
    await presence.follow()
    assert seen.did[4:] == ["compare", "away ''", "offer b"]
    assert presence.is_taken_up


async def test_a_machine_that_goes_away_during_the_comparison_stays_away() -> None:
    seen = Seen()
    presence = seen.presence(AWAY)
    await presence.follow()
    presence.on_facts(THERE)
    seen.during = lambda: presence.on_facts(AWAY)
    await presence.follow()
    await presence.follow()
    assert seen.did == [f"away {AWAY.away!r}", "take up b", "compare"]
    assert not presence.is_taken_up


async def test_one_that_is_back_before_anybody_looked_is_compared_all_the_same() -> None:
    seen = Seen()
    presence = seen.presence(AWAY)
    presence.on_facts(THERE)
    await presence.follow()
    assert seen.did == ["take up b", "compare", "away ''", "offer b"]


async def test_a_machine_with_its_own_docker_is_away_while_that_is_silent() -> None:
    seen = Seen(round_seconds=5.0)
    presence = seen.presence(THERE)
    await presence.follow()
    assert seen.did == ["compare", "offer b"]
    seen.compared = [EngineFault("down"), EngineFault("down"), EngineFault("down")]
    for _ in range(3):
        with pytest.raises(EngineFault):
            await presence.follow()
    away = 'away "the Docker Engine of machine b can\'t be asked: down"'
    assert seen.did[2:] == ["compare", "compare", away, "compare"]
    await presence.follow()
    assert seen.did[6:] == ["compare", "away ''", "offer b"]


async def test_its_docker_is_compared_without_any_news() -> None:
    seen = Seen(round_seconds=0.01)
    running = asyncio.create_task(seen.presence(THERE).run())
    async with asyncio.timeout(SOON_SECONDS):
        while seen.did.count("compare") < 3:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
