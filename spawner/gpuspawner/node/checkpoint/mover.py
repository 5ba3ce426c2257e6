"""Pauses, moves and wakes whole containers through the driver: all processes of a container or none.

Earlier answers of the driver are not trusted: each step begins with a query of the state. So these methods
also bring a container into the right state after the helper or the broker was killed at any step.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ...core.errors import DeviceFault
from ..daemon_pool import DaemonPool
from ..processes import Process
from .book import Key, SleepBook, Slept
from .host import Host, Seat
from .order import (
    GONE,
    HELPER_LOST,
    ILLEGAL_STATE,
    NOT_READY,
    NOT_SUPPORTED,
    OPERATING_SYSTEM,
    OUT_OF_MEMORY,
    SILENT,
    Answer,
    Driver,
    GpuMap,
    Operation,
    Order,
    ProcessState,
)
from .outcome import Condition, Obstacle, Outcome

T = TypeVar("T")
States = Mapping[Process, ProcessState]
"""Of the processes that have a CUDA context; those without are left out."""

_TARGET = {
    Operation.LOCK: ProcessState.LOCKED,
    Operation.CHECKPOINT: ProcessState.CHECKPOINTED,
    Operation.RESTORE: ProcessState.LOCKED,
    Operation.UNLOCK: ProcessState.RUNNING,
}
_SOURCE = {
    Operation.LOCK: ProcessState.RUNNING,
    Operation.CHECKPOINT: ProcessState.LOCKED,
    Operation.RESTORE: ProcessState.CHECKPOINTED,
    Operation.UNLOCK: ProcessState.LOCKED,
}
_MOVING = (ProcessState.CHECKPOINTING, ProcessState.RESTORING)
_OBSTACLES = {
    NOT_READY: Obstacle.BUSY,
    NOT_SUPPORTED: Obstacle.UNSUPPORTED,
    OUT_OF_MEMORY: Obstacle.GPU_MEMORY,
    SILENT: Obstacle.SILENT,
    HELPER_LOST: Obstacle.HELPER,
    OPERATING_SYSTEM: Obstacle.FAILED,
}


@dataclass(frozen=True, slots=True)
class MoverRules:
    """Limits of moving. `host_reserve_bytes` and `gpu_reserve_bytes` are left free in any case.

    A sleeping process charges its container its GPU memory and some more: 12 GiB became 13.3 with the
    program's own (measured, driver 580); `copy_extra_bytes` a process are allowed for it.
    """

    lock_seconds: float = 2.0
    settle_seconds: float = 60.0
    """How long a step that another helper began may take to end."""
    host_reserve_bytes: int = 2 << 30
    gpu_reserve_bytes: int = 600 << 20
    copy_extra_bytes: int = 1 << 30
    most_looks: int = 20


class _StepFailed(Exception):
    """A step could not be done; caught in `Mover`, never seen outside."""

    def __init__(self, obstacle: Obstacle, detail: str) -> None:
        super().__init__(detail)
        self.obstacle, self.detail = obstacle, detail


class _Moved(_StepFailed):
    """A process has another state than a moment ago: a call of an ended helper continued. Check again."""


@dataclass
class _Work:
    """One operation on one container: where each process was at its beginning, so that it can go back."""

    seat: Seat
    began: float = field(default_factory=time.monotonic)
    before: dict[Process, ProcessState] = field(default_factory=dict)
    moved_bytes: int = 0


class Mover:
    """On one event loop. Operations on one container run one after the other, others in parallel."""

    def __init__(self, driver: Driver, host: Host, book: SleepBook, rules: MoverRules | None = None) -> None:
        self._driver, self._host, self._book = driver, host, book
        self._rules = rules or MoverRules()
        self._pool = DaemonPool("checkpoint-host", most=1)  # the host's methods are for one thread
        self._locks: dict[str, asyncio.Lock] = {}

    def close(self) -> None:
        """Ends its thread. Containers stay as they are."""
        self._pool.close()

    # ---- operations

    async def look(self, seat: Seat) -> Condition:
        """Where its processes are."""
        try:
            return condition_of((await self._states(seat)).values())
        except (_StepFailed, DeviceFault):
            return Condition.UNKNOWN

    async def pause(self, seat: Seat, lock_seconds: float | None = None) -> Outcome:
        """No process in it computes when this is done; the memory stays where it is. About 1 ms."""

        async def steps(work: _Work) -> None:
            await self._lock_all(work, lock_seconds or self._rules.lock_seconds)

        return await self._do(seat, steps)

    async def sleep(self, seat: Seat, lock_seconds: float | None = None) -> Outcome:
        """Its memory is in host memory when this is done; about 0.5 s a GiB."""

        async def steps(work: _Work) -> None:
            for _ in range(self._rules.most_looks):
                try:
                    await self._lock_all(work, lock_seconds or self._rules.lock_seconds)
                    states = await self._states(seat)
                    locked = [each for each in states if states[each] is ProcessState.LOCKED]
                    await self._checkpoint(work, locked)
                except _Moved:
                    continue
                if all(state is ProcessState.CHECKPOINTED for state in (await self._states(seat)).values()):
                    return
            raise _StepFailed(Obstacle.RESTLESS, "new processes")

        return await self._do(seat, steps)

    async def wake(self, seat: Seat, gpu_uuid: str) -> Outcome:
        """It computes on that GPU when this is done; 0.2 s a GiB if it slept, 1 ms if it was paused there."""

        async def steps(work: _Work) -> None:
            for _ in range(self._rules.most_looks):
                try:
                    if await self._bring(work, gpu_uuid):
                        return
                except _Moved:
                    continue
            raise _StepFailed(Obstacle.RESTLESS, "new processes")

        return await self._do(seat, steps)

    async def settle(self, seat: Seat) -> bool:
        """Puts the container's own memory limit back if it is awake; whether it has it now."""
        async with self._lock(seat):
            if await self.look(seat) in (Condition.AWAKE, Condition.NONE):
                await self._put_back(seat)
            return self._book.limit(seat.container_id) is None

    async def forget(self, alive: Iterable[Seat]) -> None:
        """Only these containers exist now: removes the records of others."""
        seats = list(alive)
        found = await self._run(lambda: [each for seat in seats for each in self._host.processes(seat)])
        keys, ids = {key_of(each) for each in found}, {seat.container_id for seat in seats}
        self._locks = {key: lock for key, lock in self._locks.items() if key in ids or lock.locked()}
        await self._run(lambda: self._book.keep(keys, ids))

    # ---- one operation

    def _lock(self, seat: Seat) -> asyncio.Lock:
        return self._locks.setdefault(seat.container_id, asyncio.Lock())

    async def _do(self, seat: Seat, steps: Callable[[_Work], Awaitable[None]]) -> Outcome:
        """Carries out the steps; undoes them if one fails. Must not be interrupted in between."""
        return await asyncio.shield(asyncio.ensure_future(self._do_all(seat, steps)))

    async def _do_all(self, seat: Seat, steps: Callable[[_Work], Awaitable[None]]) -> Outcome:
        async with self._lock(seat):
            work = _Work(seat)
            failure: _StepFailed | None = None
            try:
                await steps(work)
            except _StepFailed as error:
                failure = error
            except DeviceFault as fault:
                failure = _StepFailed(Obstacle.REFUSED, str(fault))
            if failure is not None:
                failure = await self._undo(work) or failure
            outcome = Outcome(
                await self.look(seat),
                seconds=time.monotonic() - work.began,
                process_count=len(work.before),
                moved_bytes=work.moved_bytes,
            )
            if failure is None:
                return outcome
            return replace(outcome, obstacle=failure.obstacle, detail=failure.detail)

    async def _undo(self, work: _Work) -> _StepFailed | None:
        """Returns each process to its earlier state. The obstacle to that, if there is one."""
        try:
            now = await self._states(work.seat)
            fell_asleep = [
                each
                for each, before in work.before.items()
                if before is not ProcessState.CHECKPOINTED and now.get(each) is ProcessState.CHECKPOINTED
            ]
            await self._all(Operation.RESTORE, fell_asleep)
            woke = [
                each
                for each, before in work.before.items()
                if before is ProcessState.CHECKPOINTED and now.get(each) is ProcessState.LOCKED
            ]
            await self._checkpoint(work, woke)
            now = await self._states(work.seat)
            stopped = [
                each
                for each, before in work.before.items()
                if before is ProcessState.RUNNING and now.get(each) is ProcessState.LOCKED
            ]
            await self._all(Operation.UNLOCK, stopped)
            if all(state is ProcessState.RUNNING for state in (await self._states(work.seat)).values()):
                await self._put_back(work.seat)
        except _StepFailed as error:
            return error
        except DeviceFault as fault:
            return _StepFailed(Obstacle.REFUSED, str(fault))
        return None

    # ---- steps

    async def _lock_all(self, work: _Work, seconds: float) -> None:
        """Locks running processes, until two queries see the same processes and none runs."""
        seen: frozenset[Process] = frozenset()
        for _ in range(self._rules.most_looks):
            states = await self._states(work.seat)
            for process, state in states.items():
                work.before.setdefault(process, state)
            running = [each for each, state in states.items() if state is ProcessState.RUNNING]
            if not running and seen == frozenset(states):
                return
            seen = frozenset(states)
            await self._all(Operation.LOCK, running, seconds=seconds)
        raise _StepFailed(Obstacle.RESTLESS, "new processes")

    async def _checkpoint(self, work: _Work, locked: list[Process]) -> None:
        """Moves the memory of locked processes to the host's, having looked whether it has room."""
        if not locked:
            return
        on_gpus = await self._run(lambda: self._host.on_gpus(work.seat.gpu_uuids))
        slept = {}
        for process in locked:
            gpus = on_gpus.get(process.pid, {})
            uuid = next(iter(gpus)) if len(gpus) == 1 else ""
            slept[key_of(process)] = Slept(uuid, sum(gpus.values()))
        size = sum(each.memory_bytes for each in slept.values())
        extra = size + self._rules.copy_extra_bytes * len(locked)
        await self._run(lambda: self._make_room(work.seat, slept, extra))
        await self._all(Operation.CHECKPOINT, locked)
        work.moved_bytes += size

    def _make_room(self, seat: Seat, slept: Mapping[Key, Slept], extra_bytes: int) -> None:
        """Checks the host's memory, records what is needed later, raises the container's limit. Blocks."""
        cgroup = self._host.memory(seat)
        if cgroup is None:
            self._book.note(seat.container_id, None, slept)
            return
        room = cgroup.room_bytes()
        if room < extra_bytes + self._rules.host_reserve_bytes:
            raise _StepFailed(Obstacle.HOST_MEMORY, f"{extra_bytes} B needed, {room} B available")
        own = self._book.limit(seat.container_id) or cgroup.limit()
        self._book.note(seat.container_id, own, slept)
        cgroup.raise_limit(own, extra_bytes)

    async def _strays(self, work: _Work, gpu_uuid: str) -> list[Process]:
        """Processes whose memory is on another GPU than that one, locked."""
        states = await self._states(work.seat)
        for process, state in states.items():
            work.before.setdefault(process, state)
        on_gpus = await self._run(lambda: self._host.on_gpus(work.seat.gpu_uuids))
        strays = [
            each
            for each, state in states.items()
            if state is not ProcessState.CHECKPOINTED and set(on_gpus.get(each.pid, {})) - {gpu_uuid}
        ]
        several = [each.pid for each in strays if len(on_gpus[each.pid]) > 1]
        if several:
            raise _StepFailed(Obstacle.SEVERAL_GPUS, f"pid {several[0]}")
        running = [each for each in strays if states[each] is ProcessState.RUNNING]
        await self._all(Operation.LOCK, running, seconds=self._rules.lock_seconds)
        return strays

    async def _restore(self, work: _Work, gpu_uuid: str) -> None:
        """Brings memory back to that GPU, having looked whether it has room; all stay locked."""
        states = await self._states(work.seat)
        sleeping = [each for each, state in states.items() if state is ProcessState.CHECKPOINTED]
        if not sleeping:
            return
        slept = {each: self._book.slept(key_of(each)) for each in sleeping}
        size = sum(each.memory_bytes for each in slept.values() if each is not None)
        needed = size + self._rules.gpu_reserve_bytes
        free = await self._run(lambda: self._host.free_bytes(gpu_uuid))
        if free < needed:
            raise _StepFailed(Obstacle.GPU_MEMORY, f"{needed} B needed, {free} B free")
        if any(each is not None and not each.gpu_uuid for each in slept.values()):
            raise _StepFailed(Obstacle.SEVERAL_GPUS, "it slept with memory on several GPUs")
        maps = {each: gpu_map(work.seat, slept[each], gpu_uuid) for each in sleeping}
        await self._each([self._step(Operation.RESTORE, each, gpu_map=maps[each]) for each in sleeping])
        work.moved_bytes += size

    async def _bring(self, work: _Work, gpu_uuid: str) -> bool:
        """All on that GPU and unlocked, and the limit put back; False if there is a new process elsewhere."""
        await self._checkpoint(work, await self._strays(work, gpu_uuid))
        await self._restore(work, gpu_uuid)
        if await self._strays(work, gpu_uuid):
            return False
        states = await self._states(work.seat)
        await self._all(
            Operation.UNLOCK, [each for each in states if states[each] is not ProcessState.RUNNING]
        )
        await self._put_back(work.seat)
        return True

    async def _put_back(self, seat: Seat) -> None:
        """The container has its own memory limit again, unless it uses more than that now."""

        def blocking() -> None:
            limit, cgroup = self._book.limit(seat.container_id), self._host.memory(seat)
            if limit is not None and (cgroup is None or cgroup.put_back(limit)):
                self._book.clear_limit(seat.container_id)

        await self._run(blocking)

    # ---- the driver

    async def _states(self, seat: Seat) -> dict[Process, ProcessState]:
        """Of its processes that have a CUDA context. Raises _StepFailed where the driver doesn't say."""
        processes = await self._run(lambda: self._host.processes(seat))
        answers = await asyncio.gather(*(self._ask(each) for each in processes))
        found = {}
        for process, answer in zip(processes, answers, strict=True):
            if answer.state is not None:
                found[process] = answer.state
            elif not answer.has_no_cuda and answer.code != GONE:
                raise _StepFailed(
                    _OBSTACLES.get(answer.code, Obstacle.REFUSED), f"{answer.code} pid {process.pid}"
                )
        failed = [each.pid for each, state in found.items() if state is ProcessState.FAILED]
        if failed:
            raise _StepFailed(Obstacle.FAILED, f"pid {failed[0]}")
        return found

    async def _ask(self, process: Process) -> Answer:
        order = Order(Operation.STATE, process.pid, process.start_ticks)
        answer = await self._driver.call(order)
        if answer.code == HELPER_LOST:  # a new helper starts with the next call
            answer = await self._driver.call(order)
        return answer

    async def _all(
        self, operation: Operation, processes: Iterable[Process], seconds: float | None = None
    ) -> None:
        await self._each([self._step(operation, each, seconds=seconds) for each in processes])

    async def _each(self, steps: Iterable[Awaitable[None]]) -> None:
        """All at once; waits for every one before it raises what the first that failed raised."""
        results = await asyncio.gather(*steps, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _step(
        self, operation: Operation, process: Process, seconds: float | None = None, gpu_map: GpuMap = ()
    ) -> None:
        """One call, repeated while another helper's call for the same process is under way.

        Returns as soon as the process has the wanted state, by any call, or has ended.
        """
        order = Order(operation, process.pid, process.start_ticks, seconds, gpu_map)
        end = time.monotonic() + self._rules.settle_seconds
        while True:
            answer = await self._driver.call(order)
            if answer.ok or answer.code == GONE:
                return
            if answer.code in (HELPER_LOST, ILLEGAL_STATE):
                asked = await self._ask(process)
                if asked.state is _TARGET[operation] or asked.code == GONE:
                    return
                if asked.ok and asked.state not in (_SOURCE[operation], *_MOVING, ProcessState.FAILED):
                    raise _Moved(Obstacle.RESTLESS, f"{operation.value}: pid {process.pid} is {asked.state}")
                if time.monotonic() < end and asked.state is not ProcessState.FAILED:
                    await asyncio.sleep(0.05)
                    continue
            obstacle = _OBSTACLES.get(answer.code, Obstacle.REFUSED)
            raise _StepFailed(obstacle, f"{operation.value}: {answer.code} pid {process.pid}")

    async def _run(self, call: Callable[[], T]) -> T:
        return await self._pool.submit(call)


def key_of(process: Process) -> Key:
    """Which process it is."""
    return process.pid, process.start_ticks


def condition_of(states: Iterable[ProcessState]) -> Condition:
    """Where a container is whose processes with a CUDA context are in these states."""
    found = set(states)
    if not found:
        return Condition.NONE
    if found == {ProcessState.RUNNING}:
        return Condition.AWAKE
    if found == {ProcessState.CHECKPOINTED}:
        return Condition.ASLEEP
    if found <= {ProcessState.LOCKED, ProcessState.CHECKPOINTED}:
        return Condition.PAUSED
    return Condition.MIXED


def gpu_map(seat: Seat, slept: Slept | None, gpu_uuid: str) -> GpuMap:
    """The restore's map: the GPU where it was and the wanted one change places, all others stay.

    Empty, so that it goes back to where it was, if that is not known or is the wanted one.
    """
    if slept is None or slept.gpu_uuid == gpu_uuid:
        return ()
    swap = {slept.gpu_uuid: gpu_uuid, gpu_uuid: slept.gpu_uuid}
    return tuple((each, swap.get(each, each)) for each in seat.gpu_uuids)
