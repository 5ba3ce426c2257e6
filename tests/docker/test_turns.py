"""Turns through the whole broker: real brokers, containers, processes; NVML and CUDA driver are stand-ins.

A program is a process of a container that maps a file called like the CUDA library. While it is paused or
asleep it is stopped (SIGSTOP), so that its state can be seen from outside. Brokers are killed at any moment.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docker
import pytest
import sqlalchemy as sa
from gpuspawner.broker.ledger.schema import awake, leases
from gpuspawner.core.want import Mode, Want

from tests.checkpoint.standin import FOLDER, Standin
from tests.docker.life import Server
from tests.docker.place import Place, is_alive
from tests.docker.test_guard import Box
from tests.nvml.scripted import Gpu, Script
from tests.soon import SOON_SECONDS, until

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(os.geteuid() != 0, reason="turns pause programs of containers, only as root"),
]

A, B = "GPU-aaaaaaaa-0000-0000-0000-000000000001", "GPU-bbbbbbbb-0000-0000-0000-000000000002"
GIB = 1 << 30
PROGRAM = "/tmp/busybox-libcuda.so"
SHELL = f"/bin/busybox mkdir -p /tmp; /bin/busybox cp /bin/busybox {PROGRAM}; /bin/busybox sleep 600"
WANT = Want(1, mode=Mode.TURNS, memory_bytes=GIB)


@dataclass
class Class:
    """Students in turns. While it watches, NVML lists what the driver has, and who computes is counted."""

    place: Place
    engine: docker.APIClient
    script: Script
    driver: Standin
    gpus: tuple[str, ...]
    servers: dict[str, Server] = field(default_factory=dict)
    pids: dict[str, int] = field(default_factory=dict)
    shared_seconds: float = 0.0
    """How long two computed on one GPU, in all."""
    awake_seconds: dict[str, float] = field(default_factory=dict)
    turns: list[str] = field(default_factory=list)
    """Who got a GPU, in order."""

    async def join(self, user: str, wait: bool = True) -> Server:
        """A student's server starts; with `wait` False it may have to wait for a seat."""
        server = self.place.server(user, want=WANT, command=("/bin/busybox", "sh", "-c", SHELL))
        self.servers[user] = server
        if wait:
            await server.spawn()
        return server

    def compute(self, user: str, gib: float = 0.5) -> int:
        """Its program begins to use its home GPU."""
        box = Box(self.engine, self.servers[user].container_id)
        box.run(f"exec {PROGRAM} sh -c 'echo -n {user} > /proc/self/comm; while :; do :; done'")
        end = time.monotonic() + SOON_SECONDS
        while user not in (found := box.pids()):
            assert time.monotonic() < end, found
            time.sleep(0.02)
        pid = self.pids[user] = found[user]
        home = self.engine.inspect_container(box.id)["Config"]["Env"]
        (uuid,) = (line.partition("=")[2] for line in home if line.startswith("CUDA_VISIBLE_DEVICES="))
        self.driver.add(pid, {uuid: int(gib * GIB)}, nodes=list(self.gpus))
        return pid

    async def watch(self) -> None:
        """Until cancelled: NVML follows the driver, and who computes is written down."""
        last, awake_before = time.monotonic(), {}
        while True:
            await asyncio.sleep(0.02)
            now = time.monotonic()
            with self.driver.processes() as found:
                states = {user: dict(found[str(pid)]) for user, pid in self.pids.items() if str(pid) in found}
            listed = [
                f"process gpu={self.gpus.index(uuid)} pid={self.pids[user]} memory={size} mps=0 draws=0"
                for user, each in states.items()
                for uuid, size in each["gpus"].items()
            ]
            if listed != self.script.lines:
                self.script.lines = listed
                self.script.write()
            running = {user: each for user, each in states.items() if each["state"] == "running"}
            awake = {user: next(iter(each["gpus"])) for user, each in running.items()}
            for user in awake:
                self.awake_seconds[user] = self.awake_seconds.get(user, 0.0) + now - last
                if awake_before.get(user) != awake[user]:
                    self.turns.append(user)
            if len(set(awake.values())) < len(awake):
                self.shared_seconds += now - last
            last, awake_before = now, awake

    async def leases(self) -> dict[str, tuple[str, str | None]]:
        """Each user's state in the ledger, and the turn that people see."""
        status = await self.place.client.status()
        return {
            lease["user"]: (lease["state"], None if lease["turn"] is None else lease["turn"]["turn"])
            for lease in status["leases"]
        }

    async def more_turns(self, count: int, seconds: float = 20.0) -> list[str]:
        """Waits for so many more; who got them."""
        before = len(self.turns)
        await until(lambda: len(self.turns) >= before + count, seconds)
        return self.turns[before : before + count]

    def spans(self) -> list[tuple[str, float]]:
        """The ledger's intervals: user and seconds; one that is open counts up to now."""
        url = self.place.database_url or f"sqlite:///{self.place.folder}/ledger.sqlite"
        columns = (leases.c.user, awake.c.seconds, awake.c.started_at, awake.c.ended_at)
        query = sa.select(*columns).join(leases, leases.c.id == awake.c.lease_id)
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.connect() as ledger:
            rows = ledger.execute(query).all()
        now = datetime.now(UTC)
        return [
            (user, seconds if ended else (now - started).total_seconds())
            for user, seconds, started, ended in rows
        ]


@pytest.fixture
async def make_class(place: Place, engine: docker.APIClient, tmp_path: Path) -> AsyncIterator[Any]:
    watching: list[asyncio.Task[None]] = []

    def make(gpus: tuple[str, ...] = (A,), **pool: Any) -> Class:
        driver = Standin(place.folder)
        script = Script(tmp_path / "nvml", [Gpu(uuid, memory=5 * GIB, util=60) for uuid in gpus])
        script.write()
        place.nvml, place.env = str(script.path), {FOLDER: str(place.folder)}
        given = {"name": "turns", "mode": "turns", "seats": 2, "sleep_memory": "1G", "pause_after": 0.5,
                 "min_turn": 0.5, "max_turn": 1.0, **pool}  # fmt: skip
        place.settings = {
            "GpuSite": {
                "inventory": "nvml", "pools": [given],
                "tiers": [{"name": "cpu"}, {"name": "gpu", "mode": "turns", "memory": "1G"}],
            }
        }  # fmt: skip
        (place.folder / "turns-checked.json").write_text(json.dumps({"driver": script.driver}))
        found = Class(place, engine, script, driver, gpus)
        watching.append(asyncio.create_task(found.watch()))
        return found

    yield make
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)


async def test_two_students_alternate_on_one_gpu_and_a_third_waits_for_a_seat(make_class: Any) -> None:
    room: Class = make_class()
    await room.place.start()
    for user in ("anna", "ben"):
        await room.join(user)
    await until(lambda: _seen(room, "anna", "ben"))
    cem = await room.join("cem", wait=False)
    spawning = asyncio.create_task(cem.spawn())
    await until(lambda: cem.queued)
    assert await room.leases() == {
        "anna": ("asleep", "asleep"), "ben": ("asleep", "asleep"), "cem": ("waiting", None),
    }  # fmt: skip
    anna = room.compute("anna")
    await until(lambda: _awake(room, "anna"))
    room.compute("ben")
    await until(lambda: _turn(room, "ben", "paused"))
    assert await room.more_turns(6) in (["ben", "anna"] * 3, ["anna", "ben"] * 3)
    assert room.shared_seconds < 0.5  # the moment in which ben's program began
    await until(lambda: _shown_awake(room))
    # Whoever ends in whatever state frees a seat.
    await room.place.client.release(room.servers["ben"].lease_id)
    await spawning
    await until(lambda: _seen(room, "anna", "cem"))
    assert is_alive(anna)
    spans = room.spans()
    charged = sum(seconds for user, seconds in spans if user == "anna")
    assert charged == pytest.approx(room.awake_seconds["anna"], abs=1.5)
    assert {user for user, _ in spans} == {"anna", "ben"}


async def test_wake_now_and_give_up_on_the_socket(make_class: Any) -> None:
    room: Class = make_class(max_turn=60)
    await room.place.start()
    for user in ("anna", "ben"):
        await room.join(user)
    room.compute("anna")
    await until(lambda: _awake(room, "anna"))
    room.compute("ben")
    await until(lambda: _turn(room, "ben", "paused"))
    answer = await room.place.client.turn(room.servers["anna"].lease_id, "yield")
    assert answer["turn"] in ("awake", "paused")
    await until(lambda: _awake(room, "ben"))
    assert (await room.place.client.turn(room.servers["anna"].lease_id, "wake"))["position"] == 1


@pytest.mark.parametrize("gpus", [(A,), (A, B)])
async def test_a_broker_killed_at_any_moment_finds_everybody_and_goes_on(
    make_class: Any, gpus: tuple[str, ...]
) -> None:
    """Two programs of 1.5 GiB don't fit beside the reserve of 3 on 5 GiB: each switch moves memory."""
    room: Class = make_class(gpus, seats=4, sleep_memory="2G")
    await room.place.start()
    users = ("anna", "ben", "cem")
    for user in users:
        await room.join(user)
    pids = [room.compute(user, 1.5) for user in users]
    await room.more_turns(4, 30)
    for delay in (0.0, 0.1, 0.25, 0.4, 0.6):
        await asyncio.sleep(delay)
        await room.place.kill_broker()
        await asyncio.sleep(0.3)
        await room.place.restart()
        await until(lambda: _seen(room, *users))
        assert set(await room.more_turns(8, 40)) == set(users)
    assert [is_alive(pid) for pid in pids] == [True] * 3
    assert room.shared_seconds < 1.5
    awake = sum(1 for state, _ in (await room.leases()).values() if state == "running")
    assert awake <= len(gpus)
    spans = room.spans()
    for user in users:
        charged = sum(seconds for name, seconds in spans if name == user)
        # A kill loses what was not written yet, and what happens while no broker runs is seen afterwards.
        assert charged == pytest.approx(room.awake_seconds[user], abs=6.0)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
async def test_a_broker_that_dies_at_a_turn_s_commit(make_class: Any, number: int, when: str) -> None:
    room: Class = make_class()
    await room.place.start()
    for user in ("anna", "ben"):
        await room.join(user)
        room.compute(user)
    await room.more_turns(2)
    await room.place.kill_broker()
    room.place._mark = len(room.place.log)
    pid = await room.place.start((number, when))
    await until(lambda: not is_alive(pid))
    await room.place.restart()
    await until(lambda: _seen(room, "anna", "ben"))
    assert set(await room.more_turns(4)) == {"anna", "ben"}
    states = sorted(state for state, _ in (await room.leases()).values())
    assert states in (["asleep", "running"], ["asleep", "asleep"])


async def _seen(room: Class, *users: str) -> bool:
    """Whether the broker has looked at these."""
    leases = await room.leases()
    return all(leases.get(user, ("", None))[1] is not None for user in users)


async def _awake(room: Class, user: str) -> bool:
    return (await room.leases())[user] == ("running", "awake")


async def _shown_awake(room: Class) -> bool:
    """Whether the status names who is awake on the GPU; between two turns nobody is."""
    status = await room.place.client.status()
    (device,) = status["devices"]
    assert (device["free_seats"], device["total_seats"]) == (0, 2)
    awake = [lease["id"] for lease in status["leases"] if lease["state"] == "running"]
    return bool(awake) and awake == [device["lease_id"]]


async def _turn(room: Class, user: str, turn: str) -> bool:
    return (await room.leases())[user][1] == turn
