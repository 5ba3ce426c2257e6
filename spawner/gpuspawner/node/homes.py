"""Homes as a move sees them: read as a tar, written from one, kept or dropped, and where each is; interfaces.

A home that is being copied to a machine is marked there as unfinished, until the broker knows that the copy
is whole and that the Swarm names this machine. What is unfinished may be dropped; nothing else ever is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

CHUNK_BYTES = 512 << 10
"""Of a home, so much is in memory and on the wire at once; a few of them on each side."""
PASS_SECONDS = 5.0
"""So long one call of `skim` reads."""


@dataclass(frozen=True, slots=True)
class HomeFacts:
    """A home as its machine's Docker has it. `options` and `labels` are those it was created with.

    `containers` are the names of those that mount it, running or not. `unfinished`: it is a copy that a move
    has begun.
    """

    driver: str
    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    containers: tuple[str, ...] = ()
    unfinished: bool = False


@dataclass(frozen=True, slots=True)
class Skimmed:
    """How far a home was read without being sent: bytes of its tar, and their SHA-256 once it is all read."""

    size_bytes: int
    digest: str = ""


class HomeFiles(Protocol):
    """One machine's homes. Each coroutine raises EngineFault, also while the machine is away.

    A *copy* is one reading or writing, by an id that its begin returns; ids end with the agent's connection.
    """

    async def describe(self, volume: str) -> HomeFacts | None:
        """None if there is no such volume."""
        ...

    async def prepare(self, volume: str, facts: HomeFacts) -> None:
        """Marks the home as unfinished and creates its volume, as `facts` say.

        Raises ConfigError if the volume is there and not unfinished. An unfinished one is replaced.
        """
        ...

    async def begin_read(self, volume: str) -> str:
        """Opens the home as a tar; the id of the copy."""
        ...

    async def read(self, copy_id: str) -> bytes:
        """The next CHUNK_BYTES of the tar, fewer at its end, nothing after it."""
        ...

    async def skim(self, copy_id: str) -> Skimmed:
        """Reads on for PASS_SECONDS at most, and keeps nothing but the sum."""
        ...

    async def begin_write(self, volume: str) -> str:
        """Opens an unfinished home to write a tar into it; the id of the copy."""
        ...

    async def write(self, copy_id: str, data: bytes) -> None:
        """Returns when a part of the chunk may still be in memory; the next one waits for it."""
        ...

    async def finish(self, copy_id: str) -> bool:
        """The tar is whole. Waits PASS_SECONDS at most; whether all of it is on the disk."""
        ...

    async def end(self, copy_id: str) -> None:
        """Ends the copy, whether it is done or not; no error if it has ended."""
        ...

    async def keep(self, volume: str) -> None:
        """The copy is whole, and the user's: it isn't marked any more."""
        ...

    async def drop(self, volume: str) -> None:
        """Removes an unfinished home with its mark. Does nothing to one that isn't unfinished."""
        ...

    async def unfinished(self) -> tuple[str, ...]:
        """The volumes of unfinished homes, and of marks without one."""
        ...


class HomeBook(Protocol):
    """Where the homes of a Swarm are, as its manager keeps it. Each coroutine raises EngineFault."""

    async def machine_of(self, volume: str) -> str:
        """The machine that has the home; "" if nobody has it yet."""
        ...

    async def place(self, volume: str, machine: str) -> None:
        """Writes down that the home is on this machine now. After a fault, either may be so: ask."""
        ...

    async def hold(self, volume: str, machine: str) -> None:
        """No server with this home starts from now on: it is moved to that machine."""
        ...

    async def release(self, volume: str) -> None:
        """Servers with this home may start again."""
        ...

    async def held(self) -> dict[str, str]:
        """The homes that this broker holds, and the machine to which each is moved."""
        ...

    async def used(self) -> set[str]:
        """The volumes that services mount, also those without a task."""
        ...
