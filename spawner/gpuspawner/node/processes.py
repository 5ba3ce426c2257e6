"""Which container a process on the host belongs to, and ending exactly that process.

A pid alone names nothing: it is reused. A process is known by its pid and its start time.
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
below any number of folders and in both versions of cgroups (moby 20.10 to 28, cgroups(7))."""
_UNPRINTABLE = re.compile(r"[^ -~]")
_CAP_KILL = 5


@dataclass(frozen=True, slots=True)
class Process:
    """A process on the host. `name` is what it calls itself: shown, never trusted.

    `container_ids` are the containers that it lies in, outermost first; none for a process of the host.
    """

    pid: int
    start_ticks: int
    name: str
    container_ids: tuple[str, ...] = ()

    def container(self, ours: Collection[str]) -> str | None:
        """The outermost of its containers that is one of `ours`, else its innermost; None on the host."""
        mine = next((each for each in self.container_ids if each in ours), None)
        return mine or (self.container_ids[-1] if self.container_ids else None)


class Outcome(StrEnum):
    """What became of ending a process. Only `ENDED` sent a signal."""

    ENDED = "ended"
    GONE = "gone"
    ANOTHER = "another"
    """The pid belongs to another process by now, or the process to another container."""
    REFUSED = "refused"
    """The broker's user may not end it."""


def container_ids(cgroup: str) -> tuple[str, ...]:
    """The containers in the text of `/proc/<pid>/cgroup`, outermost first.

    None where the lines name different ones: then it can't be said whose the process is.
    """
    found = {tuple(_CONTAINER.findall(line.split(":", 2)[-1])) for line in cgroup.splitlines()} - {()}
    return found.pop() if len(found) == 1 else ()


class ProcessTable:
    """Reads processes from `/proc` and remembers which container each is in. For one thread."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = str(proc)
        self._known: dict[int, Process] = {}
        self._held: dict[int, Process] = {}
        self._pids: dict[int, int] = {}
        self._descriptors: dict[int, int] = {}
        self._poll = select.poll()

    def look(self, pid: int) -> Process | None:
        """The process that has the pid now; None if there is none or it can't be read.

        Where it belongs is remembered as long as its start time is the same. Not so for a process
        without a container: one may still be on its way into it.
        """
        stat = _read(f"{self._proc}/{pid}/stat")
        end = stat.rfind(b")")
        if end < 0:
            return None
        fields = stat[end + 2 :].split(None, 20)
        start_ticks = int(fields[19])  # field 22 of proc(5)'s stat, the state being field 3
        known = self._known.get(pid)
        if known is not None and known.start_ticks == start_ticks and known.container_ids:
            return known
        text = stat[stat.find(b"(") + 1 : end].decode("utf-8", "replace")
        name = _UNPRINTABLE.sub("?", text).strip() or "?"
        found = Process(pid, start_ticks, name, container_ids(self._cgroup(pid, fields[0])))
        self._known[pid] = found
        return found

    def look_all(self, pids: Collection[int]) -> dict[int, Process]:
        """The processes that have these pids now; forgets all others.

        Those in a container are held by a pidfd: while that says that it lives, its pid is its own, and
        nothing need be read. One system call for all, instead of three for each.
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
        except OSError:  # it is gone, or no descriptor is left: then it is read each time
            return self.look(pid)
        process = self.look(pid)
        # What was read is of the pidfd's process if that still lives: till then nobody else had the pid.
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
        # Its first thread has ended, but others go on: these are where the process was.
        try:
            threads = os.listdir(f"{self._proc}/{pid}/task")
        except OSError:
            return text
        texts = [
            _read(f"{self._proc}/{pid}/task/{each}/cgroup").decode("ascii", "replace") for each in threads
        ]
        return "".join(texts)

    def end(self, process: Process) -> Outcome:
        """SIGKILL to that process and to no other.

        The pidfd is opened first and the process looked at again after that: as it was seen earlier
        under this pid and start time and still is, the pidfd names it, and no reuse can come between.
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
    """Waits until all of them have ended; False if that takes longer. Looks at nothing meanwhile.

    The kernel tells of each end through a pidfd (pidfd_open(2)). Takes an event loop.
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
    """Why this process couldn't end those of containers, with the remedy; "" if it can.

    Containers run as users of their own, so it takes CAP_KILL (root has it), and pidfds (Linux 5.3).
    """
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return f"The kernel has no pidfds ({error.strerror}): Linux 5.3 or newer is needed"
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", _read(str(status)).decode("ascii", "replace"), re.MULTILINE)
    if match is None or not int(match[1], 16) >> _CAP_KILL & 1:
        return "The broker may not end processes of containers: run it as root, or give it CAP_KILL"
    return ""


def _has_ended(descriptor: int) -> bool:
    poll = select.poll()  # not select(), which takes no descriptor over 1023
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _read(path: str) -> bytes:
    """The file's beginning; empty if it is gone or may not be read. Three system calls, no more."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, 16384)
    except OSError:  # the process ended meanwhile
        return b""
    finally:
        os.close(descriptor)
