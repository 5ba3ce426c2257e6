"""Leases from request to end: holds, the only release path, and the steps of reconciliation.

Every change of a lease goes through the allocator (and so is committed first); every question about
containers goes to Docker. A fault frees nothing: a later round does what could not be done now.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from weakref import WeakValueDictionary

from ...core import labels, states
from ...core.errors import BrokerUnavailable, GpuSpawnerError, LeaseConflict, Refusal
from ...core.model import ContainerPatch, Device, DeviceHealth, GpuRequest, Lease, LeaseState
from ...core.states import Actor, Event
from ...core.units import Clock, utc_now
from ...node.engine import OUT_OF_MEMORY, Container, ContainerEvent, Engine, EventsConnected
from ..decide.place.sharing_rules import SharingRules
from ..ledger import Ledger
from ..observe.metrics import Metrics
from .allocator import Allocator
from .engines import Engines
from .folders import Folders
from .logline import container_context
from .memory_notice import MemoryNotices
from .reconcile import Adopt, Charge, Facts, Release, Remove, SetRunning, Step, plan, unknown_ids
from .removals import Removals
from .watch import Watch

RESTORE_SECONDS = 3.0
"""After a restart of the broker a hub has this long to open its first hold again, and then this long for each
next one: a thousand take longer to answer than that. It tries at least once a second, and what a hub that is
gone has left must be gone within 5 s."""
READY_SECONDS = 5.0
SUPERSEDE_SECONDS = 10.0
_MOST_EXIT_CODES = 1000
"""The hub asks for one within some seconds, at its next look at the server."""
_LOOK_AGAIN_SECONDS = 0.2

NOT_READY = (
    "GPUs can't be given out right now: the GPU broker can't reach Docker yet. Try again in a minute. "
    "Admin: is the Docker Engine running ('docker info')?"
)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the service uses.

    `make_patch` is pure; `prepare` makes the node ready for the lease first, and may raise a Fault;
    `before_close` is called when Docker has no container of a lease any more, before its devices are free;
    `broker` is its name on its containers (`labels.broker_label`); `engines` are the Docker Engines that have
    them.
    """

    broker: str
    allocator: Allocator
    ledger: Ledger
    engines: Engines
    folders: Folders
    make_patch: Callable[[Lease], ContainerPatch]
    metrics: Metrics
    clock: Clock = utc_now
    prepare: Callable[[Lease], Awaitable[object]] | None = None
    before_close: Callable[[Lease], Awaitable[object]] | None = None


class LeaseService:
    """Leases from request to close. All methods run on one event loop."""

    def __init__(self, parts: Parts, log: logging.Logger) -> None:
        self._parts = parts
        self._allocator = parts.allocator
        self._engines = parts.engines
        self.log = log
        self._memory = MemoryNotices(self._allocator.lease, self.tell)
        self.ready = asyncio.Event()
        """Set once Docker was compared with the ledger: before that, no new lease is given."""
        self._holds: dict[str, int] = {}
        self._restored: set[str] = set()
        self._restore_until: float | None = None
        self._rounds: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        """By the identity of the engine."""
        self._servers: WeakValueDictionary[tuple[str, str, str], asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self.not_ready = NOT_READY
        """The refusal of a request that comes before that."""
        self._closing = False
        self._docker_down = False
        self._failing: set[str] = set()
        self._uncharged: set[str] = set()
        self._exit_codes: dict[str, int] = {}
        self._removals = Removals(lambda item: self.spawn(self.settle(item.lease_id), "removals"), log)

    def now(self) -> datetime:
        """The wall clock of the leases."""
        return self._parts.clock()

    def leases(self) -> tuple[Lease, ...]:
        """All living leases."""
        return self._allocator.leases()

    def misses_devices(self) -> bool:
        """Whether a lease holds a device that was not found."""
        return self._allocator.misses_devices()

    def watch(self, lease_id: str) -> Watch:
        """Follows one lease; see Allocator.watch."""
        return self._allocator.watch(lease_id)

    # ---- what the API calls

    @contextmanager
    def hold(self, lease_id: str) -> Iterator[None]:
        """Counts a connection that holds the lease; the caller awaits `dropped` after it."""
        self._holds[lease_id] = self._holds.get(lease_id, 0) + 1
        self._come_back(lease_id)
        try:
            yield
        finally:
            self._holds[lease_id] -= 1
            if not self._holds[lease_id]:
                del self._holds[lease_id]
                self._restored.discard(lease_id)

    async def open(self, request: GpuRequest) -> Lease:
        """A lease for the request, waiting or reserved; the same id always returns the same lease.

        Raises Refusal; EngineFault or LedgerFault if Docker or the ledger fail. An older lease of the
        same server ends first: the hub says that the server isn't running.
        """
        if self._allocator.lease(request.lease_id) is None:
            await self._wait_ready()
        key = (request.hub, request.user, request.server)
        lock = self._servers.setdefault(key, asyncio.Lock())
        async with lock:
            if self._allocator.lease(request.lease_id) is None:
                await self._supersede(request)
            return await self._allocator.acquire(request)

    async def patch(self, lease: Lease) -> ContainerPatch:
        """What the lease changes in its container; its folder is on disk before this returns.

        Waits for the way by which devices get into containers: the first round may have placed the lease
        before that is known. Raises Refusal, or a Fault.
        """
        await self._wait_ready()
        if self._parts.prepare is not None:
            await self._parts.prepare(lease)
        await self._parts.folders.write(lease)
        patch = self._parts.make_patch(lease)
        return replace(patch, labels={**patch.labels, **labels.broker_label(self._parts.broker)})

    def confirm(self, lease_id: str) -> None:
        """The fence before `docker start`. Raises LeaseConflict unless the lease is held and in use."""
        lease = self._allocator.lease(lease_id)
        held = lease is not None and self._kept(lease_id)  # a lease that nobody holds counts as closed
        states.after(lease.state if lease and held else LeaseState.CLOSED, Event.CONFIRM, Actor.HUB)

    async def stopped(self, lease_id: str) -> None:
        """The hub says that the server was stopped: remove its containers, then free its devices."""
        lease = await self._allocator.begin_release(lease_id, "stopped by its user or the hub", by=Actor.HUB)
        if lease is not None and lease.state is not LeaseState.CLOSED:
            self.spawn(self.release(lease_id, lease.reason), "hold")

    async def dropped(self, lease_id: str) -> None:
        """A hold closed: end a waiting lease at once, and a reserved lease unless its container runs."""
        lease = self._allocator.lease(lease_id)
        if self._closing or lease is None or self._kept(lease_id):
            return
        if lease.state is LeaseState.WAITING:
            self.spawn(self.release(lease_id, "the spawn was given up"), "hold")
        else:
            self.spawn(self.settle(lease_id), "hold")

    # ---- Docker and ledger

    async def release(
        self, lease_id: str, reason: str, ended_at: datetime | None = None, *, wait_seconds: float = 0.0
    ) -> bool:
        """End a lease; every lease ends in this way. Idempotent; True once it is closed.

        Its containers are removed in the background, and only when Docker says that none is left are the
        devices free: when the removals end, `settle` closes it. It waits `wait_seconds` for them at most.
        `ended_at` is when its container stopped, if that is known.
        Raises EngineFault or LedgerFault; the lease then stays as it is for a later round.
        """
        lease = await self._allocator.begin_release(lease_id, reason, ended_at=ended_at)
        if lease is None:
            return True
        if lease.state is LeaseState.CLOSED:
            await self._parts.folders.remove(lease_id)
            return True
        engine = self._engines.of(lease)
        containers = await engine.list(lease_id)
        for container in containers:
            if container.state != "removing":
                self._removals.begin(container, engine.remove)
        if containers:
            await self._removals.wait((each.id for each in containers), wait_seconds)
            if not wait_seconds or await engine.list(lease_id):
                return False
        if self._parts.before_close is not None:
            await self._parts.before_close(lease)
        await self._parts.folders.remove(lease_id)
        await self._allocator.close(lease_id)
        return True

    async def forget(self, lease_id: str, reason: str) -> None:
        """Closes a lease without asking Docker: its machine is gone, says an admin. Raises LedgerFault."""
        lease = await self._allocator.begin_release(lease_id, reason)
        if lease is not None and lease.state is not LeaseState.CLOSED:
            await self._allocator.close(lease_id)

    async def settle(self, lease_id: str, reporter: Engine | None = None) -> None:
        """A round for one lease. Raises EngineFault or LedgerFault if it could not look.

        A lease that isn't known is asked of the `reporter`, by default of the broker's own Docker.
        """
        lease = self._allocator.lease(lease_id)
        engine = self._engines.of(lease) if lease is not None else reporter or self._engines.own
        await self._compare(engine, () if lease is None else (lease,), lease_id)

    async def reconcile(self, engine: Engine | None = None) -> bool:
        """A round for all leases of an engine, by default of the broker's own.

        The own engine's first good round lets the allocator place those who wait. False if it was not good
        enough for that: the lease of a running container could not be adopted yet.
        Raises EngineFault or LedgerFault if it could not look. Steps that fail don't fail the round, and no
        removal is waited for: a container that can't be removed delays nobody else.
        """
        asked = engine or self._engines.own
        lock = self._rounds.setdefault(id(asked), asyncio.Lock())
        async with lock:
            adopted = await self._compare(asked, self._engines.on(asked, self._allocator.leases))
            if asked is not self._engines.own:
                return adopted
            if adopted and not self._allocator.placing:
                await self._allocator.start_placing()
            return self._allocator.placing

    async def reconcile_or_log(self) -> bool:
        """A round whose failure is logged once and counted; False if it failed or has to be repeated."""
        try:
            good = await self.reconcile()
        except Exception as error:  # the top of the timer's loop
            self._parts.metrics.failed("reconcile")
            self._parts.metrics.docker_up.set(0)
            if not self._docker_down:
                self.log.warning("Docker and ledger can't be compared, so nothing is freed: %s", error)
            self._docker_down = True
            return False
        if self._docker_down:
            self.log.info("Docker and ledger were compared again")
        self._parts.metrics.docker_up.set(1)
        self._docker_down = False
        return good

    def on_event(self, item: ContainerEvent | EventsConnected, engine: Engine | None = None) -> None:
        """An engine, by default the own, reported an event: check that lease, or all after a reconnect."""
        if isinstance(item, EventsConnected):
            self.spawn(self.reconcile(engine), "events")
        elif item.broker == self._parts.broker or self._allocator.lease(item.lease_id) is not None:
            self._keep_exit_code(item)
            self.spawn(self._follow(item, engine), "events")

    def exit_code(self, lease_id: str) -> int | None:
        """How the lease's container ended, if it ended by itself or from outside, a while ago at most."""
        return self._exit_codes.get(lease_id)

    async def say_turn(self, lease_id: str, sentence: str) -> None:
        """Shows a line in the lab while a cell waits for a GPU; "" removes it. Raises LedgerFault."""
        await self._parts.folders.write_turn(lease_id, sentence)

    def is_drained(self, uuid: str) -> bool:
        """Whether an admin lets nobody new on the device."""
        return self._allocator.is_drained(uuid)

    async def set_turn(self, lease_id: str, awake: bool, ago_seconds: float) -> None:
        """A lease in turns has a GPU now, or none, since `ago_seconds`. Raises LedgerFault."""
        change = self._allocator.wake if awake else self._allocator.sleep
        await change(lease_id, ago_seconds=ago_seconds)

    async def set_health(self, *healths: DeviceHealth) -> None:
        """Devices went out of service or are back: tell their users. After a fault, call again."""
        for lease in await self._allocator.set_health(*healths):
            await self._parts.folders.refresh(lease)

    async def add(
        self,
        devices: Iterable[Device],
        terms: Mapping[str, SharingRules],
        unwell: Iterable[DeviceHealth] = (),
    ) -> None:
        """Devices that were not found at the start were found: tell the users who hold one.

        `unwell`: those that don't serve from the beginning.
        """
        for lease in await self._allocator.add(devices, terms, unwell):
            await self._parts.folders.refresh(lease)

    async def refresh(self, lease: Lease) -> None:
        """Writes the folder of a lease that holds devices again. Raises LedgerFault."""
        if lease.state.holds_devices:
            await self._parts.folders.refresh(lease)

    async def tell(self, lease_id: str, sentence: str) -> None:
        """Gives the lease's user a notice in the lab and on the GPU page, unless the lease has ended."""
        lease = await self._allocator.tell(lease_id, sentence)
        if lease is not None:
            await self._parts.folders.refresh(lease)

    # ---- start and end

    def restore(self) -> None:
        """Marks the leases that were read from the ledger: their hubs may open their holds again."""
        self._restored = {lease.id for lease in self._allocator.leases() if lease.state in states.UNSETTLED}
        self._uncharged = {
            lease.id for lease in self._allocator.leases() if lease.id in self._parts.ledger.uncharged
        }
        self._restore_until = None

    def reachable(self) -> None:
        """The socket is up: a hub has RESTORE_SECONDS from now on, and from each hold that comes back."""
        loop = asyncio.get_running_loop()
        self._restore_until = loop.time() + RESTORE_SECONDS
        if self._restored:
            loop.call_at(self._restore_until, self._end_restore)

    async def close(self) -> None:
        """Ends the background work. Leases stay in the ledger, containers keep running."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._removals.close()

    def spawn(self, work: Coroutine[Any, Any, object], loop: str) -> None:
        """Runs `work` in the background; a failure is logged and counted, the timer tries again."""
        if self._closing:
            work.close()
            return
        task = asyncio.create_task(self._guarded(work, loop))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # the task was cancelled before it began

    # ---- inside

    def _come_back(self, lease_id: str) -> None:
        """A lease from before the restart is held again: its hub is coming back with all its holds, so the
        others get time. Each lease gives it once, so this ends.
        """
        if self._holds[lease_id] > 1 or lease_id not in self._restored:
            return
        now = asyncio.get_running_loop().time()
        if self._restore_until is not None and now < self._restore_until:
            self._restore_until = now + RESTORE_SECONDS

    def _end_restore(self) -> None:
        """Compares at once when the time is over; it may have been prolonged since this was set."""
        loop = asyncio.get_running_loop()
        if self._restore_until is not None and loop.time() < self._restore_until:
            loop.call_at(self._restore_until, self._end_restore)
        else:
            self.spawn(self.reconcile(), "reconcile")

    def _keep_exit_code(self, event: ContainerEvent) -> None:
        """Of a container that nobody here has ended. The oldest one goes when there are too many."""
        lease = self._allocator.lease(event.lease_id)
        if event.exit_code is None or lease is None or lease.state not in states.WITH_CONTAINER:
            return
        self._exit_codes[event.lease_id] = event.exit_code
        if len(self._exit_codes) > _MOST_EXIT_CODES:
            del self._exit_codes[next(iter(self._exit_codes))]

    async def _follow(self, event: ContainerEvent, engine: Engine | None) -> None:
        """Guards a container as soon as Docker reports its start; then checks its lease."""
        if event.action == OUT_OF_MEMORY:
            self.spawn(self._memory.show(event.lease_id, event.mem_limit_bytes), "events")
            return
        lease = self._allocator.lease(event.lease_id)
        if event.action == "start" and lease is not None and states.can(lease.state, Event.START):
            with suppress(LeaseConflict):  # the lease has changed since
                await self._allocator.set_running(lease.id, event.container_id)
        await self.settle(event.lease_id, engine)

    async def _guarded(self, work: Coroutine[Any, Any, object], loop: str) -> None:
        try:
            await work
        except GpuSpawnerError as error:
            self._parts.metrics.failed(loop)
            self.log.warning("%s; the next round tries again", error)
        except Exception:  # the top of a background task
            self._parts.metrics.failed(loop)
            self.log.exception("A background task failed; the next round tries again")

    async def _wait_ready(self) -> None:
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self.ready.wait()
        except TimeoutError:
            raise BrokerUnavailable(self.not_ready) from None

    async def _supersede(self, request: GpuRequest) -> None:
        older = self._allocator.of_server(request.hub, request.user, request.server)
        for lease in older:
            if lease.id != request.lease_id:
                await self._end_older(lease)

    async def _end_older(self, lease: Lease) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + SUPERSEDE_SECONDS
        while not await self.release(
            lease.id, "the server is started again", wait_seconds=max(0.0, deadline - loop.time())
        ):
            if loop.time() > deadline:
                raise BrokerUnavailable(
                    "Docker is still removing this server's previous container: try again in a minute"
                )
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    def _kept(self, lease_id: str) -> bool:
        if lease_id in self._holds:
            return True
        if lease_id not in self._restored:
            return False
        return self._restore_until is None or asyncio.get_running_loop().time() < self._restore_until

    async def _compare(self, engine: Engine, leases: tuple[Lease, ...], lease_id: str | None = None) -> bool:
        """Compare these leases of an engine with its containers, all or those of one lease; see `_agree`.

        Leases and holds are read before the containers: a hold that closes meanwhile has a container that the
        list may lack, which is long ago when the answer comes from another machine.
        """
        kept = {lease.id for lease in leases if self._kept(lease.id)}
        containers = await engine.list(lease_id)
        kept |= {lease.id for lease in leases if self._kept(lease.id)}
        return await self._agree(engine, leases, containers, kept)

    async def _agree(
        self,
        engine: Engine,
        leases: tuple[Lease, ...],
        containers: tuple[Container, ...],
        kept: Collection[str],
    ) -> bool:
        """Carry out the plan for leases and containers of an engine.

        False if a running container's lease could not be adopted yet.

        Steps that make a container guarded and charged come first. Ends come before adoptions: a lease that
        has ended must not keep its device from a container that runs.
        """
        closed, undecided = await self._ask_ledger(unknown_ids(leases, containers))
        steps = plan(
            Facts(
                leases=leases,
                containers=tuple(item for item in containers if item.lease_id not in undecided),
                kept=kept,
                closed=closed,
                broker=self._parts.broker,
                ending=frozenset(self._removals.busy()),
                uncharged=frozenset(self._uncharged),
            )
        )
        adopted: list[bool] = []
        for kinds in (SetRunning | Charge, Release | Remove, Adopt):
            chosen = [step for step in steps if isinstance(step, kinds)]
            adopted = await asyncio.gather(*(self._carry_out_or_log(step, engine) for step in chosen))
        return all(adopted)

    async def _carry_out_or_log(self, step: Step, engine: Engine) -> bool:
        """One step, and whether it is done; a failure is logged once, counted, and left to the next round."""
        subject = step.container.id if isinstance(step, Remove | Adopt) else step.lease.id
        what = f"{type(step).__name__} {subject}"
        try:
            done = await self._carry_out(step, engine)
        except Exception as error:
            self._parts.metrics.failed("reconcile")
            level = logging.DEBUG if what in self._failing else logging.WARNING
            self._failing.add(what)
            known = isinstance(error, GpuSpawnerError)
            self.log.log(level, "%s failed, retrying: %s", what, error, exc_info=not known)
            return False
        self._failing.discard(what)
        return done

    async def _ask_ledger(self, lease_ids: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
        """Which of the ids are closed leases, and which living ones: made since the read, or elsewhere."""
        closed: set[str] = set()
        living: set[str] = set()
        for lease_id in lease_ids:
            lease = await self._parts.ledger.find(lease_id)
            if lease is None or await self._parts.ledger.owned_elsewhere(lease_id):
                continue
            (closed if lease.state is LeaseState.CLOSED else living).add(lease_id)
        return frozenset(closed), frozenset(living)

    async def _carry_out(self, step: Step, engine: Engine) -> bool:
        """One step, unless the lease has changed since the plan was made: then the next round decides."""
        match step:
            case SetRunning(lease, container_id):
                if self._allocator.lease(lease.id) == lease:
                    await self._allocator.set_running(lease.id, container_id)
                    self._parts.metrics.stepped("set_running")
            case Charge(lease, container_id):
                await self._charge(lease, container_id, engine)
            case Release(lease, reason, ended):
                unsettled = lease.state in states.UNSETTLED
                if self._allocator.lease(lease.id) == lease and not (unsettled and self._kept(lease.id)):
                    self._parts.metrics.stepped("release")
                    ended_at = None if ended is None else await engine.finished_at(ended.id)
                    await self.release(lease.id, reason, ended_at)
            case Remove():
                self._remove(step, engine)
            case Adopt(container):
                known = self._allocator.lease(container.lease_id) is not None
                return known or await self._adopt(container, engine)
        return True

    async def _charge(self, lease: Lease, container_id: str, engine: Engine) -> None:
        """Its container runs again: charge the lease from the time at which Docker started it."""
        started_at = await engine.started_at(container_id)
        if started_at is not None and self._allocator.lease(lease.id) == lease:
            await self._allocator.charge(lease.id, started_at)
            self._parts.metrics.stepped("charge")
            self._uncharged.discard(lease.id)

    def _remove(self, step: Remove, engine: Engine) -> None:
        level = logging.ERROR if step.unexpected else logging.INFO
        self.log.log(level, "Removing a container: %s %s", step.reason, container_context(step.container))
        self._parts.metrics.stepped("remove")
        self._removals.begin(step.container, engine.remove)

    async def _adopt(self, container: Container, engine: Engine) -> bool:
        """Whether this is done: the lease was adopted, or its container is being stopped."""
        memory = {view.device.uuid: view.device.memory_bytes for view in self._allocator.snapshot().devices}
        size = sum(memory.get(uuid, 0) for uuid in container.labels.device_uuids)
        try:
            lease = container.labels.lease(container.id, self._parts.clock(), size)
            if self._engines.of(lease) is not engine:
                raise LeaseConflict("Its devices are of another machine.")
            await self._allocator.adopt(lease)
        except Refusal as refusal:
            if not self._allocator.placing and await self._clear_way(container):
                return False
            self.log.error(
                "Stopping a running container whose lease is unknown: %s %s",
                refusal.message,
                container_context(container),
            )
            self._removals.begin(container, engine.stop)
        else:
            self.log.warning(
                "Adopted an unknown lease from its container's labels %s", container_context(container)
            )
        self._parts.metrics.stepped("adopt")
        return True

    async def _clear_way(self, container: Container) -> bool:
        """Release leases of an old ledger copy that conflict with a running container; whether any did.

        Only leases without a container whose hub does not hold them: their places were given back, or their
        devices to this one, after the copy was made.
        """
        labels = container.labels
        server = (labels.hub, labels.user, labels.server)
        found = [
            lease
            for lease in self._allocator.leases()
            if lease.state in (LeaseState.WAITING, LeaseState.RESERVED)
            and lease.id not in self._holds
            and (
                (lease.hub, lease.user, lease.server) == server
                or not set(lease.device_uuids).isdisjoint(labels.device_uuids)
            )
        ]
        for lease in found:
            await self.release(lease.id, "a container of another lease runs in its place")
        return bool(found)
