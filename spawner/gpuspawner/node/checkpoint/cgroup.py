"""The memory cgroup of a container: which processes it has, its limit, and how much more it may take.

Both versions of cgroups: v2's `memory.max`, and v1's `memory.limit_in_bytes` with the limit of memory and
swap beside it. All calls block on small files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import DeviceFault

UNLIMITED_BYTES = 1 << 62
"""A limit from this value on means no limit: v1 writes 2⁶³ less a page."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A container's memory limit, None where there is none; that of memory and swap together (v1 only)."""

    memory_bytes: int | None
    with_swap_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class MemoryCgroup:
    """A folder of the memory controller, in version 1 or 2."""

    folder: Path
    version: int
    top: Path
    """The controller's mount point: limits count up to here."""

    def pids(self) -> tuple[int, ...]:
        """Every process in it and below. Raises DeviceFault if it is gone."""
        found: set[int] = set()
        try:
            for listing in self.folder.rglob("cgroup.procs"):
                found.update(int(line) for line in listing.read_text().split())
        except OSError as error:
            raise DeviceFault(f"The cgroup {self.folder} can't be read: {error.strerror}") from error
        return tuple(sorted(found))

    def limit(self) -> Limit:
        """The current limit. Raises DeviceFault."""
        if self.version == 2:
            return Limit(self._number(self.folder / "memory.max"))
        swap = self.folder / "memory.memsw.limit_in_bytes"
        with_swap = self._number(swap) if swap.exists() else None
        return Limit(self._number(self.folder / "memory.limit_in_bytes"), with_swap)

    def used_bytes(self) -> int:
        """The memory charged to it now. Raises DeviceFault."""
        name = "memory.current" if self.version == 2 else "memory.usage_in_bytes"
        return self._number(self.folder / name) or 0

    def raise_limit(self, own: Limit, extra_bytes: int) -> None:
        """Allow this much more than its own limit, or than it uses now. Raises DeviceFault."""
        now = self.limit()
        if own.memory_bytes is None or now.memory_bytes is None:
            return
        wanted = max(own.memory_bytes, self.used_bytes()) + extra_bytes
        if wanted <= now.memory_bytes:
            return
        if self.version == 2:
            self._write("memory.max", wanted)
            return
        if now.with_swap_bytes is not None:  # never less than the limit without swap
            self._write("memory.memsw.limit_in_bytes", now.with_swap_bytes + wanted - now.memory_bytes)
        self._write("memory.limit_in_bytes", wanted)

    def put_back(self, before: Limit) -> bool:
        """Restore the limit `before`; it applies again when this returns True.

        False, and nothing is changed, while more than that is in use: the kernel would kill the container
        (measured, Linux 6 with cgroup v2). Raises DeviceFault.
        """
        if before.memory_bytes is None:
            return True
        if self.used_bytes() > before.memory_bytes:
            return False
        if self.version == 2:
            self._write("memory.max", before.memory_bytes)
            return True
        self._write("memory.limit_in_bytes", before.memory_bytes)
        if before.with_swap_bytes is not None:
            self._write("memory.memsw.limit_in_bytes", before.with_swap_bytes)
        return True

    def room_bytes(self, proc: Path = Path("/proc")) -> int:
        """How much more memory the host and the cgroups above this one leave it. Raises DeviceFault."""
        match = re.search(r"^MemAvailable:\s+(\d+) kB", (proc / "meminfo").read_text(), re.MULTILINE)
        if match is None:
            raise DeviceFault("/proc/meminfo doesn't say how much memory is available")
        room = int(match[1]) << 10
        for folder in self.folder.parents:
            if folder == self.top or self.top not in folder.parents:
                break
            above = MemoryCgroup(folder, self.version, self.top)
            limit = above.limit().memory_bytes
            if limit is not None:
                room = min(room, max(0, limit - above.used_bytes()))
        return room

    def _number(self, path: Path) -> int | None:
        try:
            text = path.read_text().strip()
        except OSError as error:
            raise DeviceFault(f"{path} can't be read: {error.strerror}") from error
        return None if text == "max" or int(text) >= UNLIMITED_BYTES else int(text)

    def _write(self, name: str, value_bytes: int) -> None:
        path = self.folder / name
        try:
            path.write_text(str(value_bytes))
        except OSError as error:
            raise DeviceFault(f"{path} can't be written: {error.strerror}") from error


def cgroup_of(
    pid: int, proc: Path = Path("/proc"), root: Path = Path("/sys/fs/cgroup")
) -> MemoryCgroup | None:
    """The process's memory cgroup; None if the process has ended or there is no memory controller."""
    try:
        lines = [line.split(":", 2) for line in (proc / str(pid) / "cgroup").read_text().splitlines()]
    except OSError:
        return None
    paths = {controllers: path.lstrip("/") for _, controllers, path in lines}
    for controllers, path in paths.items():
        if "memory" in controllers.split(","):
            return _existing(root / "memory", path, 1)
    return _existing(root, paths[""], 2) if "" in paths else None


def _existing(top: Path, path: str, version: int) -> MemoryCgroup | None:
    name = "memory.max" if version == 2 else "memory.limit_in_bytes"
    folder = top / path
    return MemoryCgroup(folder, version, top) if (folder / name).exists() else None
