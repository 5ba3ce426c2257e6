"""Moves homes between the machines of a Swarm: held, copied, compared, and only then written down as moved.

The home's place in the Swarm is what counts. Whatever ends a move before it is written there, the home is
where it was, and what was copied is dropped; whatever ends it after that, the copy is the home. So a broker
that starts only has to look where each home is that it finds held, or unfinished on a machine.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from ...core.errors import BadOption, ConfigError, Fault, LeaseConflict, RequestConflict
from ...core.model import Lease
from ...core.text import escape_name
from ...core.units import Clock, utc_now
from ...node.homes import HomeBook, HomeFacts, HomeFiles, Skimmed

LOOK_SECONDS = 30.0
"""So often it is looked for what ended moves have left."""
KEPT = 100
"""So many moves that are over are told of."""
GONE_SECONDS = 15.0
"""So long a move waits for the container of a server that has just been stopped: Swarm removes it some
seconds after the service."""
_GONE_LOOK_SECONDS = 0.25
_FULL = "no space left on device"


class MoveState(StrEnum):
    """How far a move is."""

    COPYING = "copying"
    COMPARING = "comparing"
    DONE = "done"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens."""
        return self in (MoveState.DONE, MoveState.FAILED)


@dataclass(frozen=True, slots=True)
class MoveOrder:
    """What an admin asks for. `user` is as it stands in the volume's name. `copied`: the files are on that
    machine already, brought there by other means."""

    volume: str
    user: str
    machine: str
    copied: bool = False


@dataclass(frozen=True, slots=True)
class HomeMove:
    """One move. `size_bytes` is how much of the tar was copied, or compared; `message` is what came of it."""

    id: str
    order: MoveOrder
    source: str
    began_at: datetime
    state: MoveState = MoveState.COPYING
    size_bytes: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class MoveParts:
    """What moves need. `files` has the homes of each machine by its name; it changes as machines join."""

    book: HomeBook
    files: Callable[[], Mapping[str, HomeFiles]]
    leases: Callable[[], Sequence[Lease]]
    log: logging.Logger
    clock: Clock = utc_now


class HomeMoves:
    """One a broker whose labs are services of a Swarm."""

    def __init__(self, parts: MoveParts) -> None:
        self._parts, self._book, self._log = parts, parts.book, parts.log
        self._moves: dict[str, HomeMove] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._busy: set[str] = set()
        """The volumes that are being moved, or about to be."""

    def all(self) -> tuple[HomeMove, ...]:
        """The moves since the broker began, the oldest first."""
        return tuple(self._moves.values())

    async def begin(self, order: MoveOrder) -> HomeMove:
        """Holds the home and begins to copy it. Raises a Refusal, or EngineFault if Docker doesn't answer."""
        if order.volume in self._busy:
            raise RequestConflict(f"The home {order.volume} is being moved: `gpuspawner homes` shows it.")
        self._busy.add(order.volume)
        try:
            source = await self._find(order)
            await self._book.hold(order.volume, order.machine)
            try:
                await self._check_unused(order, source)
            except BaseException:
                await self._book.release(order.volume)
                raise
        except BaseException:
            self._busy.discard(order.volume)
            raise
        move = HomeMove(uuid.uuid4().hex, order, source, self._parts.clock())
        self._keep(move)
        self._log.info("Moving the home %s from %s to %s", order.volume, source, order.machine)
        self._tasks[move.id] = asyncio.create_task(self._run(move), name=f"move {order.volume}")
        return move

    async def look(self) -> None:
        """Finishes or undoes what a broker or an agent that was killed has left. Raises EngineFault."""
        for volume, machine in (await self._book.held()).items():
            if volume not in self._busy:
                await self._settle(volume, machine)
        for name, files in self._parts.files().items():
            left: tuple[str, ...] = ()
            with suppress(Fault):  # it is away: when it is back
                left = await files.unfinished()
            for volume in left:
                if volume not in self._busy:
                    await self._tidy(volume, name)

    async def run(self, on_failure: Callable[[Exception], None]) -> None:
        """Looks until cancelled."""
        while True:
            try:
                await self.look()
            except Exception as error:  # the top of this loop
                on_failure(error)
            await asyncio.sleep(LOOK_SECONDS)

    async def close(self) -> None:
        """Ends the moves: the next broker undoes them."""
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- before

    async def _find(self, order: MoveOrder) -> str:
        """The machine that has the home. Raises BadOption, EngineFault."""
        files = self._parts.files()
        if order.machine not in files:
            raise BadOption(f"There is no machine {order.machine!r}: there are {', '.join(sorted(files))}.")
        source = await self._book.machine_of(order.volume)
        if not source:
            raise BadOption(f"No machine has a home {order.volume!r}: `gpuspawner homes` lists them.")
        if source == order.machine:
            raise BadOption(f"The home {order.volume} is on {source} already.")
        there = await files[order.machine].describe(order.volume)
        if order.copied and (there is None or there.unfinished):
            raise BadOption(f"{order.machine} has no volume {order.volume}: copy the files there first.")
        if not order.copied and source not in files:
            raise BadOption(
                f"The home is on {source}, which isn't one of this broker's machines: see `gpuspawner node "
                "list`."
            )
        if not order.copied and there is not None and not there.unfinished:
            raise BadOption(
                f"{order.machine} has an older volume {order.volume}, as of an earlier move. If nobody needs "
                f"it, remove it with `docker volume rm {order.volume}` on {order.machine}, and try again."
            )
        return source

    async def _check_unused(self, order: MoveOrder, source: str) -> None:
        """Raises LeaseConflict while a server of the user runs or waits, EngineFault. The home is held."""
        for lease in self._parts.leases():
            if escape_name(lease.user.lower()) == order.user:
                server = f"server {lease.server!r}" if lease.server else "server"
                raise LeaseConflict(
                    f"A {server} of {lease.user} is {lease.state.value}: stop it first, then move the home."
                )
        if order.volume in await self._book.used():
            raise LeaseConflict(f"A server has the home {order.volume}: stop the user's servers first.")
        if order.copied:
            return
        if containers := await self._containers(order, source):
            raise LeaseConflict(
                f"The home {order.volume} is in use on {source}, by {', '.join(containers)}: stop that first."
            )

    async def _containers(self, order: MoveOrder, source: str) -> tuple[str, ...]:
        """Those that still have the home after GONE_SECONDS. Raises BadOption, EngineFault."""
        deadline = time.monotonic() + GONE_SECONDS
        while True:
            facts = await self._parts.files()[source].describe(order.volume)
            if facts is None:
                raise BadOption(
                    f"{source} has no volume {order.volume}: nobody has started a server with it yet."
                )
            if not facts.containers or time.monotonic() > deadline:
                return facts.containers
            await asyncio.sleep(_GONE_LOOK_SECONDS)

    # ---- the move

    async def _run(self, move: HomeMove) -> None:
        order, why = move.order, ""
        try:
            try:
                if not order.copied:
                    move = await self._copy(move)
                await self._book.place(order.volume, order.machine)
            except (Fault, ConfigError) as error:
                why = str(error)
            await self._end(move, why)
        finally:
            self._tasks.pop(move.id, None)
            self._busy.discard(order.volume)

    async def _end(self, move: HomeMove, why: str) -> None:
        """What came of it is what the Swarm says of the home."""
        order = move.order
        try:
            is_moved = await self._settle(order.volume, order.machine)
        except Fault as fault:
            self._over(
                move,
                MoveState.FAILED,
                f"{why or fault}. The Swarm doesn't answer, so it isn't known where the home is: the broker "
                "asks again, and until then no server with it starts.",
            )
            return
        if is_moved:
            self._over(move, MoveState.DONE, _done(move))
        else:
            self._over(move, MoveState.FAILED, _failed(move, why))

    async def _copy(self, move: HomeMove) -> HomeMove:
        """Copies the home and compares the copy. Raises Fault, ConfigError."""
        volume, files = move.order.volume, self._parts.files()
        source, target = files[move.source], files[move.order.machine]
        facts = await source.describe(volume)
        await target.prepare(volume, facts or HomeFacts("local"))
        reading = await source.begin_read(volume)
        try:
            writing = await target.begin_write(volume)
            try:
                sent, move = await self._stream(move, (source, reading), (target, writing))
            finally:
                await _end_copy(target, writing)
        finally:
            await _end_copy(source, reading)
        found = await self._compare(replace(move, state=MoveState.COMPARING, size_bytes=0), target)
        if found != sent:
            raise Fault(
                f"the copy on {move.order.machine} isn't the same as the home (its tar has "
                f"{found.size_bytes} bytes with sum {found.digest[:12]}, and not "
                f"{sent.size_bytes} with {sent.digest[:12]}; "
                "different versions of Docker may write it differently)"
            )
        return move

    async def _stream(
        self, move: HomeMove, source: tuple[HomeFiles, str], target: tuple[HomeFiles, str]
    ) -> tuple[Skimmed, HomeMove]:
        """Passes the tar on, a chunk at a time; returns its sum."""
        (reader, reading), (writer, writing) = source, target
        digest, data = hashlib.sha256(), await reader.read(reading)
        while data:
            digest.update(data)
            move = self._keep(replace(move, size_bytes=move.size_bytes + len(data)))
            following, _ = await asyncio.gather(reader.read(reading), writer.write(writing, data))
            data = following
        while not await writer.finish(writing):
            continue
        return Skimmed(move.size_bytes, digest.hexdigest()), move

    async def _compare(self, move: HomeMove, target: HomeFiles) -> Skimmed:
        """The sum of what is on the other machine now."""
        reading = await target.begin_read(move.order.volume)
        try:
            while not (found := await target.skim(reading)).digest:
                self._keep(replace(move, size_bytes=found.size_bytes))
        finally:
            await _end_copy(target, reading)
        return found

    # ---- after

    async def _settle(self, volume: str, machine: str) -> bool:
        """Ends the hold of a move to this machine; returns whether the home is there now.

        Raises EngineFault if the Swarm doesn't say where the home is: it stays held.
        """
        is_moved = await self._tidy(volume, machine)
        await self._book.release(volume)
        return is_moved

    async def _tidy(self, volume: str, machine: str) -> bool:
        """Keeps the copy on this machine if the home is there, else drops it. Raises as `_settle`.

        If the machine doesn't answer, that is done when it is back.
        """
        is_moved = await self._book.machine_of(volume) == machine
        files = self._parts.files().get(machine)
        if files is not None:
            with suppress(Fault):
                await (files.keep(volume) if is_moved else files.drop(volume))
        return is_moved

    def _over(self, move: HomeMove, state: MoveState, message: str) -> None:
        self._keep(replace(move, state=state, message=message))
        level = logging.INFO if state is MoveState.DONE else logging.WARNING
        self._log.log(level, "%s", message)

    def _keep(self, move: HomeMove) -> HomeMove:
        self._moves[move.id] = move
        over = [each.id for each in self._moves.values() if each.state.is_over]
        for old in over[:-KEPT]:
            del self._moves[old]
        return move


async def _end_copy(files: HomeFiles, copy_id: str) -> None:
    with suppress(Fault):  # a later look removes what it has left
        await files.end(copy_id)


def _done(move: HomeMove) -> str:
    order = move.order
    return (
        f"The home {order.volume} is on {order.machine} now. The old copy stays on {move.source} until you "
        f"remove it there: `docker volume rm {order.volume}`."
    )


def _failed(move: HomeMove, why: str) -> str:
    order = move.order
    if _FULL in why:
        why = f"the disk of Docker on {order.machine} is full: free space there, and move it again"
    return f"The home {order.volume} was not moved, and is still on {move.source}: {why}."
