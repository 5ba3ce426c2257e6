"""GPUs in turns through a real hub: seats, pages and buttons, with helper and broker killed.

Hub, broker, Docker, labs and their programs are the real ones; NVML and the CUDA driver are stand-ins.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.standin import FOLDER, Standin
from tests.docker.place import is_alive
from tests.docker.test_guard import Box
from tests.hub.hubprocess import HubProcess, eventually
from tests.hub.test_spawn import Browser
from tests.nvml.scripted import ENVIRONMENT, Gpu, Script, build

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(os.geteuid() != 0, reason="turns pause programs of containers, only as root"),
]

GPU = "GPU-aaaaaaaa-0000-0000-0000-000000000001"
GIB = 1 << 30
PROGRAM = "/tmp/busybox-libcuda.so"
ROOT = Path(__file__).resolve().parents[2]
MORE = """
import sys
c.GpuSite.pools = [{"name": "turns", "mode": "turns", "seats": 2, "sleep_memory": "1G", "pause_after": 0.5,
                    "min_turn": 0.5, "max_turn": 60}]
c.GpuSite.tiers = [{"name": "cpu"}, {"name": "turns", "mode": "turns", "memory": "1G", "mem_limit": "256M"}]
gpu["command"] = [sys.executable, "-m", "tests.hub.scripted_broker", *gpu["command"][3:]]
gpu["environment"] = {**gpu["environment"], **ENVIRONMENT}
"""


class Class:
    """The students' programs, and what NVML lists of them."""

    def __init__(self, folder: Path) -> None:
        (folder / "driver").mkdir()
        self.driver = Standin(folder / "driver")
        self.script = Script(folder / "nvml", [Gpu(GPU, memory=5 * GIB, util=60)])
        self.script.write()
        self.pids: dict[str, int] = {}
        self.shared = 0
        """In how many looks two computed on the GPU."""
        service = {
            ENVIRONMENT: str(self.script.path), FOLDER: str(folder / "driver"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "spawner"), *sys.path]),
        }  # fmt: skip
        more = folder / "more.py"
        more.write_text(MORE.replace("ENVIRONMENT", repr(service)))
        self.environment = {
            ENVIRONMENT: str(self.script.path),
            "GPUSPAWNER_TEST_LIBRARIES": str(build().parent),
            "GPUSPAWNER_TEST_MORE": str(more),
        }

    async def compute(self, hub: HubProcess, user: str) -> None:
        """A program of the user's begins to use the GPU, and computes without end."""
        (container,) = hub.containers(user)
        box = Box(hub.engine, container["Id"])
        spin = f"exec {PROGRAM} sh -c 'echo -n {user} > /proc/self/comm; while :; do :; done'"
        box.run(f"/bin/busybox cp /bin/busybox {PROGRAM}; {spin}")
        await eventually(lambda: _true(user in box.pids()))
        self.pids[user] = box.pids()[user]
        self.driver.add(self.pids[user], {GPU: GIB // 2}, nodes=[GPU])

    async def watch(self) -> None:
        """Until cancelled, NVML lists what the driver says."""
        while True:
            with self.driver.processes() as found:
                states = {user: dict(found[str(pid)]) for user, pid in self.pids.items()}
            self.shared += sum(each["state"] == "running" for each in states.values()) > 1
            lines = [
                f"process gpu=0 pid={self.pids[user]} memory={size} mps=0 draws=0"
                for user, each in states.items()
                for size in each["gpus"].values()
                if is_alive(self.pids[user])
            ]
            if lines != self.script.lines:
                self.script.lines = lines
                self.script.write()
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module", autouse=True)
def students(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Class:
    """One H100 of 5 GiB in turns, with two seats; the driver is one that was checked before."""
    found = Class(tmp_path_factory.mktemp("turns"))
    request.module.HUB_ENVIRONMENT = found.environment
    return found


@pytest.fixture
async def room(hub: HubProcess, students: Class) -> AsyncIterator[Class]:
    """The driver was checked, so the pool opens."""
    (hub.folder / "turns-checked.json").write_text(json.dumps({"driver": students.script.driver}))
    watching = asyncio.create_task(students.watch())
    yield students
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching


async def _true(value: bool) -> bool:
    return value


async def turns(hub: HubProcess) -> dict[str, Any]:
    """The turn of each user, as the broker says it."""
    return {lease["user"]: lease["turn"] for lease in (await hub.broker_status())["leases"]}


async def is_turn(hub: HubProcess, **wanted: str) -> bool:
    found = await turns(hub)
    return all((found.get(user) or {}).get("turn") == turn for user, turn in wanted.items())


async def act(hub: HubProcess, user: str, action: str, whose: str = "") -> tuple[int, Any]:
    """The button of the user's page: a POST to the public API with a token of theirs."""
    status, made = await hub.call("POST", f"/users/{user}/tokens", {})
    assert status == 201, made
    leases = {lease["user"]: lease["id"] for lease in (await hub.broker_status())["leases"]}
    path = f"/services/gpu/api/leases/{leases[whose or user]}/{action}"
    headers = {"Authorization": f"token {made['token']}"}
    async with hub.session() as session, session.post(path, headers=headers) as answer:
        return answer.status, await answer.json()


def service(hub: HubProcess, module: str) -> int | None:
    """The pid of a process below the hub that runs this module."""
    parents: dict[int, tuple[int, str]] = {}
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parent = int((each / "stat").read_text().rsplit(")", 1)[1].split()[1])
            parents[int(each.name)] = parent, (each / "cmdline").read_text()
    for pid, (_, command) in parents.items():
        above = pid
        while above in parents and above != hub.pid:
            above = parents[above][0]
        if above == hub.pid and module in command:
            return pid
    return None


async def test_two_students_share_a_gpu_and_a_third_waits_for_a_seat(hub: HubProcess, room: Class) -> None:
    async with Browser(hub, "ben", hub.password) as browser:
        for user in ("ann", "ben"):
            assert (await hub.spawn(user, {"profile": "turns"})).ready
        assert (await hub.post("cem", {"profile": "turns"}))[0] == 202
        await eventually(lambda: is_turn(hub, ann="asleep", ben="asleep"))
        await room.compute(hub, "ann")
        await eventually(lambda: is_turn(hub, ann="awake"))
        await room.compute(hub, "ben")
        await eventually(lambda: is_turn(hub, ann="awake", ben="paused"))
        page = await browser.get("/services/gpu/")
    found = await turns(hub)
    assert (found["ann"]["gpu_uuid"], found["ann"]["position"], found["ben"]["position"]) == (GPU, None, 1)
    assert found["cem"] is None
    states = {user: state for user, _, state in await hub.leases()}
    assert states == {"ann": "running", "ben": "asleep", "cem": "waiting"}  # only ann is charged
    assert "keeps its memory on the GPU" in page
    assert "You are 1st in line for the GPU" in page
    await hub.stop_server("cem")  # no start waits while the broker is killed: no keeper restarts it here


async def test_the_buttons_pass_the_gpu_on(hub: HubProcess, room: Class) -> None:
    status, refused = await act(hub, "ben", "yield", whose="ann")
    assert (status, refused["reason"]) == (409, "lease_conflict")  # ben may not even know of it
    assert (await act(hub, "ann", "yield"))[0] == 200
    await eventually(lambda: is_turn(hub, ann="paused", ben="awake"))
    status, woken = await act(hub, "ann", "wake")
    assert (status, woken["turn"]["position"]) == (200, 1)
    assert {user: state for user, _, state in await hub.leases()} == {
        "ann": "asleep", "ben": "running",
    }  # fmt: skip


async def test_a_killed_helper_and_a_killed_broker_change_nothing(hub: HubProcess, room: Class) -> None:
    helper = service(hub, "tests.checkpoint.standin")
    assert helper is not None
    os.kill(helper, signal.SIGKILL)
    await eventually(lambda: act_done(hub, "ben", "yield"))
    await eventually(lambda: is_turn(hub, ann="awake", ben="paused"))
    broker = service(hub, "tests.hub.scripted_broker")
    assert broker is not None
    os.kill(broker, signal.SIGKILL)
    await eventually(lambda: _true(service(hub, "tests.hub.scripted_broker") not in (None, broker)), 90)
    await eventually(lambda: is_turn(hub, ann="awake", ben="paused"), 60)
    assert (await act(hub, "ann", "yield"))[0] == 200
    await eventually(lambda: is_turn(hub, ann="paused", ben="awake"))
    assert [is_alive(pid) for pid in room.pids.values()] == [True, True]
    assert room.shared < 10  # the moment in which ben's program began


async def act_done(hub: HubProcess, user: str, action: str) -> bool:
    return (await act(hub, user, action))[0] == 200


async def test_who_stops_gives_the_seat_to_the_next(hub: HubProcess, room: Class) -> None:
    """Also while its program is paused, which Docker must be able to kill."""
    assert (await hub.post("cem", {"profile": "turns"}))[0] == 202
    assert ("cem", "", "waiting") in await hub.leases()
    await hub.stop_server("ann")
    await eventually(lambda: is_turn(hub, cem="asleep"), 60)
    assert (await turns(hub)).keys() == {"ben", "cem"}
    assert not is_alive(room.pids["ann"])
    for user in ("ben", "cem"):
        await hub.stop_server(user)
    await eventually(lambda: empty(hub))


async def empty(hub: HubProcess) -> bool:
    return await hub.leases() == []
