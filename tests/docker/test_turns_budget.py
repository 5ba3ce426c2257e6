"""GPU-hours that run out in turns, with real brokers that are killed around each commit of it.

Two students compute in turns on one GPU; NVML and the CUDA driver are stand-ins, brokers and containers are
real. Whose GPU-hours are used up is warned, put to sleep and kept so; the program lives, and goes on with
new GPU-hours. Only the warnings come seconds before, not minutes. With the true times, on a test's clock:
tests/unit/broker/test_endings_killed.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from gpuspawner.core.errors import BrokerUnavailable
from gpuspawner.protocol.rules import AllowanceDocument, Grant, WhoAsks

from tests.docker.place import is_alive, until
from tests.docker.test_turns import Class, make_class

__all__ = ["make_class"]
pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(os.geteuid() != 0, reason="turns pause programs of containers, only as root"),
]

BUDGET_SECONDS = 5.0
WARNINGS_SECONDS = (3.0, 1.5)
LATE_SECONDS = 60.0
"""A busy machine needs up to so long for a few rounds, and until the next broker answers."""
MOMENTS = ("warned", "kept", "asleep", "freed", "woken")
"""Names of commits: tests/docker/zygote.py."""
ALWAYS = {("kept", "after"), ("asleep", "before")}
"""Walked in each run; the others in the slow rest."""
WALK = [
    pytest.param(
        database, moment, when,
        marks=() if database == "sqlite" and (moment, when) in ALWAYS else pytest.mark.slow,
    )
    for database in ("sqlite", "postgresql")
    for moment in MOMENTS
    for when in ("before", "after")
]  # fmt: skip
ANNA = WhoAsks(hub="hub", user="anna", server="")


@dataclass
class Budgeted:
    """Anna has few GPU-hours, ben has no limit."""

    room: Class
    told: list[str] = field(default_factory=list)
    """Anna's notices, as they changed."""

    async def begin(self, commit: tuple[str, str] | None) -> int:
        """Both compute; the pid of the first broker."""
        place = self.room.place
        place.warnings = WARNINGS_SECONDS
        place.settings["GpuSite"]["quotas"] = [{"user": "anna", "gpu_hours": BUDGET_SECONDS / 3600}]
        pid = await place.start(commit)
        for user in ("anna", "ben"):
            await self.room.join(user)
        for user in ("anna", "ben"):
            self.room.compute(user)
        return pid

    async def look(self, user: str = "anna") -> tuple[str, str, str]:
        """The state of the user's lease, its turn, why it is kept asleep; empty while no broker answers."""
        try:
            leases = (await self.room.place.client.status())["leases"]
        except BrokerUnavailable:
            return "", "", ""
        (found,) = (each for each in leases if each["user"] == user)
        if user == "anna" and found["notice"] not in ("", *self.told[-1:]):
            self.told.append(found["notice"])
        return found["state"], (found["turn"] or {"turn": ""})["turn"], found["kept_asleep"]

    async def is_kept_asleep(self) -> bool:
        """As the broker says, and as the driver does."""
        state, turn, why = await self.look()
        return bool(why) and (state, turn) == ("asleep", "asleep") and not self.runs("anna")

    async def computes(self, user: str) -> bool:
        """As the broker says, and as the driver does."""
        state, turn, why = await self.look(user)
        return (state, turn, why) == ("running", "awake", "") and self.runs(user)

    def runs(self, user: str) -> bool:
        """Whether its program is neither locked nor asleep."""
        with self.room.driver.processes() as found:
            return bool(found[str(self.room.pids[user])]["state"] == "running")

    async def grant_an_hour(self) -> None:
        """Once, whatever happens to the broker meanwhile."""

        async def given() -> bool:
            client = self.room.place.client
            with contextlib.suppress(BrokerUnavailable):
                allowed = await client.ask("/allowance", AllowanceDocument, ANNA)
                if allowed.budgets[0].limit_gpu_seconds > 3600:
                    return True
                more = Grant(subject="user:anna", gpu_hours=1, author="noether", reason="exam week")
                await client.tell("POST", "/api/grants", more)
            return False

        await until(given, LATE_SECONDS)

    def charged(self) -> float:
        """Anna's GPU-seconds, as the ledger has them."""
        return sum(seconds for user, seconds in self.room.spans() if user == "anna")


@pytest.fixture
async def restarting() -> AsyncIterator[Any]:
    """Starts what keeps a place's broker alive, as its keeper does."""
    tasks: list[asyncio.Task[None]] = []
    yield lambda place: tasks.append(asyncio.create_task(place.keep_restarting()))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(("place", "moment", "when"), WALK, indirect=["place"])
async def test_who_has_no_gpu_hours_left_sleeps_over_a_killed_broker(
    make_class: Any,
    restarting: Any,
    moment: str,
    when: str,
) -> None:
    budgeted = Budgeted(make_class())
    pid = await budgeted.begin((moment, when))
    restarting(budgeted.room.place)
    await until(budgeted.is_kept_asleep, LATE_SECONDS)
    assert budgeted.told[-1].startswith("This server sleeps. You have used ")
    assert budgeted.told[0].startswith("This server is put to sleep after 1 more minutes on a GPU, on ")
    used = budgeted.charged()
    assert used >= BUDGET_SECONDS - 0.5
    # Whoever wants the GPU has it alone, and whoever sleeps isn't charged, nor told anything else.
    await until(lambda: budgeted.computes("ben"), LATE_SECONDS)
    before = budgeted.room.awake_seconds["ben"]
    await until(lambda: budgeted.room.awake_seconds["ben"] > before + 2.0, LATE_SECONDS)
    assert await budgeted.is_kept_asleep()
    assert budgeted.charged() == pytest.approx(used, abs=1.0)
    await budgeted.grant_an_hour()
    await until(lambda: budgeted.computes("anna"), LATE_SECONDS)
    assert set(await budgeted.room.more_turns(4, LATE_SECONDS)) == {"anna", "ben"}
    assert not is_alive(pid)  # the walk met its commit
    assert is_alive(budgeted.room.pids["anna"])
    assert budgeted.room.place.containers() == {"anna": "running", "ben": "running"}
    # What happens while no broker runs is seen afterwards.
    assert budgeted.charged() == pytest.approx(budgeted.room.awake_seconds["anna"], abs=6.0)
