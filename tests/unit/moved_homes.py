"""Machines with homes, and the manager that knows where each is; each call can fail, or kill the broker."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from gpuspawner.core.errors import ConfigError, EngineFault
from gpuspawner.node.homes import HomeFacts, Skimmed

CHUNK = 4


class Killed(BaseException):
    """The broker's process ends here."""


@dataclass
class Trouble:
    """Counts the calls. `at` is the one before which `what` happens; `after`: it happens when it is done."""

    what: Callable[[], Exception | BaseException] | None = None
    at: int = 0
    after: bool = False
    calls: list[str] = field(default_factory=list)
    dead: bool = False
    """The broker was killed: it asks nothing more."""

    async def call(self, name: str, do: Callable[[], Any]) -> Any:
        self.calls.append(name)
        await asyncio.sleep(0)
        if self.what is None:
            return do()
        hit = len(self.calls) == self.at or self.dead
        if hit and (self.dead or not self.after):
            self._raise()
        result = do()
        if hit:
            self._raise()
        return result

    def _raise(self) -> NoReturn:
        assert self.what is not None
        error = self.what()
        self.dead = isinstance(error, Killed)
        raise error


@dataclass
class FakeFiles:
    """Implements `HomeFiles`: volumes with bytes."""

    name: str
    trouble: Trouble
    volumes: dict[str, tuple[HomeFacts, bytes]] = field(default_factory=dict)
    marks: set[str] = field(default_factory=set)
    copies: dict[str, tuple[str, bytearray]] = field(default_factory=dict)
    away: bool = False
    room_bytes: int = 1 << 20
    spoil: bool = False
    """A byte of what is written is another one on the disk."""

    async def _do(self, name: str, do: Callable[[], Any]) -> Any:
        def unless_away() -> Any:
            if self.away:
                raise EngineFault(f"the machine {self.name} can't be reached: the connection was closed")
            return do()

        return await self.trouble.call(f"{self.name}.{name}", unless_away)

    async def describe(self, volume: str) -> HomeFacts | None:
        def look() -> HomeFacts | None:
            if volume not in self.volumes:
                return None
            return replace(self.volumes[volume][0], unfinished=volume in self.marks)

        found: HomeFacts | None = await self._do("describe", look)
        return found

    async def prepare(self, volume: str, facts: HomeFacts) -> None:
        def make() -> None:
            if volume in self.volumes and volume not in self.marks:
                raise ConfigError("it is there")
            self.marks.add(volume)
            self.volumes[volume] = (replace(facts, containers=(), unfinished=False), b"")

        await self._do("prepare", make)

    async def _begin(self, name: str, volume: str) -> str:
        def begin() -> str:
            copy_id = f"{name}-{len(self.copies)}"
            self.copies[copy_id] = (volume, bytearray(self.volumes[volume][1] if "read" in name else b""))
            return copy_id

        copy_id: str = await self._do(name, begin)
        return copy_id

    async def begin_read(self, volume: str) -> str:
        return await self._begin("begin_read", volume)

    async def begin_write(self, volume: str) -> str:
        return await self._begin("begin_write", volume)

    async def read(self, copy_id: str) -> bytes:
        def take() -> bytes:
            _, left = self.copies[copy_id]
            found = bytes(left[:CHUNK])
            del left[:CHUNK]
            return found

        data: bytes = await self._do("read", take)
        return data

    async def skim(self, copy_id: str) -> Skimmed:
        def take() -> Skimmed:
            data = bytes(self.copies[copy_id][1])
            return Skimmed(len(data), hashlib.sha256(data).hexdigest())

        found: Skimmed = await self._do("skim", take)
        return found

    async def write(self, copy_id: str, data: bytes) -> None:
        def put() -> None:
            volume, written = self.copies[copy_id]
            written += data
            if len(written) > self.room_bytes:
                raise EngineFault("Docker did not write a home: 500: write /home/x: no space left on device")
            content = bytes(written)
            if self.spoil:
                content = b"?" + content[1:]
            self.volumes[volume] = (self.volumes[volume][0], content)

        await self._do("write", put)

    async def finish(self, copy_id: str) -> bool:
        done: bool = await self._do("finish", lambda: True)
        return done

    async def end(self, copy_id: str) -> None:
        await self._do("end", lambda: self.copies.pop(copy_id, None))

    async def keep(self, volume: str) -> None:
        await self._do("keep", lambda: self.marks.discard(volume))

    async def drop(self, volume: str) -> None:
        def drop() -> None:
            if volume in self.marks:
                self.volumes.pop(volume, None)
                self.marks.discard(volume)

        await self._do("drop", drop)

    async def unfinished(self) -> tuple[str, ...]:
        found: tuple[str, ...] = await self._do("unfinished", lambda: tuple(sorted(self.marks)))
        return found


@dataclass
class FakeBook:
    """Implements `HomeBook`."""

    trouble: Trouble
    places: dict[str, str]
    holds: dict[str, str] = field(default_factory=dict)
    used_volumes: set[str] = field(default_factory=set)
    silent: bool = False

    def _do(self, name: str, do: Callable[[], Any]) -> Awaitable[Any]:
        def unless_silent() -> Any:
            if self.silent:
                raise EngineFault("Docker did not answer")
            return do()

        return self.trouble.call(f"book.{name}", unless_silent)

    async def machine_of(self, volume: str) -> str:
        found: str = await self._do("machine_of", lambda: self.places.get(volume, ""))
        return found

    async def place(self, volume: str, machine: str) -> None:
        await self._do("place", lambda: self.places.update({volume: machine}))

    async def hold(self, volume: str, machine: str) -> None:
        await self._do("hold", lambda: self.holds.update({volume: machine}))

    async def release(self, volume: str) -> None:
        await self._do("release", lambda: self.holds.pop(volume, None))

    async def held(self) -> dict[str, str]:
        found: dict[str, str] = await self._do("held", lambda: dict(self.holds))
        return found

    async def used(self) -> set[str]:
        found: set[str] = await self._do("used", lambda: set(self.used_volumes))
        return found
