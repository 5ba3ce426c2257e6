"""GPUs in turns: for each pool of that mode, a keeper that decides who computes, and what is charged for it.

A pool is closed, and its GPUs out of service, until the node has checked that the driver can do it. Leases
are admitted to the keeper when their container runs. What the keeper reports is written to the ledger in the
background, with the time at which it happened; after a restart of the broker the ledger is corrected by the
first look at each seat.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from ...core.errors import GpuSpawnerError
from ...core.model import ContainerPatch, Device, Lease, LeaseState, Mode
from ...core.states import WITH_CONTAINER
from ...core.turn import TurnSettings, Unsleepable
from ...core.units import utc_now
from ...node.api import NodeEvent, Outcome, Quota, Seat, TurnHands
from ..decide.place.notice import withdrawn
from ..decide.snapshot import TurnView
from ..decide.turn_words import waiting_sentence
from ..decide.turns import Gpu, Step, Turn, TurnRules
from ..observe.failures import LoopFailures
from .mode import Surroundings, Wishes
from .turns import SeatStatus, Told, TurnKeeper

CHECK_SECONDS = 30.0
"""Pause after a check of the driver that failed."""
RETRY_SECONDS = 2.0
WARN_SECONDS = 120.0
"""From the notice that a program's memory can't leave the GPU to its end, if the pool ends such programs."""
USE_PATIENCE_TURNS = 2.0
"""So many turns of `max_turn` somebody waits at most because others have used less."""
STARTING = "turns on it are being checked"


@dataclass(frozen=True, slots=True)
class Pace:
    """How often seats are looked at (None: as the keeper needs it), and how soon what failed is tried again.

    Tests use shorter times.
    """

    tick_seconds: float | None = None
    check_seconds: float = CHECK_SECONDS
    retry_seconds: float = RETRY_SECONDS
    clock: Callable[[], float] = time.monotonic


class Turns:
    """The mode `turns`. For simulated GPUs there is nothing to keep: nobody computes on them."""

    def __init__(self, around: Surroundings, pace: Pace | None = None) -> None:
        self._around, self._pace = around, pace or Pace()
        self._pools: dict[str, TurnPool] = {}

    # ---- the interface of a mode

    def begin(self) -> None:
        """Opens the pools of the settings; seats of running leases are admitted as they are.

        Leases from before a change of the settings keep their turns until they end, in whatever pool their
        GPUs are now.
        """
        if self._around.facts.simulated:
            return
        pooling = self._around.pooling()
        left = [lease for lease in self._around.holders.leases() if lease.mode is Mode.TURNS]
        held = {uuid for lease in left for uuid in lease.device_uuids if uuid in pooling.terms}
        former = {pooling.terms[uuid].pool: TurnSettings() for uuid in held}
        for name, settings in {**former, **pooling.turns}.items():
            if name not in self._pools:
                self._pools[name] = pool = TurnPool(name, settings, self._around, self._pace)
                self._around.spawn(pool.run())

    async def prepare(self, lease: Lease) -> None:
        """Does nothing: the GPUs of an open pool are ready."""

    def patch(self, lease: Lease, patch: ContainerPatch) -> ContainerPatch:
        """Programs see one GPU, the lease's home; with the device nodes of all they can wake on any."""
        if self._around.facts.simulated:
            return patch
        return replace(patch, env={**patch.env, "CUDA_VISIBLE_DEVICES": lease.device_uuids[0]})

    def quotas(self, lease: Lease) -> Iterable[Quota]:
        """No memory limit; the guard learns who may use the pool's GPUs."""
        return [Quota(lease.id, str(lease.container_id), uuid, None) for uuid in lease.device_uuids]

    def follow(self, lease: Lease) -> None:
        """The pools look for leases with a container at each tick."""

    def leave(self, lease: Lease) -> None:
        """Its seat is free."""
        for pool in self._pools.values():
            pool.leave(lease.id)

    def wishes(self) -> Wishes:
        """Nothing: no daemon runs for these GPUs."""
        return Wishes()

    def obstacle(self, uuid: str) -> str:
        """Why the pool of the GPU is closed."""
        terms = self._around.pooling().terms.get(uuid)
        pool = None if terms is None or not terms.in_turns else self._pools.get(terms.pool)
        return "" if pool is None else pool.closed

    async def on_event(self, event: NodeEvent) -> None:
        """Does nothing: seats are looked at several times a second."""

    def end(self) -> frozenset[str]:
        """No GPUs: seats stay as they are, and the next broker adopts them."""
        return frozenset()

    # ---- what people see and ask for

    def views(self) -> Mapping[str, TurnView]:
        """The turn of each lease that was looked at, by lease id."""
        now, at = utc_now(), self._pace.clock()
        return {
            each.lease_id: _view(each, now - timedelta(seconds=max(0.0, at - each.since)))
            for pool in self._pools.values()
            for each in pool.status()
            if each.known
        }

    def want(self, lease_id: str) -> bool:
        """Its user asks for a GPU now; whether it has a seat."""
        return any(pool.want(lease_id) for pool in self._pools.values())

    def rest(self, lease_id: str) -> bool:
        """What it has on a GPU moves to main memory; whether it has a seat and its memory can move."""
        return any(pool.rest(lease_id) for pool in self._pools.values())

    def can_rest(self, lease: Lease) -> bool:
        """Whether its memory can move to main memory, as far as is known."""
        if lease.mode is not Mode.TURNS or self._around.facts.simulated:
            return False
        seats = (each for pool in self._pools.values() for each in pool.status())
        return all(each.can_move for each in seats if each.lease_id == lease.id)

    async def before_end(self, lease_id: str) -> bool:
        """Its container is about to be stopped: whether its programs may be killed now; else ask again."""
        found = [await pool.before_end(lease_id) for pool in self._pools.values()]
        return all(found)

    def give_up(self, lease_id: str) -> bool:
        """Its user gives up the turn; whether it has a seat."""
        return any(pool.give_up(lease_id) for pool in self._pools.values())


class TurnPool:
    """One pool: its keeper, who is admitted to it, and what has still to be written to the ledger."""

    def __init__(self, name: str, settings: TurnSettings, around: Surroundings, pace: Pace) -> None:
        self._name, self._around, self._pace = name, around, pace
        self._rules = rules_of(settings)
        self._keeper: TurnKeeper | None = None
        self._places: dict[str, Seat] = {}
        self._changes: list[tuple[str, bool, float]] = []
        """What the ledger has not recorded yet, in order: lease, awake, since when (monotonic seconds)."""
        self._said: dict[str, str] = {}
        self._warned: dict[str, str] = {}
        """By lease: the GPU about whose loss its user was told."""
        self._news = asyncio.Event()
        self.closed = STARTING
        """Why nobody is admitted; "" once the driver has been checked."""

    async def run(self) -> None:
        """Opens the pool and keeps its turns, until cancelled."""
        hands = await self._open()
        told = Told(self._on_turn, self._around.tell, self._on_step)
        self._keeper = TurnKeeper(hands, (), self._rules, self._pace.clock, self._around.log, told)
        self._around.spawn(self._record())
        failures = LoopFailures("turns", self._around.metrics, self._around.log)
        while True:
            try:
                await self._round(self._keeper)
                failures.over()
            except Exception as error:  # the top of this loop
                failures.failed(f"Turns of pool {self._name}", error)
                await asyncio.sleep(self._pace.retry_seconds)
            pause = self._pace.tick_seconds
            await asyncio.sleep(self._keeper.look_seconds if pause is None else pause)

    def leave(self, lease_id: str) -> None:
        """Its container has ended."""
        self._said.pop(lease_id, None)
        self._warned.pop(lease_id, None)
        if self._places.pop(lease_id, None) is not None and self._keeper is not None:
            self._keeper.leave(lease_id)

    def status(self) -> tuple[SeatStatus, ...]:
        """Every seat."""
        return () if self._keeper is None else self._keeper.status()

    def want(self, lease_id: str) -> bool:
        """Whether it has a seat here; it then wants a GPU."""
        if self._keeper is None or lease_id not in self._places:
            return False
        self._keeper.want(lease_id)
        return True

    def give_up(self, lease_id: str) -> bool:
        """Whether it has a seat here; its turn then ends."""
        if self._keeper is None or lease_id not in self._places:
            return False
        self._keeper.give_up(lease_id)
        return True

    async def before_end(self, lease_id: str) -> bool:
        """Whether it has no seat here, or its programs may be killed now."""
        return self._keeper is None or await self._keeper.before_end(lease_id)

    def rest(self, lease_id: str) -> bool:
        """Whether it has a seat here and its memory can move; it then sleeps until it wants a GPU."""
        return self._keeper is not None and self._keeper.rest(lease_id)

    # ---- private

    async def _open(self) -> TurnHands:
        """Returns when the driver has been checked; the GPUs are out of service until then."""
        while True:
            hands, uuids = self._around.node.turn_hands(), self._uuids()
            if hands is not None and uuids:
                await self._close(await self._around.node.check_turns(uuids))
                if not self.closed:
                    return hands
                self._around.log.warning("Pool %s is closed: %s", self._name, self.closed)
            await asyncio.sleep(self._pace.check_seconds)

    async def _close(self, reason: str) -> None:
        self.closed = reason
        for uuid in self._uuids():
            await self._around.report(uuid)

    async def _round(self, keeper: TurnKeeper) -> None:
        await self._admit(keeper)
        keeper.gpus = self._gpus()
        kept = {lease.id: lease.kept_asleep for lease in self._around.holders.leases() if lease.kept_asleep}
        for lease_id in self._places:
            keeper.keep_asleep(lease_id, lease_id in kept)
        if self._places:
            await keeper.tick()
            statuses = keeper.status()
            self._correct(statuses)
            await self._say(statuses, kept)
            await self._warn(statuses)

    async def _admit(self, keeper: TurnKeeper) -> None:
        """Gives a seat to each lease whose container runs; those that have one get their rank by now."""
        for lease in self._around.holders.leases():
            if lease.id in self._places:
                keeper.set_rank(lease.id, self._around.rank(lease))
                continue
            if lease.state not in WITH_CONTAINER or not self._is_ours(lease):
                continue
            pid = await self._around.holders.main_pid(str(lease.container_id))
            if pid is None:
                continue  # it ended; its lease will, too
            seat = Seat(str(lease.container_id), pid, lease.device_uuids)
            self._places[lease.id] = seat
            keeper.admit(lease.id, seat, lease.memory_bytes)
            keeper.set_rank(lease.id, self._around.rank(lease))

    def _is_ours(self, lease: Lease) -> bool:
        terms = self._around.pooling().terms
        pools = {terms[uuid].pool for uuid in lease.device_uuids if uuid in terms}
        return lease.mode is Mode.TURNS and self._name in pools

    def _devices(self) -> tuple[Device, ...]:
        pooling = self._around.pooling()
        return tuple(each for each in pooling.devices if pooling.terms[each.uuid].pool == self._name)

    def _uuids(self) -> tuple[str, ...]:
        return tuple(each.uuid for each in self._devices())

    def _gpus(self) -> tuple[Gpu, ...]:
        """The pool's GPUs. Who has a container that doesn't see one is never woken there."""
        around, terms = self._around, self._around.pooling().terms
        return tuple(
            Gpu(
                each.uuid,
                terms[each.uuid].usable_bytes(each.memory_bytes),
                usable=around.hardware(each.uuid).healthy,
                drained=around.holders.is_drained(each.uuid),
            )
            for each in self._devices()
        )

    async def _warn(self, statuses: Iterable[SeatStatus]) -> None:
        """Tells those whose memory lies on a GPU that has gone out of service, once."""
        hardware = [(device, self._around.hardware(device.uuid)) for device in self._devices()]
        broken = {device.uuid: (device, health) for device, health in hardware if not health.healthy}
        for each in statuses:
            if each.gpu_uuid is None or each.gpu_uuid not in broken:
                self._warned.pop(each.lease_id, None)
            elif self._warned.get(each.lease_id) != each.gpu_uuid:
                self._warned[each.lease_id] = each.gpu_uuid
                await self._around.tell(each.lease_id, withdrawn([broken[each.gpu_uuid]]))

    async def _say(self, statuses: Iterable[SeatStatus], kept: Mapping[str, str]) -> None:
        """Shows in each lab what its waiting cell waits for, when that has changed."""
        now = utc_now()
        for each in statuses:
            sentence = kept.get(each.lease_id) or waiting_sentence(_view(each, now))
            if each.lease_id in self._places and self._said.get(each.lease_id, "") != sentence:
                self._said[each.lease_id] = sentence
                await self._around.holders.say_turn(each.lease_id, sentence)

    # ---- the ledger

    def _on_turn(self, lease_id: str, awake: bool) -> None:
        self._changes.append((lease_id, awake, self._pace.clock()))
        self._news.set()

    def _correct(self, statuses: Iterable[SeatStatus]) -> None:
        """The ledger says otherwise than the look at a seat, as after a restart: it follows the look."""
        pending = {lease_id for lease_id, _, _ in self._changes}
        states = {lease.id: lease.state for lease in self._around.holders.leases()}
        for each in statuses:
            state = states.get(each.lease_id)
            if not each.known or state not in WITH_CONTAINER or each.lease_id in pending:
                continue
            awake = each.turn is Turn.AWAKE
            if awake != (state is LeaseState.RUNNING):
                self._on_turn(each.lease_id, awake)

    async def _record(self) -> None:
        """Writes the changes in their order; one that can't be written now is kept and tried again."""
        while True:
            await self._news.wait()
            while self._changes:
                lease_id, awake, at = self._changes[0]
                try:
                    ago_seconds = max(0.0, self._pace.clock() - at)
                    await self._around.holders.set_turn(lease_id, awake, ago_seconds)
                except GpuSpawnerError as error:
                    self._around.metrics.failed("turns")
                    self._around.log.warning("A turn can't be recorded yet, retrying: %s", error)
                    await asyncio.sleep(self._pace.retry_seconds)
                    continue
                self._changes.pop(0)
            self._news.clear()

    def _on_step(self, step: Step, outcome: Outcome) -> None:
        self._around.metrics.turned(step.value, outcome.done, outcome.seconds)


def rules_of(settings: TurnSettings) -> TurnRules:
    """The times by which the plan of a pool goes."""
    return TurnRules(
        pause_after_seconds=settings.pause_after_seconds,
        sleep_after_seconds=settings.sleep_after_seconds,
        min_turn_seconds=settings.min_turn_seconds,
        max_turn_seconds=settings.max_turn_seconds,
        use_patience_seconds=USE_PATIENCE_TURNS * settings.max_turn_seconds,
        warn_seconds=WARN_SECONDS if settings.unsleepable is Unsleepable.END else None,
    )


def _view(status: SeatStatus, since: datetime) -> TurnView:
    return TurnView(
        turn=status.turn,
        since=since,
        gpu_uuid=status.gpu_uuid,
        memory_bytes=status.memory_bytes,
        moves=status.moves,
        position=status.position,
        wait_seconds=status.wait_seconds,
        can_move=status.can_move,
        held_up=status.held_up,
    )
