"""A machine with a pool of turns for tests of the enforcement: brokers come and go, programs and driver stay.

The driver, the programs and their containers are scripted (`scripted_checkpoint.py`); allocator, ledger in
memory, enforcement, keeper, plan and mover are the real ones. A program's container is named after its lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from gpuspawner.broker.decide.book import QueueRules
from gpuspawner.broker.decide.place.pooling import Pooling
from gpuspawner.broker.decide.place.sharing_rules import SharingRules
from gpuspawner.broker.decide.turns import NO_RANK, Rank
from gpuspawner.broker.enforce.enforcement import Enforcement, Tools
from gpuspawner.broker.enforce.turn_pools import Pace
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.observe.journal import Journal
from gpuspawner.broker.observe.metrics import Metrics
from gpuspawner.core.errors import LedgerFault
from gpuspawner.core.model import Device, DeviceHealth, GpuRequest, Lease, Mode
from gpuspawner.core.turn import TurnSettings
from gpuspawner.core.want import Want
from gpuspawner.node.api import DesiredState, NodeEvent, NodeFacts
from gpuspawner.node.checkpoint.book import SleepBook
from gpuspawner.node.checkpoint.hands import LocalHands
from gpuspawner.node.checkpoint.mover import Mover, MoverRules

from tests.unit.scripted_checkpoint import GIB, SIZE, UUIDS, Machine
from tests.unit.share_walk import MemoryLedger

NOON = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
DEVICES = tuple(Device(uuid, "H100", SIZE, index=number) for number, uuid in enumerate(UUIDS))
SETTINGS = TurnSettings(
    seats=3, sleep_memory_bytes=24 * GIB, pause_after_seconds=1.0, sleep_after_seconds=1000.0,
    min_turn_seconds=1.0, max_turn_seconds=10.0,
)  # fmt: skip
TERMS = SharingRules("turns", Mode.TURNS, reserve_bytes=3 * GIB, seats=3)
WANT = Want(1, mode=Mode.TURNS, memory_bytes=24 * GIB)
LOG = logging.getLogger("turn-room")


class Intervals(MemoryLedger):
    """A ledger that keeps how long each lease was awake; `fault` makes it fail."""

    def __init__(self) -> None:
        super().__init__()
        self.fault = False
        self.spans: dict[str, list[tuple[float, float | None]]] = {}
        """By lease: from and to, in seconds after noon."""

    async def save(
        self, *leases: Lease, at: datetime, ago_seconds: float = 0, erase: Any = (), take_over: bool = False
    ) -> None:
        if self.fault:
            raise LedgerFault("The disk is full")
        moment = (at - NOON).total_seconds() - ago_seconds
        for lease in leases:
            spans = self.spans.setdefault(lease.id, [])
            is_open = bool(spans) and spans[-1][1] is None
            if lease.state.value == "running" and not is_open:
                spans.append((moment, None))
            elif lease.state.value != "running" and is_open:
                spans[-1] = (spans[-1][0], moment)
        await super().save(*leases, at=at, ago_seconds=ago_seconds, erase=erase, take_over=take_over)


class Holders:
    """The lease service, as far as the enforcement knows it."""

    def __init__(self, allocator: Allocator) -> None:
        self.allocator = allocator
        self.told: list[tuple[str, str]] = []
        self.said: list[tuple[str, str]] = []
        self.ready = asyncio.Event()
        self.ready.set()

    def leases(self) -> tuple[Lease, ...]:
        return self.allocator.leases()

    def is_drained(self, uuid: str) -> bool:
        return self.allocator.is_drained(uuid)

    async def tell(self, lease_id: str, sentence: str) -> None:
        self.told.append((lease_id, sentence))
        await self.allocator.tell(lease_id, sentence)

    async def set_health(self, *healths: DeviceHealth) -> None:
        await self.allocator.set_health(*healths)

    async def main_pid(self, container_id: str) -> int | None:
        return 1

    async def say_turn(self, lease_id: str, sentence: str) -> None:
        self.said.append((lease_id, sentence))

    async def set_turn(self, lease_id: str, awake: bool, ago_seconds: float) -> None:
        await (self.allocator.wake if awake else self.allocator.sleep)(lease_id, ago_seconds=ago_seconds)


class Node:
    """A node whose driver is scripted; `refusal` is what its check of turns finds."""

    def __init__(self, hands: LocalHands) -> None:
        self.hands, self.refusal = hands, ""
        self.checks: list[tuple[str, ...]] = []
        self.news: asyncio.Queue[NodeEvent] = asyncio.Queue()

    def turn_hands(self) -> LocalHands:
        return self.hands

    async def check_turns(self, uuids: Sequence[str]) -> str:
        self.checks.append(tuple(uuids))
        return self.refusal

    async def apply(self, desired: DesiredState) -> None:
        self.desired = desired

    async def settle(self, uuid: str) -> None:
        """Nothing runs for it."""

    async def health(self) -> tuple[DeviceHealth, ...]:
        return ()

    async def events(self) -> AsyncIterator[NodeEvent]:
        while True:
            yield await self.news.get()
            self.news.task_done()


class Room:
    """Time is real but short; the clock of leases moves with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.machine = Machine(folder / "cgroup")
        self.ledger = Intervals()
        self.metrics = Metrics()
        self.refusal = ""
        self.number = 0
        self.simulated = False
        self.now = 0.0
        self.allocator: Allocator
        self.holders: Holders
        self.node: Node
        self.running: Enforcement | None = None
        self.ranks: dict[str, Rank] = {}
        """By user: its place by the policy."""

    def clock(self) -> datetime:
        return NOON + timedelta(seconds=self.now)

    async def broker(
        self, devices: Sequence[Device] = DEVICES[:1], *, terms: SharingRules = TERMS
    ) -> Enforcement:
        """A new broker takes over: it knows what the ledger, the disk and the driver say."""
        await self.end()
        rules = {device.uuid: terms for device in devices}
        self.allocator = Allocator(cast(Any, self.ledger), clock=self.clock, rules=QueueRules())
        await self.allocator.load(devices, rules)
        self.holders = Holders(self.allocator)
        book = SleepBook(self.folder / "asleep.json")
        mover = Mover(self.machine, self.machine, book, MoverRules(settle_seconds=0.2, lock_seconds=0.1))
        hands = LocalHands(mover, self.machine, cast(Any, self.machine), book, self.machine.wait_of)
        self.node = Node(hands)
        self.node.refusal = self.refusal
        pooling = Pooling(tuple(devices), rules, turns={"turns": SETTINGS} if terms.in_turns else {})
        tools = Tools(
            node=cast(Any, self.node), facts=NodeFacts("here", simulated=self.simulated), pooling=pooling,
            metrics=self.metrics, journal=Journal(cast(Any, self.ledger), LOG), log=LOG, retry_seconds=0.05,
            rank=lambda lease: self.ranks.get(lease.user, NO_RANK),
            turn_pace=Pace(0.005, 0.05, 0.02, clock=lambda: self.now),
        )  # fmt: skip
        self.running = Enforcement(tools, cast(Any, self.holders))
        self.allocator.on_lease = self.running.on_lease
        await self.running.start()
        await self.look()
        return self.running

    async def end(self) -> None:
        if self.running is not None:
            await self.running.stop()
            self.node.hands.close()
            self.running = None

    async def look(self, seconds: float = 0.0, step: float = 0.1) -> None:
        """Time passes, in steps that the keeper sees."""
        end = self.now + seconds
        while True:
            await asyncio.sleep(0.03)
            if self.now >= end - 1e-9:
                return
            self.now = round(self.now + step, 6)

    async def lease(self, want: Want = WANT, *, running: bool = True) -> Lease:
        """One more student; its container is called like its lease."""
        self.number += 1
        request = GpuRequest(f"{self.number:032x}", "hub", f"user-{self.number}", "", "turns", want)
        lease = await self.allocator.acquire(request)
        return await self.allocator.set_running(lease.id, lease.id) if running else lease

    async def health(self, uuid: str, reason: str = "") -> None:
        """The node reports that a GPU is out of service, or in service again."""
        self.node.news.put_nowait(DeviceHealth(uuid, not reason, reason))
        await self.node.news.join()

    async def close(self, lease: Lease) -> None:
        await self.allocator.begin_release(lease.id, "stopped")
        await self.allocator.close(lease.id)

    def compute(self, lease: Lease, gpu: str = UUIDS[0]) -> int:
        """A program of it begins to use CUDA; returns its pid."""
        pid = 100 + len(self.machine.programs)
        self.machine.add(pid, container=str(lease.container_id), gpu=gpu)
        return pid

    def states(self) -> dict[str, str]:
        """What the ledger's leases are, by user."""
        return {lease.user: lease.state.value for lease in self.allocator.leases()}

    def turns(self) -> dict[str, tuple[str, str | None]]:
        """What people see, by user."""
        assert self.running is not None
        views = self.running.turns.views()
        users = {lease.id: lease.user for lease in self.allocator.leases()}
        return {users[each]: (view.turn.value, view.gpu_uuid) for each, view in views.items()}


@asynccontextmanager
async def room_in(folder: Path) -> AsyncIterator[Room]:
    room = Room(folder)
    yield room
    await room.end()
