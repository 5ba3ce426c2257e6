"""The guard against real processes in real containers, which a scripted NVML lists by their real pids."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import docker
import pytest
from gpuspawner.core.units import utc_now
from gpuspawner.node.guard.guard import Guard, GuardEvent, GuardSettings
from gpuspawner.node.guard.judge import Offence, Quota, QuotaPlan, Rules
from gpuspawner.node.inventory import NvmlInventory
from gpuspawner.node.processes import ProcessTable
from gpuspawner.node.usage import UsageMonitor, UsageSettings

from tests.docker.life import remove
from tests.nvml import scripted
from tests.nvml.scripted import Gpu, Script
from tests.soon import SOON_SECONDS, until

pytestmark = pytest.mark.docker

A, B = "GPU-aaaaaaaa-0000-0000-0000-000000000001", "GPU-bbbbbbbb-0000-0000-0000-000000000002"
GIB = 1 << 30


@dataclass
class Box:
    """A container whose processes each sleep."""

    engine: docker.APIClient
    id: str

    def pids(self) -> dict[str, int]:
        """Host pids by the processes' names."""
        found = self.engine.top(self.id, ps_args="-o pid,comm")["Processes"]
        return {name: int(pid) for pid, name in found}

    def run(self, script: str) -> None:
        """Runs a shell script in it, in the background."""
        made = self.engine.exec_create(self.id, ["/bin/busybox", "sh", "-c", script])
        self.engine.exec_start(made["Id"], detach=True)

    def sleeper(self, name: str, how: str = "{}") -> int:
        """A process of that name, started `how`; its pid on the host."""
        self.run(how.format(f"echo -n {name} > /proc/self/comm; while :; do sleep 600; done"))
        return waited(lambda: self.pids().get(name[:15]))


@dataclass
class Lab:
    """Containers, scripted GPUs and the guard's events."""

    engine: docker.APIClient
    image: str
    script: Script
    inventory: NvmlInventory
    events: list[GuardEvent] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)

    def box(self) -> Box:
        command = [
            "/bin/busybox",
            "sh",
            "-c",
            "/bin/busybox mkdir -p /tmp; /bin/busybox --install -s /bin; sleep 600",
        ]
        made = self.engine.create_container(self.image, command, labels={"gpuspawner-test": "guard"})
        box = Box(self.engine, made["Id"])
        self.boxes.append(box)
        self.engine.start(box.id)
        waited(lambda: "sleep" in box.pids())
        return box

    @asynccontextmanager
    async def guarding(self, *quotas: Quota, **more: frozenset[str]) -> AsyncIterator[Guard]:
        async def on_event(event: GuardEvent) -> None:
            self.events.append(event)

        guard = Guard(self.inventory, on_event)
        await guard.start(QuotaPlan(quotas, **more))
        try:
            yield guard
            assert guard.failures == 0
        finally:
            await guard.stop()

    async def until_events(self, count: int) -> None:
        """Waits for that many events."""
        await until(lambda: len(self.events) >= count)


def waited(what: Callable[[], int | bool | None]) -> int:
    """What it returns, once that is true."""
    end = time.monotonic() + SOON_SECONDS
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return int(found)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def quota(box: Box, gib: int = 8, device: str = A, **more: bool) -> Quota:
    return Quota(f"lease-of-{box.id[:4]}", box.id, device, gib * GIB, **more)


@pytest.fixture
def lab(engine: docker.APIClient, tiny_image: str, tmp_path: Path) -> Iterator[Lab]:
    with scripted.loaded(tmp_path / "nvml") as script:
        script.gpus = [Gpu(A), Gpu(B)]
        script.write()
        inventory = NvmlInventory()
        lab = Lab(engine, tiny_image, script, inventory)
        yield lab
        inventory.close()
        for box in lab.boxes:
            remove(engine, box.id)


async def test_the_process_that_grew_ends_and_all_others_live(lab: Lab) -> None:
    anna, ben = lab.box(), lab.box()
    kernel, script, neighbour = anna.sleeper("kernel"), anna.sleeper("script"), ben.sleeper("neighbour")
    lab.script.process(kernel, 6 * GIB)
    lab.script.process(neighbour, 8 * GIB)
    line = lab.script.process(script, 1 * GIB)
    async with lab.guarding(quota(anna), quota(ben)):
        await asyncio.sleep(1.2)
        lab.script.drop(line)
        lab.script.process(script, 3 * GIB)
        await lab.until_events(1)
        waited(lambda: not alive(script))
        await asyncio.sleep(1.5)
    (event,) = lab.events
    assert event == GuardEvent(
        at=event.at,
        offence=Offence.MEMORY,
        container_id=anna.id,
        lease_id=f"lease-of-{anna.id[:4]}",
        device_uuid=A,
        pid=script,
        name="script",
        used_bytes=9 * GIB,
        quota_bytes=8 * GIB,
        over_seconds=event.over_seconds,
        sentence=(
            f"Your process 'script' was ended: this server used 9.0 GiB of its 8.0 GiB of GPU memory for "
            f"{event.over_seconds:.1f} s. If it was a notebook's kernel, restart it; use smaller batches or "
            "a smaller model, and shut down kernels that you no longer need: each keeps its memory."
        ),
    )
    assert event.over_bytes == GIB
    assert event.over_seconds >= 2.0
    assert [alive(pid) for pid in (kernel, neighbour, *anna.pids().values())] == [True] * 4


@pytest.mark.parametrize("how", ["( ( {} ) & )", "setsid sh -c '{}' &", "{}"])
async def test_hiding_behind_forks_does_not_help(lab: Lab, how: str) -> None:
    anna = lab.box()
    hidden = anna.sleeper("hidden", how)
    lab.script.process(hidden, 20 * GIB)
    async with lab.guarding(quota(anna)):
        await lab.until_events(1)
        waited(lambda: not alive(hidden))
    assert lab.events[0].over_seconds < 2.0  # far over: no grace


async def test_memory_that_is_taken_for_graphics_counts(lab: Lab) -> None:
    """Half by CUDA, half by Vulkan: neither is over the quota, both together are."""
    anna = lab.box()
    computes, draws = anna.sleeper("computes"), anna.sleeper("draws")
    lab.script.process(computes, 5 * GIB)
    lab.script.process(draws, 6 * GIB, draws=1)
    async with lab.guarding(quota(anna)):
        await lab.until_events(1)
        waited(lambda: not alive(draws))
    assert [(event.pid, event.used_bytes) for event in lab.events] == [(draws, 11 * GIB)]
    assert alive(computes)


async def test_calling_itself_mps_server_does_not_help(lab: Lab) -> None:
    anna = lab.box()
    pid = anna.sleeper("nvidia-cuda-mps-server")
    lab.script.process(pid, 20 * GIB)
    async with lab.guarding(quota(anna)):
        await lab.until_events(1)
    assert lab.events[0].name == "nvidia-cuda-mps"


async def test_who_is_not_ours_is_left_alone(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    anna, foreign = lab.box(), lab.box()
    caplog.set_level("INFO")
    stranger, ours = foreign.sleeper("stranger"), anna.sleeper("ours")
    with subprocess.Popen(["sleep", "600"]) as host:
        for pid, gib in ((stranger, 40), (host.pid, 30), (ours, 8), (2**22 - 3, 30)):
            lab.script.process(pid, gib * GIB, gpu=0)
        async with lab.guarding(quota(anna, mps_required=False)):
            await asyncio.sleep(3.5)
        assert [alive(pid) for pid in (stranger, host.pid, ours)] == [True] * 3
        host.kill()
    assert lab.events == []
    left = [line for line in caplog.messages if line.startswith("A process of")]
    assert sorted(left) == sorted([
        f"A process of the host uses a guarded device; it is not ended: 'sleep' pid={host.pid} devices={A}",
        f"A process of container {foreign.id[:12]} uses a guarded device; it is not ended: 'stranger' "
        f"pid={stranger} devices={A}",
    ])  # fmt: skip


async def test_no_lease_for_the_device_and_round_mps(lab: Lab) -> None:
    anna, ben = lab.box(), lab.box()
    intruder, bypassed_mps, client = anna.sleeper("intruder"), ben.sleeper("round"), ben.sleeper("client")
    lab.script.process(intruder, 1 * GIB, gpu=1)
    lab.script.process(bypassed_mps, 1 * GIB, gpu=1)
    lab.script.process(client, 1 * GIB, gpu=1, mps=1)
    async with lab.guarding(quota(anna), quota(ben, device=B, mps_required=True)):
        await lab.until_events(2)
    found = {(each.offence, each.pid, each.lease_id, each.over_bytes) for each in lab.events}
    lease = f"lease-of-{ben.id[:4]}"
    assert found == {(Offence.NO_LEASE, intruder, None, None), (Offence.BYPASSED_MPS, bypassed_mps, lease, 0)}
    assert alive(client)


async def test_a_reused_pid_is_not_ended(lab: Lab) -> None:
    """The guard has a process under sentence, which ends; another one gets its pid."""
    anna = lab.box()
    anna.run("exec tail -f /dev/null")  # no shell: a child of it would keep the pid as its group's
    old = waited(lambda: anna.pids().get("tail"))
    process = ProcessTable().look(old)
    assert process is not None
    lab.engine.exec_start(lab.engine.exec_create(anna.id, ["kill", "-9", "-1"])["Id"])
    waited(lambda: not Path(f"/proc/{old}").exists())
    with subprocess.Popen([sys.executable, "-c", HEIR, str(old)], stdin=subprocess.PIPE) as parent:
        waited(lambda: Path(f"/proc/{old}").exists() or parent.poll() is not None)
        assert parent.poll() is None, "the kernel gave the pid to nobody"
        assert ProcessTable().end(process) == "another"
        lab.script.process(old, 70 * GIB)
        async with lab.guarding(quota(anna)):
            await asyncio.sleep(1.5)
        assert alive(old)
        parent.communicate()
    assert lab.events == []


HEIR = """
import ctypes, os, signal, sys, time
# clone3 with set_tid: struct clone_args (88 bytes) of clone(2); 435 is its number on x86-64 and arm64.
pid = ctypes.c_int(int(sys.argv[1]))
arguments = (ctypes.c_uint64 * 11)(0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(pid), 1, 0)
child, end = -1, time.monotonic() + 5
while child < 0 and time.monotonic() < end:  # until the kernel has let go of the number
    child = ctypes.CDLL(None).syscall(435, arguments, ctypes.sizeof(arguments))
if child == 0:
    os.execvp("sleep", ["sleep", "600"])
if child > 0:
    sys.stdin.read()
    os.kill(child, signal.SIGKILL)
"""


async def test_bursts_shorter_than_the_interval_are_seen(lab: Lab) -> None:
    """0.3 s of memory every 1.3 s: no look once a second need ever meet them, the poll does."""
    anna = lab.box()
    pid = anna.sleeper("bursts")
    async with lab.guarding(quota(anna)):
        began = time.monotonic()
        while not lab.events and time.monotonic() - began < 30:
            line = lab.script.process(pid, 10 * GIB)
            lab.script.change(0, used=10 * GIB)
            await asyncio.sleep(0.3)
            lab.script.drop(line)
            lab.script.change(0, used=0)
            await asyncio.sleep(1.0)
    assert [event.pid for event in lab.events] == [pid]


async def test_after_a_restart_it_guards(lab: Lab) -> None:
    anna = lab.box()
    pid = anna.sleeper("kernel")
    async with lab.guarding(quota(anna)):
        pass
    lab.script.process(pid, 9 * GIB)
    async with lab.guarding(quota(anna)):
        await lab.until_events(1)


async def test_a_gpu_that_hangs_leaves_the_others_guarded(lab: Lab) -> None:
    anna, ben = lab.box(), lab.box()
    first, second = anna.sleeper("first"), ben.sleeper("second")
    lab.script.process(first, 20 * GIB, gpu=0)
    lab.script.process(second, 20 * GIB, gpu=1)
    line = lab.script.hang("nvmlDeviceGetComputeRunningProcesses_v3", gpu=0)
    async with lab.guarding(quota(anna), quota(ben, device=B)):
        await lab.until_events(1)
        assert [event.pid for event in lab.events] == [second]
        lab.script.drop(line)
        await lab.until_events(2)
    assert [event.pid for event in lab.events] == [second, first]


async def test_one_in_a_paused_container_is_told_of_once_and_ends_when_that_goes_on(lab: Lab) -> None:
    """Under cgroup version 1 a frozen process ends only then; under version 2 at once."""
    anna = lab.box()
    pid = anna.sleeper("kernel")
    lab.script.process(pid, 20 * GIB)
    lab.engine.pause(anna.id)

    async def on_event(event: GuardEvent) -> None:
        lab.events.append(event)

    guard = Guard(lab.inventory, on_event, settings=GuardSettings(Rules(settle_seconds=0.3)))
    await guard.start(QuotaPlan((quota(anna),)))
    await lab.until_events(1)
    await asyncio.sleep(2.5)
    lab.engine.unpause(anna.id)
    waited(lambda: not alive(pid))
    await guard.stop()
    assert [event.pid for event in lab.events] == [pid]


async def test_a_gpu_that_can_not_be_read_is_said_and_nobody_ends(lab: Lab) -> None:
    anna = lab.box()
    pid = anna.sleeper("kernel")
    lab.script.process(pid, 9 * GIB)
    line = lab.script.fault("nvmlDeviceGetMemoryInfo", 999, gpu=0)
    async with lab.guarding(quota(anna)) as guard:
        await asyncio.sleep(2.5)
        why = "The GPU can't be read: see `dmesg` and `nvidia-smi` (NVML: Unknown Error)"
        assert (guard.blind(), lab.events) == ({A: why}, [])
        lab.script.drop(line)
        await lab.until_events(1)
        assert guard.blind() == {}


async def test_orders_change_while_it_runs(lab: Lab) -> None:
    anna = lab.box()
    pid = anna.sleeper("kernel")
    lab.script.process(pid, 9 * GIB, gpu=1)
    async with lab.guarding() as guard:
        guard.set_plan(QuotaPlan((replace(quota(anna, 16, B)),)))
        await asyncio.sleep(2.6)
        assert lab.events == []
        guard.set_plan(QuotaPlan((quota(anna, 8, B),)))
        await lab.until_events(1)
        guard.set_plan(QuotaPlan())
    assert [event.device_uuid for event in lab.events] == [B]


async def test_a_handler_that_fails_stops_nothing(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    anna = lab.box()
    pids = [anna.sleeper("one"), anna.sleeper("two")]
    told: list[int] = []

    async def on_event(event: GuardEvent) -> None:
        told.append(event.pid)
        raise RuntimeError("full disk")

    for pid in pids:
        lab.script.process(pid, 20 * GIB)
    guard = Guard(lab.inventory, on_event)
    await guard.start(QuotaPlan((quota(anna),)))
    await asyncio.to_thread(waited, lambda: not any(map(alive, pids)))
    await asyncio.sleep(0.1)
    await guard.stop()
    assert sorted(told) == sorted(pids)
    assert caplog.text.count("Reporting an ended process failed") == 2


def test_this_machine_s_user_may_end_processes() -> None:
    assert os.geteuid() == 0


async def test_whose_container_uses_a_shared_gpu_and_who_only_holds_memory(lab: Lab) -> None:
    """Real pids: one computes, one holds 40 GB, one of the host computes too; then both through MPS."""
    anna, ben = lab.box(), lab.box()
    busy, holds = anna.sleeper("trains"), ben.sleeper("forgotten")
    lines = [lab.script.process(busy, GIB), lab.script.process(holds, 40 * GIB)]
    lines += [lab.script.use(busy), lab.script.use(os.getpid())]
    monitor = UsageMonitor(lab.inventory, logging.getLogger("test"), UsageSettings(5))
    monitor.watch([A], frozenset({anna.id, ben.id}))
    began = utc_now()
    await monitor.round()
    users = monitor.now()[A].users
    assert users is not None
    assert (set(users.last_used), users.unknown_at) == ({anna.id}, None)
    assert users.last_used[anna.id] >= began
    for line in lines:
        lab.script.drop(line)
    server = ["bash", "-c", "echo -n nvidia-cuda-mps-server >/proc/$$/comm; read"]
    with subprocess.Popen(server, stdin=subprocess.PIPE) as mps:
        waited(lambda: Path(f"/proc/{mps.pid}/comm").read_text() == "nvidia-cuda-mps\n")
        anna.run("echo -n computes > /proc/self/comm; while :; do :; done")
        busy = waited(lambda: anna.pids().get("computes"))
        for pid in (busy, holds):
            lab.script.process(pid, GIB, mps=1)
        lab.script.use(mps.pid)
        await monitor.round()  # new clients count once
        began = utc_now()
        await asyncio.sleep(1)
        await monitor.round()
        mps.kill()
    users = monitor.now()[A].users
    assert users is not None
    assert users.last_used[anna.id] >= began > users.last_used[ben.id]
    await monitor.stop()
