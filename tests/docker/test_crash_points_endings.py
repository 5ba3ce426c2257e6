"""kill -9 of the broker around each commit of a server that ends by itself: session limit and GPU-hours.

Real brokers and containers, on SQLite and on PostgreSQL; only the warnings come seconds before the end, not
minutes. Whatever the moment, the server is warned again, ends, and no device leaks. With the true times, on a
test's clock: tests/unit/broker/test_endings_killed.py.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import pytest
from gpuspawner.core.errors import BrokerUnavailable
from gpuspawner.protocol.rules import AllowanceDocument, WhoAsks

from tests.docker.place import ON_BOTH, Place, is_alive

pytestmark = pytest.mark.docker

COMMITS = 7
"""Reserved, running, warning, its record, that of the second warning (which says the same, in whole minutes),
releasing, closed."""
WARNINGS_SECONDS = (4.0, 2.0)
LASTS_SECONDS = 6.0
DOWN_SECONDS = 10.0
"""A busy machine needs up to so long until the next broker answers."""
QUOTAS = {
    "session_limit": {"session_hours": LASTS_SECONDS / 3600},
    "gpu_hours": {"gpu_hours": LASTS_SECONDS / 3600},
}


@dataclass
class Seen:
    """What a user saw of one server, by time.monotonic()."""

    warned: list[tuple[float, str]] = field(default_factory=list)
    ended_at: float = 0.0


async def watch(place: Place) -> Seen:
    """Looks until nothing is left; a broker that died is started again, as its keeper does."""
    seen = Seen()
    while True:
        if not is_alive(place.broker_pid):
            await place.restart()
        seen_at = time.monotonic()
        gone = not place.containers()
        seen.ended_at = seen.ended_at or (seen_at if gone else 0.0)
        try:
            leases = (await place.client.status())["leases"]
        except BrokerUnavailable:
            continue
        notices = {lease["notice"] for lease in leases} - {""}
        seen.warned += [(seen_at, each) for each in notices if (seen.warned or [(0, "")])[-1][1] != each]
        if gone and not leases:
            return seen
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", [*range(1, COMMITS + 1), COMMITS + 2])
@pytest.mark.parametrize("cause", ["session_limit", pytest.param("gpu_hours", marks=pytest.mark.slow)])
@ON_BOTH
async def test_broker_dies_at_a_commit_of_an_end(place: Place, cause: str, number: int, when: str) -> None:
    place.warnings = WARNINGS_SECONDS
    place.settings = {"GpuSite": {"quotas": [QUOTAS[cause]]}}
    pid = await place.start(commit=(number, when))
    began = await spawned(place)
    async with asyncio.timeout(60):
        seen = await watch(place)
    assert is_alive(pid) == (number > COMMITS)
    lasted = seen.ended_at - began
    assert LASTS_SECONDS - 1.0 <= lasted <= LASTS_SECONDS + WARNINGS_SECONDS[1] + 2 * DOWN_SECONDS
    ahead = [seen.ended_at - at for at, sentence in seen.warned if sentence.startswith("This server ends")]
    assert any(each >= WARNINGS_SECONDS[1] - 0.5 for each in ahead), seen
    status = await place.client.status()
    assert [device["lease_id"] for device in status["devices"]] == [None] * len(status["devices"])
    if cause == "gpu_hours":
        who = WhoAsks(hub="hub", user="anna", server="")
        (budget,) = (await place.client.ask("/allowance", AllowanceDocument, who)).budgets
        assert budget.used_gpu_seconds == pytest.approx(lasted, abs=2.0)


async def spawned(place: Place) -> float:
    """A server runs, whatever happens to the broker meanwhile; when it began."""
    while True:
        try:
            await place.server().spawn()
        except BrokerUnavailable:
            if not is_alive(place.broker_pid):
                await place.restart()
            continue
        return time.monotonic()
