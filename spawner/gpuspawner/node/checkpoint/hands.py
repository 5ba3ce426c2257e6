"""The broker's operations for turns on one machine: read a seat's state; pause, move, wake or end it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from ...core.errors import DeviceFault
from ..daemon_pool import DaemonPool
from ..inventory import Inventory
from ..processes import Process, ProcessTable
from ..waiting import ThreadWait, WaitWatch, read_wait
from .book import Key, SleepBook
from .host import Host, Seat
from .mover import Mover, key_of
from .outcome import Condition, Outcome

LOOK_SECONDS = 1.0
"""So long a sample waits for the driver's answers; a seat without one is UNKNOWN, and is not asked again
before it comes. A driver that hangs for one program must not stop the turns of all."""


@dataclass(frozen=True, slots=True)
class SeatReading:
    """A seat's state. `on_gpus`: bytes by UUID, without sleeping processes. `asleep_bytes`: in host memory.

    `waits`: the main thread of one of its programs has begun to wait, as it does for the GPU. `rests`: those
    of all its programs that use CUDA wait for input, as a notebook's between two cells.
    """

    condition: Condition
    on_gpus: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    asleep_bytes: int = 0
    waits: bool = False
    rests: bool = False


@dataclass(frozen=True, slots=True)
class TurnReadings:
    """One sample. `busy`: whether anybody computed on a GPU lately; without GPUs that don't say."""

    seats: Mapping[str, SeatReading]
    """By container id."""
    busy: Mapping[str, bool]


class TurnHands(Protocol):
    """The interface between the code that decides on turns and the machine."""

    async def read(self, seats: Sequence[Seat]) -> TurnReadings:
        """The state of these seats. A seat whose state can't be read is UNKNOWN."""
        ...

    async def pause(self, seat: Seat) -> Outcome:
        """See `Mover`, also for the next two."""
        ...

    async def sleep(self, seat: Seat) -> Outcome:
        """Moves its memory to the host's."""
        ...

    async def wake(self, seat: Seat, gpu_uuid: str) -> Outcome:
        """Lets it compute on that GPU."""
        ...

    async def may_end(self, seat: Seat) -> bool:
        """Whether its programs may be killed as they are; if not, they have to sleep first."""
        ...

    async def end(self, seat: Seat) -> int:
        """Ends its programs that use CUDA, and no others. Returns how many."""
        ...

    async def forget(self, alive: Sequence[Seat]) -> None:
        """Only these seats exist now: removes the data of others from disk. Raises DeviceFault."""
        ...


class LocalHands:
    """This machine. All methods on one event loop."""

    sleeps_before_end = False
    """Whether this driver hangs if a program is killed that slept and was woken (595 to 609)."""

    def __init__(
        self,
        mover: Mover,
        host: Host,
        inventory: Inventory,
        book: SleepBook,
        wait_of: Callable[[int], ThreadWait | None] = read_wait,
    ) -> None:
        self._mover, self._host, self._inventory, self._book = mover, host, inventory, book
        self._wait_of = wait_of
        self._watches: dict[Key, WaitWatch] = {}
        self._looks: dict[str, asyncio.Task[Condition]] = {}
        """Looks at seats that the driver has not answered yet, by container id."""
        self._table = ProcessTable()
        self._pool = DaemonPool("turns", most=1)

    def close(self) -> None:
        """Ends its threads. Seats stay as they are."""
        for look in self._looks.values():
            look.cancel()
        self._pool.close()
        self._mover.close()

    async def read(self, seats: Sequence[Seat]) -> TurnReadings:
        """Asks the driver for each seat, and reads /proc and NVML.

        Puts back the memory limit of a container that used more than its own when it was woken.
        """
        conditions = await self._look(seats)
        for seat in seats:
            if conditions[seat.container_id] is Condition.AWAKE and self._book.limit(seat.container_id):
                await self._mover.settle(seat)
        return await self._pool.submit(lambda: self._read(seats, conditions))

    async def _look(self, seats: Sequence[Seat]) -> dict[str, Condition]:
        """Where their processes are, by container id; UNKNOWN where the driver doesn't answer soon."""
        for seat in seats:
            if seat.container_id not in self._looks:
                self._looks[seat.container_id] = asyncio.create_task(self._mover.look(seat), name="turn-look")
        looks = {seat.container_id: self._looks[seat.container_id] for seat in seats}
        if looks:
            await asyncio.wait(looks.values(), timeout=LOOK_SECONDS)
        for container_id, look in looks.items():
            if look.done():
                self._looks.pop(container_id, None)
        return {
            container_id: look.result() if look.done() and not look.cancelled() else Condition.UNKNOWN
            for container_id, look in looks.items()
        }

    def _forget_look(self, seat: Seat) -> None:
        """A step begins: what was asked before it is not true afterwards."""
        look = self._looks.pop(seat.container_id, None)
        if look is not None:
            look.cancel()

    async def pause(self, seat: Seat) -> Outcome:
        """Before a pause: record what its programs wait on now, as their usual state."""
        self._forget_look(seat)
        await self._pool.submit(lambda: self._begin_watching(seat))
        return await self._mover.pause(seat)

    async def sleep(self, seat: Seat) -> Outcome:
        """The same, unless it was paused before."""
        self._forget_look(seat)
        await self._pool.submit(lambda: self._begin_watching(seat))
        return await self._mover.sleep(seat)

    async def wake(self, seat: Seat, gpu_uuid: str) -> Outcome:
        """From then on its programs aren't watched."""
        self._forget_look(seat)
        outcome = await self._mover.wake(seat, gpu_uuid)
        if outcome.done:
            await self._pool.submit(lambda: self._end_watching(seat))
        return outcome

    async def may_end(self, seat: Seat) -> bool:
        """Not with such a driver, while a program that slept once is not asleep."""
        if not self.sleeps_before_end:
            return True
        found = await self._pool.submit(lambda: self._host.processes(seat))
        if all(self._book.slept(key_of(each)) is None for each in found):
            return True
        return await self._mover.look(seat) in (Condition.ASLEEP, Condition.NONE)

    async def end(self, seat: Seat) -> int:
        """SIGKILL to each program of it that uses CUDA."""

        def blocking() -> int:
            found = self._host.processes(seat)
            for process in found:
                self._table.end(process)
            return len(found)

        return await self._pool.submit(blocking)

    async def forget(self, alive: Sequence[Seat]) -> None:
        """As the mover does it."""
        await self._mover.forget(alive)

    def _begin_watching(self, seat: Seat) -> None:
        for process in self._host.processes(seat):
            if key_of(process) not in self._watches:
                self._look_at(process)

    def _end_watching(self, seat: Seat) -> None:
        for process in self._host.processes(seat):
            self._watches.pop(key_of(process), None)

    def _look_at(self, process: Process, wait: ThreadWait | None = None) -> bool:
        """One sample of its main thread: whether it waits for the GPU."""
        watch = self._watches.setdefault(key_of(process), WaitWatch())
        return watch.see(wait or self._wait_of(process.pid) or ThreadWait(), time.monotonic())

    def _read(self, seats: Sequence[Seat], conditions: Mapping[str, Condition]) -> TurnReadings:
        uuids = tuple(dict.fromkeys(uuid for seat in seats for uuid in seat.gpu_uuids))
        on_gpus = self._on_gpus(uuids)
        found, alive = {}, set()
        for seat in seats:
            condition = conditions[seat.container_id]
            try:
                processes = self._host.processes(seat)
            except DeviceFault:
                processes, condition = (), Condition.UNKNOWN
            alive |= {key_of(each) for each in processes}
            found[seat.container_id] = self._reading(condition, processes, on_gpus)
        gone = [key for key in self._watches.keys() - alive if self._wait_of(key[0]) is None]
        for key in gone:
            del self._watches[key]
        return TurnReadings(found, self._busy(uuids))

    def _reading(
        self, condition: Condition, processes: Iterable[Process], on_gpus: Mapping[int, Mapping[str, int]]
    ) -> SeatReading:
        sums: dict[str, int] = {}
        asleep_bytes, waits = 0, False
        doing: list[ThreadWait] = []
        for process in processes:
            mine = on_gpus.get(process.pid, {})
            for uuid, size in mine.items():
                sums[uuid] = sums.get(uuid, 0) + size
            slept = self._book.slept(key_of(process))
            if not mine and slept is not None:
                asleep_bytes += slept.memory_bytes
            wait = self._wait_of(process.pid)
            if wait is not None:  # it has not ended
                doing.append(wait)
                if condition in (Condition.PAUSED, Condition.ASLEEP):
                    waits |= self._look_at(process, wait)
        rests = bool(doing) and all(wait.for_input for wait in doing)
        return SeatReading(condition, sums, asleep_bytes, waits, rests)

    def _on_gpus(self, uuids: Iterable[str]) -> Mapping[int, Mapping[str, int]]:
        found: dict[int, dict[str, int]] = {}
        for uuid in uuids:
            try:
                listed = self._host.on_gpus((uuid,))
            except DeviceFault:
                continue
            for pid, sizes in listed.items():
                found.setdefault(pid, {}).update(sizes)
        return found

    def _busy(self, uuids: Iterable[str]) -> dict[str, bool]:
        """Only one seat computes on a GPU, so that the GPU's own use is that seat's."""
        found = {}
        for uuid in uuids:
            try:
                percent = self._inventory.utilization_percent(uuid)
            except DeviceFault:
                continue
            if percent is not None:
                found[uuid] = percent > 0
        return found
