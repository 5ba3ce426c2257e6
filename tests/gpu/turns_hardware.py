"""CUDA checkpoint on real GPUs, without hub and Docker: plain processes, pauses, sleeps, moves, kills.

    PYTHONPATH=spawner:PACKAGES python tests/gpu/turns_hardware.py

Run it as root on a machine with a GPU to itself. It needs `cuda-bindings`, `nvidia-ml-py` and `traitlets`;
only the students need PyTorch, in `--student-python`. It prints each result when it has it, and a table at
the end, in under six minutes; what there was no time or no second GPU for is said. No setting is changed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import mmap
import os
import platform
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from gpuspawner.node.checkpoint.book import SleepBook
from gpuspawner.node.checkpoint.canary import run_canary
from gpuspawner.node.checkpoint.census import Census
from gpuspawner.node.checkpoint.cgroup import MemoryCgroup, cgroup_of
from gpuspawner.node.checkpoint.client import HelperDriver
from gpuspawner.node.checkpoint.host import LinuxHost, Seat
from gpuspawner.node.checkpoint.mover import Mover, MoverRules
from gpuspawner.node.checkpoint.order import Answer, Operation, Order, ProcessState
from gpuspawner.node.checkpoint.outcome import Condition, Obstacle, Outcome
from gpuspawner.node.checkpoint.rules import abilities
from gpuspawner.node.inventory.nvml import NvmlInventory
from gpuspawner.node.processes import Process, ProcessTable
from gpuspawner.node.waiting import ThreadWait, WaitWatch, read_wait

HERE = Path(__file__).resolve().parent
LOG = logging.getLogger("turns")
GIB = 1 << 30
TOTAL_SECONDS = 440.0
Check = Callable[["Bench"], Awaitable[None]]


class Student:
    """A process of `turns_student.py`, and its steps seen from outside."""

    def __init__(self, bench: Bench, gib: float | str, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [bench.python, str(HERE / "turns_student.py"), str(gib)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": bench.uuids[0], **environment},
        )
        self.folder = bench.enclose(self.process.pid)
        self.seat = Seat(f"{self.process.pid:064x}", self.process.pid, bench.uuids)
        self.file = bench.folder / f"steps-{self.process.pid}"
        self.first: dict[str, Any] = {}

    async def ready(self) -> Student:
        """Its memory is filled and summed."""
        self.first = await self.answer(90.0)
        return self

    async def answer(self, seconds: float = 60.0) -> dict[str, Any]:
        """The next line that it writes."""
        assert self.process.stdout is not None
        async with asyncio.timeout(seconds):
            line = await asyncio.to_thread(self.process.stdout.readline)
        if not line:
            raise AssertionError(f"a student ended with status {self.process.wait()}")
        return dict(json.loads(line))

    def tell(self, text: str) -> None:
        """Orders something; the answer is read later."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    async def ask(self, text: str, seconds: float = 60.0) -> dict[str, Any]:
        """Orders something and waits for the answer."""
        self.tell(text)
        return await self.answer(seconds)

    async def whole(self) -> bool:
        """Whether its memory is as it was."""
        return bool((await self.ask("sum"))["sum"] == self.first["sum"])

    def step(self) -> tuple[float, float, int]:
        """When its last step began and ended, and how many there were."""
        with self.file.open("rb") as file, mmap.mmap(file.fileno(), 4096, access=mmap.ACCESS_READ) as shown:
            return struct.unpack("ddq", shown[:24])

    async def first_step(self, after: float) -> float:
        """Seconds from then until a step that began later has ended."""
        while True:
            began, ended, _ = self.step()
            if began >= after:
                return ended - after
            await asyncio.sleep(0.0005)

    def end(self) -> None:
        """Kills it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class BareHost(LinuxHost):
    """Where no cgroup of one's own can be made: a seat is its first process and its children."""

    def __init__(self, inventory: NvmlInventory) -> None:
        super().__init__(inventory)
        self._own = Census()

    def processes(self, seat: Seat) -> tuple[Process, ...]:
        """Those of the process's tree that loaded the CUDA library."""
        found, pending = [], [seat.main_pid]
        while pending:
            pid = pending.pop()
            found.append(pid)
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    pending += [int(child) for child in task.read_text().split()]
        return self._own.look(found)

    def memory(self, seat: Seat) -> MemoryCgroup | None:
        """None of its own."""
        return None


class Bench:
    """The machine, its students, and the rows of the table."""

    def __init__(self, python: str) -> None:
        self.python = python
        self.began = time.monotonic()
        self.folder = Path(tempfile.mkdtemp(prefix="gpuspawner-turns-"))
        self.inventory = NvmlInventory()
        self.devices = self.inventory.devices()
        self.uuids = tuple(device.uuid for device in self.devices)
        self.rows: list[tuple[str, str, str]] = []
        self.students: list[Student] = []
        self.cgroups = _cgroup_base()
        self.host = LinuxHost(self.inventory) if self.cgroups else BareHost(self.inventory)
        self.driver = HelperDriver(LOG)
        self.mover = self.new_mover()

    def new_mover(self) -> Mover:
        """One that knows only what is on disk."""
        return Mover(self.driver, self.host, SleepBook(self.folder / "asleep.json"), MoverRules())

    def row(self, what: str, value: str, ok: bool = True) -> None:
        """One line of the table, printed at once."""
        self.rows.append(("ok" if ok else "FAILED", what, value))
        print(f"[{time.monotonic() - self.began:5.1f} s] {self.rows[-1][0]:6} {what}: {value}", flush=True)

    def enclose(self, pid: int) -> Path | None:
        """The process gets a memory cgroup of its own, as a container has."""
        if self.cgroups is None:
            return None
        folder = self.cgroups / f"turns-{pid}"
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.procs").write_text(str(pid))
        return folder

    async def start(self, *gibs: float | str, **environment: str) -> list[Student]:
        """Students with so much memory each, all on the first GPU."""
        students = [Student(self, gib, environment) for gib in gibs]
        self.students += students
        for student in students:
            if student.first == {}:
                await student.ready()
        return students

    def end(self, students: Collection[Student]) -> None:
        """Kills them and removes their cgroups."""
        for student in students:
            student.end()
            if student in self.students:
                self.students.remove(student)
            if student.folder is not None:
                for _ in range(50):
                    with contextlib.suppress(OSError):
                        student.folder.rmdir()
                        break
                    time.sleep(0.02)

    async def close(self) -> None:
        """Ends everything that was started."""
        self.end(list(self.students))
        await self.driver.stop(60.0)
        self.mover.close()
        self.inventory.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def process(self, student: Student) -> Process:
        """Its main process."""
        process = ProcessTable().look(student.process.pid)
        assert process is not None
        return process

    async def call(self, operation: Operation, pid: int, seconds: float | None = None) -> Answer:
        """One call of the driver, past the mover."""
        process = ProcessTable().look(pid)
        assert process is not None
        return await self.driver.call(Order(operation, pid, process.start_ticks, seconds))


def _cgroup_base() -> Path | None:
    """Where memory cgroups can be made, for processes of this script; None if nowhere."""
    own = cgroup_of(os.getpid())
    candidates = [Path("/sys/fs/cgroup/memory")] if Path("/sys/fs/cgroup/memory").is_dir() else []
    unified = Path("/sys/fs/cgroup")
    if (unified / "cgroup.controllers").exists():
        with contextlib.suppress(OSError):
            (unified / "cgroup.subtree_control").write_text("+memory")
        candidates.append(unified)
    for base in [*candidates, *([own.folder] if own else [])]:
        probe = base / "turns-probe"
        try:
            probe.mkdir(exist_ok=True)
            usable = (probe / "memory.max").exists() or (probe / "memory.limit_in_bytes").exists()
            probe.rmdir()
        except OSError:
            continue
        if usable:
            return base
    return None


def spread(values: list[float], factor: float = 1000.0) -> str:
    """Median, 95th percentile and largest, in milliseconds."""
    ordered = sorted(value * factor for value in values)
    p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    return f"p50 {statistics.median(ordered):.1f}, p95 {p95:.1f}, most {ordered[-1]:.1f} ms"


def said(outcome: Outcome) -> str:
    """An outcome for the table."""
    return outcome.log_text()


def same(whole: bool) -> str:
    """Whether the memory was as before, for the table."""
    return "sum equal" if whole else "sum NOT EQUAL"


# ---- the checks


async def check_facts(bench: Bench) -> None:
    facts = bench.inventory.driver()
    names = ", ".join(device.model for device in bench.devices)
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().strip()
    bench.row(
        "machine", f"{names}; driver {facts.driver_version}; {os.cpu_count()} cores; {platform.release()}"
    )
    bench.row("huge pages", huge)
    bench.row("cgroups", str(bench.cgroups or "none can be made: memory limits are not tried"))
    rules = abilities(facts.driver_version, gpu_count=len(bench.uuids))
    bench.row("rules of the driver", str(rules), not rules.obstacle)
    began = time.monotonic()
    await bench.driver.start()
    bench.row("helper attached", f"{time.monotonic() - began:.2f} s")


async def check_plain_process(bench: Bench) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        answer = await bench.call(Operation.STATE, process.pid)
        bench.row(
            "state of a process without CUDA",
            f"{answer.code} after {answer.seconds * 1000:.2f} ms",
            answer.has_no_cuda,
        )
        process.kill()


async def check_canary(bench: Bench) -> None:
    result = await run_canary(bench.driver, bench.uuids[0])
    text = result.reason or f"asleep {result.sleep_seconds:.2f} s, awake {result.wake_seconds:.2f} s"
    bench.row("canary, 1 GiB", text, result.ok)


async def check_pauses(bench: Bench) -> None:
    students = await bench.start(4, 4, 4)
    for student in students:
        await student.ask(f"steps {student.file}")
    await asyncio.sleep(0.5)
    rates = []
    for student in students[1:]:
        await bench.mover.pause(student.seat)
    first = students[0].step()[2]
    await asyncio.sleep(1.0)
    rates.append(students[0].step()[2] - first)
    pauses, wakes, steps, failures = [], [], [], 0
    begun, counts = time.monotonic(), sum(student.step()[2] for student in students)
    for number in range(102):
        now, following = students[number % 3], students[(number + 1) % 3]
        paused = await bench.mover.pause(now.seat)
        unlocking = time.monotonic()
        woke = await bench.mover.wake(following.seat, bench.uuids[0])
        steps.append(await following.first_step(unlocking))
        pauses.append(paused.seconds)
        wakes.append(woke.seconds)
        failures += (not paused.done) + (not woke.done)
        await asyncio.sleep(0.02)
    lasted = time.monotonic() - begun
    rate = (sum(student.step()[2] for student in students) - counts) / lasted
    bench.row("102 pauses", f"{spread(pauses)}; {failures} failed", failures == 0)
    bench.row("102 wakes of a paused one", spread(wakes))
    bench.row("first step after the order to wake", spread(steps))
    bench.row(
        "steps/s", f"{rate:.0f} in turns of about {1000 * lasted / 102:.0f} ms; one alone {rates[0]:.0f}"
    )
    for student in students:
        await bench.mover.wake(student.seat, bench.uuids[0])
        await student.ask("stop")
    sums = [await student.whole() for student in students]
    bench.row("memory after the pauses", f"{sum(sums)} of 3 sums equal", all(sums))
    bench.end(students)


async def _cycle(bench: Bench, student: Student, gib: float, note: str = "") -> None:
    slept = await bench.mover.sleep(student.seat, 10.0)
    listed = student.process.pid in bench.host.on_gpus(bench.uuids)
    woke = await bench.mover.wake(student.seat, bench.uuids[0])
    whole = await student.whole()
    speed = f"{gib / slept.seconds:.1f} and {gib / woke.seconds:.1f} GiB/s"
    text = f"asleep {slept.seconds:.2f} s, awake {woke.seconds:.2f} s, {speed}; {same(whole)}"
    if not (slept.done and woke.done):
        text = f"{said(slept)}; {said(woke)}"
    bench.row(f"sleep and wake, {gib} GiB{note}", text, slept.done and woke.done and whole and not listed)


async def check_sleep(bench: Bench) -> None:
    for gib, cycles in ((1, 2), (4, 2), (16, 1)):
        (student,) = await bench.start(gib)
        for _ in range(cycles):
            await _cycle(bench, student, gib)
        bench.end([student])


async def check_large(bench: Bench) -> None:
    """Up to 60 GiB; `sleep` has the small sizes."""
    for gib in (8, 32, 60):
        (student,) = await bench.start(gib)
        await _cycle(bench, student, gib)
        bench.end([student])


async def check_host_memory(bench: Bench) -> None:
    """A machine that has too little free memory: one whose reserve is larger than it."""
    (student,) = await bench.start(4)
    poor = Mover(
        bench.driver,
        bench.host,
        SleepBook(bench.folder / "poor.json"),
        MoverRules(host_reserve_bytes=1 << 50),
    )
    refused = await poor.sleep(student.seat, 5.0)
    state = await bench.call(Operation.STATE, student.process.pid)
    whole = await student.whole()
    poor.close()
    bench.row(
        "host memory short",
        f"{said(refused)}; it is {state.state}, {same(whole)}",
        refused.obstacle is Obstacle.HOST_MEMORY and state.state is ProcessState.RUNNING and whole,
    )
    bench.end([student])


async def check_huge_pages(bench: Bench) -> None:
    """Whether glibc's own use of huge pages helps: an environment variable, so no setting of the machine."""
    (student,) = await bench.start(4, GLIBC_TUNABLES="glibc.malloc.hugetlb=1")
    await _cycle(bench, student, 4, " with GLIBC_TUNABLES=glibc.malloc.hugetlb=1")
    bench.end([student])


async def check_several(bench: Bench) -> None:
    students = await bench.start(4, 4, 4, 4)
    began = time.monotonic()
    slept = await asyncio.gather(*(bench.mover.sleep(each.seat, 10.0) for each in students))
    middle = time.monotonic()
    woke = await asyncio.gather(*(bench.mover.wake(each.seat, bench.uuids[0]) for each in students))
    ended = time.monotonic()
    sums = [await student.whole() for student in students]
    done = all(each.done for each in (*slept, *woke)) and all(sums)
    bench.row(
        "four of 4 GiB at the same time",
        f"asleep {middle - began:.2f} s, awake {ended - middle:.2f} s, "
        f"{16 / (middle - began):.1f} and {16 / (ended - middle):.1f} GiB/s in sum; {sum(sums)} sums equal",
        done,
    )
    bench.end(students)


async def check_moves(bench: Bench) -> None:
    if len(bench.uuids) < 2:
        bench.row("moving to another GPU", "not run: one GPU")
        return
    (student,) = await bench.start(4)
    loss = (await student.ask("train 50"))["loss"]
    path = (*bench.uuids[1:], bench.uuids[0]) * 2
    for number, uuid in enumerate(path[:6]):
        slept = await bench.mover.sleep(student.seat, 10.0)
        woke = await bench.mover.wake(student.seat, uuid)
        where = dict(bench.host.on_gpus(bench.uuids).get(student.process.pid, {}))
        whole = await student.whole() if woke.done else False
        right = woke.done and set(where) == {uuid} and whole
        bench.row(
            f"move {number + 1}, to GPU {bench.uuids.index(uuid)}",
            f"{said(slept)}; {said(woke)}; it is on "
            f"{[bench.uuids.index(each) for each in where]}; {same(whole)}",
            right,
        )
        if not right:
            break
    again = (await student.ask("train 50"))["loss"]
    bench.row("losses before and after the moves", f"{loss!r}, {again!r}", loss == again)
    paused = await bench.mover.pause(student.seat)
    woke = await bench.mover.wake(student.seat, bench.uuids[1])
    whole = await student.whole()
    bench.row("a paused one moved in one order", f"{said(paused)}; {said(woke)}", woke.done and whole)
    bench.end([student])


async def check_killed_helper(bench: Bench) -> None:
    (student,) = await bench.start(6)
    for phase, delay in (("sleeping", 0.3), ("sleeping", 1.5), ("waking", 0.2), ("waking", 0.6)):
        if phase == "waking":
            await bench.mover.sleep(student.seat, 10.0)
        task = asyncio.create_task(
            bench.mover.sleep(student.seat, 10.0)
            if phase == "sleeping"
            else bench.mover.wake(student.seat, bench.uuids[0])
        )
        await asyncio.sleep(delay)
        pid = bench.driver.pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        outcome = await task
        woke = await bench.mover.wake(student.seat, bench.uuids[0])
        whole = await student.whole()
        bench.row(
            f"helper killed after {delay} s of {phase}",
            f"{said(outcome)}; then {said(woke)}; {same(whole)}",
            outcome.done and woke.done and whole,
        )
    await student.ask("kernel 3")
    task = asyncio.create_task(bench.mover.pause(student.seat, 10.0))
    await asyncio.sleep(0.5)
    if bench.driver.pid is not None:
        os.kill(bench.driver.pid, signal.SIGKILL)
    outcome = await task
    woke = await bench.mover.wake(student.seat, bench.uuids[0])
    bench.row("helper killed while it waits for a lock", f"{said(outcome)}; then {said(woke)}", woke.done)
    bench.end([student])


async def check_killed_broker(bench: Bench) -> None:
    """Helper and broker gone in the middle: the next one has only the file and the driver's own word."""
    (student,) = await bench.start(6)
    process = bench.process(student)
    await bench.call(Operation.LOCK, process.pid, 5.0)
    task = asyncio.create_task(bench.call(Operation.CHECKPOINT, process.pid))
    await asyncio.sleep(0.5)
    if bench.driver.pid is not None:
        os.kill(bench.driver.pid, signal.SIGKILL)
    await task
    fresh = bench.new_mover()
    woke = await fresh.wake(student.seat, bench.uuids[0])
    whole = await student.whole()
    bench.row(
        "broker and helper killed in a checkpoint that nobody noted",
        f"{said(woke)}; {same(whole)}",
        woke.done and whole,
    )
    for operation, before in ((Operation.CHECKPOINT, "locked"), (Operation.RESTORE, "checkpointed")):
        if operation is Operation.CHECKPOINT:
            await bench.call(Operation.LOCK, process.pid, 5.0)
        task = asyncio.create_task(bench.call(operation, process.pid))
        await asyncio.sleep(0.3)
        if bench.driver.pid is not None:
            os.kill(bench.driver.pid, signal.SIGKILL)
        await task
        await bench.driver.start()
        began, seen = time.monotonic(), []
        while time.monotonic() - began < 8.0 and (not seen or seen[-1].startswith(before)):
            state = await bench.call(Operation.STATE, process.pid)
            text = str(state.state or state.code)
            if not seen or not seen[-1].startswith(text):
                seen.append(f"{text} at {time.monotonic() - began:.2f} s")
            await asyncio.sleep(0.05)
        bench.row(f"states after the helper was killed in a {operation.value}", "; ".join(seen))
    woke = await fresh.wake(student.seat, bench.uuids[0])
    whole = await student.whole()
    bench.row("woken after both", f"{said(woke)}; {same(whole)}", woke.done and whole)
    fresh.close()
    bench.end([student])


async def check_refusals(bench: Bench) -> None:
    (student,) = await bench.start(1)
    allocated = await student.ask("managed")
    outcome = await bench.mover.sleep(student.seat, 5.0)
    whole = await student.whole()
    bench.row(
        "managed memory",
        f"cuMemAllocManaged {allocated['code']}; {said(outcome)}; {same(whole)}; says: {outcome.sentence}",
        outcome.obstacle is Obstacle.UNSUPPORTED and outcome.condition is Condition.AWAKE and whole,
    )
    paused = await bench.mover.pause(student.seat)
    woke = await bench.mover.wake(student.seat, bench.uuids[0])
    bench.row("managed memory, paused only", f"{said(paused)}; {said(woke)}", paused.done and woke.done)
    bench.end([student])


async def check_workers(bench: Bench) -> None:
    (student,) = await bench.start(1)
    child = (await student.ask("fork"))["pid"]
    state = await bench.call(Operation.STATE, child)
    slept = await bench.mover.sleep(student.seat, 5.0)
    woke = await bench.mover.wake(student.seat, bench.uuids[0])
    whole = await student.whole()
    bench.row(
        "a forked worker beside it",
        f"its state: {state.code} {state.state}; {said(slept)}; {said(woke)}",
        slept.done and woke.done and whole,
    )
    await student.ask("kill_child")
    bench.end([student])


async def check_newcomer(bench: Bench) -> None:
    """A new process of a lease that isn't awake: put to sleep when it appears, and woken later."""
    (student,) = await bench.start("later")
    student.tell("begin 1")
    began = time.monotonic()
    while student.process.pid not in bench.host.on_gpus(bench.uuids):
        await asyncio.sleep(0.02)
        if time.monotonic() - began > 30:
            break
    seen = time.monotonic() - began
    slept = await bench.mover.sleep(student.seat, 5.0)
    await asyncio.sleep(1.0)
    woke = await bench.mover.wake(student.seat, bench.uuids[0])
    student.first = await student.answer()
    whole = await student.whole()
    bench.row(
        "a new process, at its first context",
        f"seen after {seen:.2f} s; {said(slept)}; {said(woke)}",
        slept.done and woke.done and whole,
    )
    bench.end([student])


def _mapping(pid: int, address: int) -> str:
    """Which part of the process's memory has the address."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        start, end = (int(each, 16) for each in line.split()[0].split("-"))
        if start <= address < end:
            return " ".join(line.split()[1:2] + line.split()[5:]) + f" +{address - start:#x}"
    return "nothing that is mapped"


async def check_wants(bench: Bench) -> None:
    (student,) = await bench.start(1)
    slept = await bench.mover.sleep(student.seat, 5.0)
    watch, pid = WaitWatch(), student.process.pid
    idle = []
    for _ in range(40):
        idle.append(watch.see(read_wait(pid) or ThreadWait(), time.monotonic()))
        await asyncio.sleep(0.025)
    lines = Path(f"/proc/{pid}/task/{pid}/syscall").read_text().strip()
    asked = time.monotonic()
    student.tell("sum")
    noticed = None
    while noticed is None and time.monotonic() - asked < 5.0:
        began = time.monotonic()
        wait = read_wait(pid) or ThreadWait()
        cost = time.monotonic() - began
        if watch.see(wait, time.monotonic()):
            noticed = time.monotonic() - asked
        await asyncio.sleep(0.01)
    wchan = Path(f"/proc/{pid}/task/{pid}/wchan").read_text()
    waiting = Path(f"/proc/{pid}/task/{pid}/syscall").read_text().strip()
    bench.row("its syscall before and while it waits", f"{lines} | {wchan} {waiting}")
    for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
        fields = (task / "syscall").read_text().split()
        if fields[0] == "202":
            name = (task / "comm").read_text().strip()
            bench.row(
                f"thread {task.name} ({name}) waits on",
                f"{' '.join(fields[1:5])}: {_mapping(pid, int(fields[1], 16))}",
            )
    woke = await bench.mover.wake(student.seat, bench.uuids[0])
    answer = await student.answer()
    bench.row(
        "a sleeping one calls CUDA",
        f"noticed after {noticed and round(noticed, 3)} s; false alarms before: "
        f"{sum(idle)} of 40; read in {cost * 1000:.2f} ms; {said(slept)}; {said(woke)}",
        noticed is not None and not any(idle) and answer["sum"] == student.first["sum"],
    )
    bench.end([student])


async def check_limit(bench: Bench) -> None:
    (student,) = await bench.start(4)
    cgroup = cgroup_of(student.process.pid)
    if bench.cgroups is None or cgroup is None:
        bench.row("a container's memory limit", "not run: no cgroup can be made here")
        bench.end([student])
        return
    name = "memory.max" if cgroup.version == 2 else "memory.limit_in_bytes"
    limit = max(3 * GIB, cgroup.used_bytes() + GIB // 4)
    (cgroup.folder / name).write_text(str(limit // 4096 * 4096))
    before = cgroup.limit()
    slept = await bench.mover.sleep(student.seat, 5.0)
    during, used = cgroup.limit(), cgroup.used_bytes()
    woke = await bench.mover.wake(student.seat, bench.uuids[0])
    whole = await student.whole()
    settled = await bench.mover.settle(student.seat)
    after = cgroup.limit()
    bench.row(
        "a container's memory limit",
        f"{before.memory_bytes} B, asleep {during.memory_bytes} B with {used} B "
        f"used, after {after.memory_bytes} B; {said(slept)}; {said(woke)}",
        slept.done and woke.done and whole and settled and before == after,
    )
    slept = await bench.mover.sleep(student.seat, 5.0)
    began = time.monotonic()
    bench.end([student])
    bench.row("killed while asleep", f"gone after {time.monotonic() - began:.2f} s", slept.done)


async def check_long_kernel(bench: Bench) -> None:
    (student,) = await bench.start(1)
    left = TOTAL_SECONDS - (time.monotonic() - bench.began)
    seconds = 60 if left > 95 else max(10, int(left) - 30)
    await student.ask(f"kernel {seconds}")
    short = await bench.mover.pause(student.seat, 0.5)
    longer = await bench.mover.pause(student.seat, 3.0)
    state = await bench.call(Operation.STATE, student.process.pid)
    bench.row(
        f"a kernel of {seconds} s",
        f"{said(short)}; {said(longer)}; it is {state.state}",
        short.obstacle is Obstacle.BUSY and longer.obstacle is Obstacle.BUSY,
    )
    paused = await bench.mover.pause(student.seat, seconds + 30.0)
    woke = await bench.mover.wake(student.seat, bench.uuids[0])
    took = (await student.ask("kernel_took"))["seconds"]
    bench.row(
        "its end waited for", f"{said(paused)}; {said(woke)}; kernel {took:.1f} s", paused.done and woke.done
    )
    bench.end([student])


async def check_peers(bench: Bench) -> None:
    """Two members of a group of NCCL, which drivers before 610 don't support: what the driver answers."""
    if len(bench.uuids) < 2:
        bench.row("members of a group of NCCL", "not run: one GPU")
        return
    both = [Student(bench, 1, {"CUDA_VISIBLE_DEVICES": uuid}) for uuid in bench.uuids[:2]]
    bench.students += both
    for student in both:
        await student.ready()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    totals = await asyncio.gather(*(each.ask(f"peers {rank} {port}") for rank, each in enumerate(both)))
    bench.row("members of a group of NCCL", f"totals {[each['total'] for each in totals]}")
    paused = await bench.mover.pause(both[0].seat)
    began = time.monotonic()
    other = await bench.call(Operation.STATE, both[1].process.pid)
    bench.row(
        "one member paused",
        f"{said(paused)}; the other one's state {other.code} {other.state} after "
        f"{time.monotonic() - began:.2f} s",
    )
    slept = await bench.mover.sleep(both[0].seat, 5.0)
    bench.row("one member to host memory", f"{said(slept)}; says: {slept.sentence}")
    woke = await bench.mover.wake(both[0].seat, bench.uuids[0])
    again = await asyncio.gather(*(each.ask("reduce", 20.0) for each in both), return_exceptions=True)
    totals_then = [each if isinstance(each, BaseException) else each["total"] for each in again]
    bench.row("the group after it", f"{said(woke)}; totals {totals_then}")
    bench.end(both)


CHECKS: tuple[Check, ...] = (
    check_facts,
    check_plain_process,
    check_canary,
    check_pauses,
    check_refusals,
    check_host_memory,
    check_workers,
    check_newcomer,
    check_wants,
    check_limit,
    check_moves,
    check_killed_helper,
    check_killed_broker,
    check_sleep,
    check_several,
    check_huge_pages,
    check_long_kernel,
    check_large,
    check_peers,
)


async def run(python: str, only: Collection[str]) -> int:
    """Every check, whatever the others did; the number of rows that failed."""
    bench = Bench(python)
    try:
        for check in CHECKS:
            if only and check.__name__.removeprefix("check_") not in {"facts", *only}:
                continue
            if time.monotonic() - bench.began > TOTAL_SECONDS - 15:
                bench.row(check.__name__.removeprefix("check_"), "not run: no time left")
                continue
            try:
                await check(bench)
            except Exception as error:  # one check that breaks must not cost the others
                LOG.exception("%s", check.__name__)
                bench.row(check.__name__.removeprefix("check_"), f"{type(error).__name__}: {error}", ok=False)
            bench.end(list(bench.students))
    finally:
        await bench.close()
    print("\n| | what | seen |\n|---|---|---|")
    for state, what, value in bench.rows:
        print(f"| {state} | {what} | {value} |")
    failed = sum(state == "FAILED" for state, _, _ in bench.rows)
    print(f"\n{len(bench.rows)} rows, {failed} failed, {time.monotonic() - bench.began:.0f} s")
    return failed


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student-python", default="/opt/torch/.venv/bin/python3")
    parser.add_argument("only", nargs="*", help="names of checks: pauses, sleep, moves ... (default: all)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    return 1 if asyncio.run(run(arguments.student_python, arguments.only)) else 0


if __name__ == "__main__":
    sys.exit(main())
