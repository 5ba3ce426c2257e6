"""kill -9 of the broker before and after each commit of a decision: quotas, grants, sessions, extensions.

Whoever decided learns that the answer was lost. After a restart the decision holds as a whole or not at all,
it holds once, and the same can be asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from gpuspawner.core.errors import BrokerUnavailable, LeaseConflict, QuotaDevices, Refusal
from gpuspawner.protocol.client import BrokerClient
from gpuspawner.protocol.messages import Message
from gpuspawner.protocol.rules import (
    AllowanceDocument,
    Extend,
    ExtendedDocument,
    Grant,
    QuotaChange,
    QuotaRemoval,
    QuotasDocument,
    SessionCancel,
    SessionChange,
    SessionDocument,
    SessionsDocument,
    WhoAsks,
)

from tests.docker.place import ON_BOTH, Place, is_alive
from tests.soon import until

pytestmark = pytest.mark.docker

WHO = {"author": "noether", "reason": "exam week"}
LAB: dict[str, Any] = {
    "name": "lab", "group": "class", "tier": "gpu", "seats": 1, "begins": "10:00", "length_seconds": 3600,
    "first": f"{datetime.now(UTC).year + 1}-10-12",
}  # fmt: skip
SET = QuotaChange(subject="user:anna", values={"devices": 2}, **WHO)
UNSET = QuotaRemoval(subject="user:anna", **WHO)
GRANT = Grant(subject="user:anna", gpu_hours=2, **WHO)
CHANGED, CANCELLED = SessionChange(session=LAB, **WHO), SessionCancel(**WHO)

State = tuple[list[tuple[str, Any]], float, list[str]]
"""What was changed at run time, anna's GPU-hours in this week, and the lab sessions."""


@dataclass(frozen=True)
class Step:
    """A decision over the socket."""

    method: str
    path: str
    body: Message
    answer: type[Message] | None = None

    async def take(self, client: BrokerClient) -> None:
        if self.answer is not None:
            await client.ask(self.path, self.answer, self.body)
        else:
            await client.tell(self.method, self.path, self.body)


STEPS = {
    "quota": Step("POST", "/api/quotas", SET),
    "removal": Step("DELETE", "/api/quotas", UNSET),
    "grant": Step("POST", "/api/grants", GRANT),
    "session": Step("POST", "/api/sessions", CHANGED, SessionDocument),
    "cancel": Step("DELETE", "/api/sessions/lab", CANCELLED),
}


async def state(client: BrokerClient) -> State:
    quotas = await client.ask("/api/quotas", QuotasDocument)
    sessions = await client.ask("/api/sessions", SessionsDocument)
    anna = await client.ask("/allowance", AllowanceDocument, WhoAsks(hub="hub", user="anna", server=""))
    changed = [(each.subject, each.changed) for each in quotas.quotas if each.changed]
    hours = anna.budgets[0].limit_gpu_seconds / 3600
    return changed, hours, [str(each.session["name"]) for each in sessions.sessions]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "names",
    [("quota",), ("quota", "removal"), ("grant",), ("session",), ("session", "cancel")],
)
@ON_BOTH
async def test_broker_dies_at_a_decision(place: Place, names: tuple[str, ...], when: str) -> None:
    steps = [STEPS[name] for name in names]
    place.settings = {"GpuSite": {"quotas": [{"gpu_hours": 10}]}}
    pid = await place.start(commit=(len(steps), when))
    for step in steps[:-1]:
        await step.take(place.client)
    old = await state(place.client)
    with pytest.raises(BrokerUnavailable):
        await steps[-1].take(place.client)
    await until(lambda: not is_alive(pid))
    await place.restart()
    found = await state(place.client)
    if when == "before":
        assert found == old
        await steps[-1].take(place.client)
        found = await state(place.client)
    wanted = {
        "quota": ([("user:anna", {"devices": 2})], 10.0, []),
        "grant": ([], 12.0, []),
        "session": ([], 10.0, ["lab"]),
    }
    assert found == wanted.get(names[-1], ([], 10.0, []))
    history = (await place.client.ask("/api/quotas", QuotasDocument)).history
    assert [each.author for each in history] == ["noether"] * len(
        [s for s in steps if "sessions" not in s.path]
    )


@pytest.mark.parametrize("when", ["before", "after"])
@ON_BOTH
async def test_broker_dies_at_an_extension(place: Place, when: str) -> None:
    """1 reserved, 2 running, 3 the extension: the server runs on, and has its time once."""
    place.settings = {"GpuSite": {"quotas": [{"session_hours": 1, "extend_hours": 0.5}]}}
    pid = await place.start(commit=(3, when))
    anna = place.server()
    await anna.spawn()
    await place.settled("anna")
    path, body = f"/leases/{anna.lease_id}/extend", Extend(seconds=1200, author="anna")
    with pytest.raises(BrokerUnavailable):
        await place.client.ask(path, ExtendedDocument, body)
    await until(lambda: not is_alive(pid))
    await place.restart()
    await place.settled("anna")
    left = await place.client.ask(path, ExtendedDocument, Extend(seconds=1800, author="anna"))
    assert left.seconds == (1800 if when == "before" else 600)


@pytest.mark.parametrize("when", ["before", "after"])
@ON_BOTH
async def test_broker_dies_at_a_quota_that_ends_servers(place: Place, when: str) -> None:
    """1 reserved, 2 running, 3 the change and whom it ends: both hold after a restart, or neither does."""
    place.warnings = (4.0, 2.0)
    place.settings = {"GpuSite": {"quotas": [{"gpu_hours": 10}]}}
    pid = await place.start(commit=(3, when))
    await place.server().spawn()
    await place.settled("anna")
    change = QuotaChange(subject="user:anna", values={"devices": 0}, end_servers=True, **WHO)
    with pytest.raises(BrokerUnavailable):
        await place.client.tell("POST", "/api/quotas", change)
    await until(lambda: not is_alive(pid))
    await place.restart()
    changed, _, _ = await state(place.client)
    if when == "before":
        assert changed == []
        await place.settled("anna")
        assert [lease["notice"] for lease in (await place.client.status())["leases"]] == [""]
        await place.client.tell("POST", "/api/quotas", change)
        changed, _, _ = await state(place.client)
    assert changed == [("user:anna", {"devices": 0})]
    await place.settled()  # warned, the lease is closed and its container gone
    assert "This server was ended: your quota was changed." in place.log
    history = (await place.client.ask("/api/quotas", QuotasDocument)).history
    assert len(history) == 1


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", [4, 5])
@ON_BOTH
async def test_broker_dies_while_a_changed_quota_sends_somebody_away(
    place: Place, number: int, when: str
) -> None:
    """1 reserved, 2 running, 3 the second waits, 4 the change, 5 the second's request is closed."""
    place.settings = {"GpuSite": {"simulated_devices": "1 x H100 80GB"}}
    pid = await place.start(commit=(number, when))
    anna, ben = place.server(), place.server("ben")
    await anna.spawn()
    await place.settled("anna")
    waiting = asyncio.create_task(ben.spawn())
    await until(lambda: ben.queued)
    change = QuotaChange(subject="user:ben", values={"devices": 0}, **WHO)
    await refused_or_lost(lambda: place.client.tell("POST", "/api/quotas", change))
    await until(lambda: not is_alive(pid))
    await place.restart()
    await place.client.tell("POST", "/api/quotas", change)
    with pytest.raises(Refusal) as caught:
        await waiting
    assert caught.type in (QuotaDevices, LeaseConflict)  # whether the old broker or the new one told it
    await place.settled("anna")
    assert (await place.client.status())["queue"] == []


async def refused_or_lost(ask: Callable[[], Awaitable[None]]) -> None:
    """The broker dies in it, or right after its answer."""
    try:
        await ask()
    except BrokerUnavailable:
        return
