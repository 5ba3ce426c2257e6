"""Finds the container of a process on the host, and ends exactly that process.

Pids are reused, so a process is identified by its pid and its start time.
"""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_CONTAINER = re.compile(r"(?:^|[/-])([0-9a-f]{64})(?=\.scope(?:/|$)|/|$)")
"""A container's id in a cgroup's path: `/docker/<id>` (cgroupfs driver), `docker-<id>.scope` (systemd),
in any subfolder and in both versions of cgroups (moby 20.10 to 28, cgroups(7))."""
MPS_SERVER = "nvidia-cuda-mps"
"""What the kernel keeps of the names of MPS's daemon and server (15 characters, proc(5))."""

_UNPRINTABLE = re.compile(r"[^ -~]")
_CAP_KILL = 5


@dataclass(frozen=True, slots=True)
class Process:
    """A process on the host. `name` is set by the process itself: it is shown, but never trusted.

    `container_ids` are the containers that it runs in, outermost first; empty for a process of the host.
    """

    pid: int
    start_ticks: int
    name: str
    container_ids: tuple[str, ...] = ()

    def container(self, ours: Collection[str]) -> str | None:
        """Its outermost container in `ours`, else its innermost one; None for a process of the host."""
        mine = next((each for each in self.container_ids if each in ours), None)
        return mine or (self.container_ids[-1] if self.container_ids else None)

    @property
    def is_mps_server(self) -> bool:
        """Whether it is MPS's own, on the host. A process in a container that calls itself so is none."""
        return not self.container_ids and self.name == MPS_SERVER


class Outcome(StrEnum):
    """The result of ending a process. Only with `ENDED` a signal was sent."""

    ENDED = "ended"
    GONE = "gone"
    ANOTHER = "another"
    """Now the pid belongs to another process, or the process to another container."""
    REFUSED = "refused"
    """The broker's user has no permission to end it."""


def container_ids(cgroup: str) -> tuple[str, ...]:
    """The containers in the text of `/proc/<pid>/cgroup`, outermost first.

    None if the lines name different containers: then its container is unknown.
    """
    found = {tuple(_CONTAINER.findall(line.split(":", 2)[-1])) for line in cgroup.splitlines()} - {()}
    return found.pop() if len(found) == 1 else ()


class ProcessTable:
    """Reads processes from `/proc` and caches their containers. For use in one thread."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = str(proc)
        self._known: dict[int, Process] = {}
        self._held: dict[int, Process] = {}
        self._pids: dict[int, int] = {}
        self._descriptors: dict[int, int] = {}
        self._poll = select.poll()

    def look(self, pid: int) -> Process | None:
        """The process that has this pid now; None if there is none or it can't be read.

        Its containers are cached as long as its start time is the same, but not for a process without a
        container: it may move into one later.
        """
        stat = _read(f"{self._proc}/{pid}/stat")
        end = stat.rfind(b")")
        if end < 0:
            return None
        fields = stat[end + 2 :].split(None, 20)
        start_ticks = int(fields[19])  # field 22 of proc(5)'s stat; the state is field 3
        known = self._known.get(pid)
        if known is not None and known.start_ticks == start_ticks and known.container_ids:
            return known
        text = stat[stat.find(b"(") + 1 : end].decode("utf-8", "replace")
        name = _UNPRINTABLE.sub("?", text).strip() or "?"
        found = Process(pid, start_ticks, name, container_ids(self._cgroup(pid, fields[0])))
        self._known[pid] = found
        return found

    def cpu_seconds(self, process: Process) -> float | None:
        """CPU time that all threads of the process have used; None if it has ended. Resolution: 10 ms."""
        stat = _read(f"{self._proc}/{process.pid}/stat")
        fields = stat[stat.rfind(b")") + 2 :].split(None, 20)
        if len(fields) < 20 or int(fields[19]) != process.start_ticks:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime of proc(5)

    def look_all(self, pids: Collection[int]) -> dict[int, Process]:
        """The processes that have these pids now; removes all others from the cache.

        It keeps a pidfd for each process in a container: while the pidfd shows that the process lives, nobody
        else has its pid, and /proc needn't be read. One system call checks all, instead of three for each.
        """
        for descriptor, _ in self._poll.poll(0):
            self._drop(self._pids[descriptor])
        for pid in self._held.keys() - set(pids):
            self._drop(pid)
        for pid in self._known.keys() - set(pids):
            del self._known[pid]
        found = {pid: self._held.get(pid) or self._hold(pid) for pid in pids}
        return {pid: process for pid, process in found.items() if process is not None}

    def close(self) -> None:
        """Closes the pidfds."""
        for pid in list(self._held):
            self._drop(pid)

    def _hold(self, pid: int) -> Process | None:
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:  # it ended, or no descriptor is free: then it is read each time
            return self.look(pid)
        process = self.look(pid)
        # If the pidfd's process still lives, nobody else had its pid, so the values read are its own.
        if process is None or not process.container_ids or _has_ended(descriptor):
            os.close(descriptor)
            return process
        self._held[pid], self._pids[descriptor], self._descriptors[pid] = process, pid, descriptor
        self._poll.register(descriptor, select.POLLIN)
        return process

    def _drop(self, pid: int) -> None:
        descriptor = self._descriptors.pop(pid)
        self._poll.unregister(descriptor)
        del self._held[pid], self._pids[descriptor]
        self._known.pop(pid, None)
        os.close(descriptor)

    def _cgroup(self, pid: int, state: bytes) -> str:
        text = _read(f"{self._proc}/{pid}/cgroup").decode("ascii", "replace")
        if state != b"Z" or container_ids(text):
            return text
        # Its first thread has ended, but others run: they are still in the process's cgroup.
        try:
            threads = os.listdir(f"{self._proc}/{pid}/task")
        except OSError:
            return text
        texts = [
            _read(f"{self._proc}/{pid}/task/{each}/cgroup").decode("ascii", "replace") for each in threads
        ]
        return "".join(texts)

    def end(self, process: Process) -> Outcome:
        """Sends SIGKILL to exactly that process.

        It opens the pidfd first and then reads the process again: if pid and start time are still the same,
        the pidfd refers to that process, and the pid can't be reused in between.
        """
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return Outcome.GONE
        try:
            self._known.pop(process.pid, None)
            now = self.look(process.pid)
            if now is None:
                return Outcome.GONE
            if (now.start_ticks, now.container_ids) != (process.start_ticks, process.container_ids):
                return Outcome.ANOTHER
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except ProcessLookupError:
            return Outcome.GONE
        except PermissionError:
            return Outcome.REFUSED
        finally:
            os.close(descriptor)
        return Outcome.ENDED


async def wait_ended(processes: Collection[Process], seconds: float) -> bool:
    """Waits until all of them have ended; returns False after `seconds`. It doesn't poll:

    the kernel reports each end through a pidfd (pidfd_open(2)). Needs an event loop.
    """
    loop, ends = asyncio.get_running_loop(), []
    descriptors: list[int] = []
    table = ProcessTable()
    try:
        for process in processes:
            try:
                descriptor = os.pidfd_open(process.pid)
            except ProcessLookupError:
                continue
            descriptors.append(descriptor)
            now = table.look(process.pid)
            if now is None or now.start_ticks != process.start_ticks:
                continue
            ended = asyncio.Event()
            loop.add_reader(descriptor, ended.set)
            ends.append(ended.wait())
        async with asyncio.timeout(seconds):
            await asyncio.gather(*ends)
    except TimeoutError:
        return False
    finally:
        for descriptor in descriptors:
            loop.remove_reader(descriptor)
            os.close(descriptor)
    return True


def ending_obstacle(status: Path = Path("/proc/self/status")) -> str:
    """Why we can't end processes of containers, with the remedy; "" if we can.

    Containers run as other users, so we need CAP_KILL (root has it), and pidfds (Linux 5.3).
    """
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return f"The kernel has no pidfds ({error.strerror}): Linux 5.3 or newer is needed"
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", _read(str(status)).decode("ascii", "replace"), re.MULTILINE)
    if match is None or not int(match[1], 16) >> _CAP_KILL & 1:
        return (
            "The broker has no permission to end processes of containers: run it as root, or give it CAP_KILL"
        )
    return ""


def _has_ended(descriptor: int) -> bool:
    poll = select.poll()  # not select(), which accepts no descriptor over 1023
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _read(path: str) -> bytes:
    """The start of the file; empty if it doesn't exist or can't be read. Uses only three system calls."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, 16384)
    except OSError:  # the process has ended
        return b""
    finally:
        os.close(descriptor)
