"""How full a file system is, and when that is worth a word."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .units import format_bytes

FULL_BYTES = 1 << 30
"""With less free space, servers soon fail: logs, containers and users' files need more."""
LOW_BYTES, LOW_FRACTION = 10 << 30, 0.1


class DiskState(StrEnum):
    """LOW: less than 10 GiB and less than a tenth is free. FULL: less than 1 GiB is."""

    OK = "ok"
    LOW = "low"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system, named by our data on it."""

    holds: str
    folder: str
    free_bytes: int
    total_bytes: int

    @property
    def state(self) -> DiskState:
        """Whether an admin should make room."""
        if self.free_bytes < FULL_BYTES:
            return DiskState.FULL
        low = self.free_bytes < min(LOW_BYTES, self.total_bytes * LOW_FRACTION)
        return DiskState.LOW if low else DiskState.OK

    def sentence(self) -> str:
        """For example "5.0 GiB of 100 GiB free at /var/lib/docker: low"."""
        free, total = format_bytes(self.free_bytes), format_bytes(self.total_bytes)
        text = f"{free} of {total} free at {self.folder}"
        words = {DiskState.LOW: ": low", DiskState.FULL: ": full, so that servers can't start"}
        return text + words.get(self.state, "")
