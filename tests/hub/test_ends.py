"""Servers that end through a real hub: an idle GPU when somebody waits, and others when a class begins.

The broker's warnings come seconds before the end and not minutes (`quick_broker`); all else is as it is.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.protocol.client import BrokerClient
from gpuspawner.protocol.rules import KernelsMessage

from tests.hub.hubprocess import HubProcess, eventually
from tests.hub.test_quota import make_group
from tests.hub.test_rules import rules

pytestmark = pytest.mark.docker

HUB_ENVIRONMENT = {"GPUSPAWNER_TEST_MORE": str(Path(__file__).with_name("ends_config.py"))}
END_SECONDS = 120.0
"""Until something ends, on a busy machine."""


class Notices:
    """What users read in their labs, as it changes."""

    def __init__(self, hub: HubProcess) -> None:
        self._hub = hub
        self.of: dict[str, list[str]] = {}

    async def look(self) -> list[dict[str, Any]]:
        """The living leases; new notices are noted."""
        leases: list[dict[str, Any]] = (await self._hub.broker_status())["leases"]
        for lease in leases:
            seen = self.of.setdefault(lease["user"], [])
            if lease["notice"] not in ("", *seen[-1:]):
                seen.append(lease["notice"])
        return leases

    async def is_gone(self, user: str) -> bool:
        """For the broker, for the hub and for Docker."""
        leases = await self.look()
        model = await self._hub.server(user)
        stopped = model is None or (model["stopped"] and not model["pending"])
        return user not in [each["user"] for each in leases] and stopped and not self._hub.containers(user)

    async def has(self, user: str, count: int) -> bool:
        """Whether the user has read so many sentences that differ."""
        await self.look()
        return len(self.of.get(user, ())) >= count


async def test_an_idle_gpu_is_warned_of_twice_and_goes_to_who_waits(hub: HubProcess) -> None:
    """Bob computes without output, ada does nothing; nobody loses anything before somebody waits."""
    for user in ("ada", "bob"):
        assert (await hub.spawn(user, {"profile": "gpu"})).ready
    notices = Notices(hub)
    ids = {each["user"]: each["id"] for each in await notices.look()}
    client = BrokerClient(str(hub.folder / "broker.sock"))
    try:
        idle = KernelsMessage(busy=False, active_at=datetime.now(UTC))
        await client.tell("POST", f"/leases/{ids['ada']}/kernels", idle)
        await client.tell("POST", f"/leases/{ids['bob']}/kernels", KernelsMessage(busy=True))
    finally:
        await client.close()
    await eventually(lambda: notices.has("ada", 1), END_SECONDS)
    await asyncio.sleep(12)  # longer than after which it would be stopped
    assert [each["user"] for each in await notices.look()] == ["ada", "bob"]
    what = "no notebook of this server has computed anything"
    for sentence in notices.of["ada"]:  # the second warning says the same, in whole minutes
        assert sentence.startswith(f"For 1 minute {what}")
        assert "It will be stopped if somebody waits for it on " in sentence
    waits = asyncio.create_task(hub.spawn("carl", {"profile": "gpu"}))
    await eventually(lambda: notices.is_gone("ada"), END_SECONDS)
    assert (await waits).ready
    assert await hub.leases() == [("bob", "", "running"), ("carl", "", "running")]
    assert notices.of.get("bob", []) == []
    for user in ("bob", "carl"):
        await hub.stop_server(user)
    assert "Traceback" not in hub.log


def next_minute(ahead_seconds: float) -> datetime:
    """The next full minute that is at least so far away."""
    at = datetime.now(UTC) + timedelta(seconds=ahead_seconds)
    return at.replace(second=0, microsecond=0) + timedelta(minutes=1)


async def until(at: datetime) -> None:
    """Waits for that time."""
    await asyncio.sleep(max(0.0, (at - datetime.now(UTC)).total_seconds()))


@pytest.mark.slow
async def test_a_class_gets_its_places_and_gives_back_what_it_does_not_use(hub: HubProcess) -> None:
    """Both GPUs are others' when it begins; one of its two members comes, and the other's place goes back."""
    await make_group(hub, "class", ["mia", "max"], {})
    for user in ("otto", "paul"):
        assert (await hub.spawn(user, {"profile": "gpu"})).ready
    begin, grace = next_minute(20), timedelta(seconds=90)
    lab = {
        "name": "lab", "group": "class", "tier": "gpu", "seats": 2, "first": f"{begin:%Y-%m-%d}",
        "begins": f"{begin:%H:%M}", "length_seconds": 3600, "timezone": "UTC", "lead_seconds": 0,
        "grace_seconds": grace.total_seconds(),
    }  # fmt: skip
    assert (await rules(hub, "POST", "sessions", {"session": lab, "reason": "course"}))[0] == 200
    notices = Notices(hub)
    for user in ("otto", "paul"):
        await eventually(lambda user=user: notices.has(user, 1), END_SECONDS)
        assert datetime.now(UTC) < begin
        assert notices.of[user][0].endswith(": a lab session needs its GPU then. Save your work.")
    for user in ("otto", "paul"):
        await eventually(lambda user=user: notices.is_gone(user), END_SECONDS)
    assert datetime.now(UTC) >= begin
    assert (await hub.spawn("mia", {"profile": "gpu"})).ready
    status, body = await hub.post("otto", {"profile": "gpu"})
    assert datetime.now(UTC) < begin + grace
    assert (status, "The lab session 'lab' has these GPUs" in body) == (409, True)
    await until(begin + grace)
    assert (await hub.spawn("otto", {"profile": "gpu"})).ready
    assert await hub.leases() == [("mia", "", "running"), ("otto", "", "running")]
    assert (await rules(hub, "DELETE", "sessions/lab"))[0] == 204
    for user in ("mia", "otto"):
        await hub.stop_server(user)
    assert "Traceback" not in hub.log
