"""A machine with slices for tests of the enforcement: a state folder and a ledger, brokers come and go.

MPS is a stand-in program, NVML a fake; the allocator, the guard and the daemons' care are the real ones.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from gpuspawner.broker.decide.place.pooling import Pooling
from gpuspawner.broker.decide.place.sharing_rules import SharingRules
from gpuspawner.broker.enforce.enforcement import Enforcement, Tools
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.observe.journal import Journal
from gpuspawner.broker.observe.metrics import Metrics
from gpuspawner.core.model import Device, DeviceHealth, GpuRequest, Lease, Mode
from gpuspawner.core.want import Want
from gpuspawner.node.api import DesiredState, MpsProgram, NodeEvent, NodeFacts
from gpuspawner.node.inventory.simulated import SimulatedInventory
from gpuspawner.node.local import LocalNode, LocalSettings
from gpuspawner.node.mps.control import MpsPlace, find_all, find_daemon, place_of
from gpuspawner.node.mps.daemon import MpsPace
from gpuspawner.node.processes import ProcessTable

from tests.mps import standin
from tests.prompt import going_first
from tests.soon import SOON_SECONDS
from tests.unit.share_walk import MemoryLedger

GIB = 1 << 30
NOW = datetime(2026, 1, 1, 12, 30, tzinfo=UTC)
A, B, C = (f"GPU-{letter * 8}-0000-0000-0000-000000000001" for letter in "abc")
DEVICES = tuple(Device(uuid, "H100", 80 * GIB, index=number) for number, uuid in enumerate((A, B, C)))
SLICED = SharingRules("class", Mode.SLICE, slices=8, mps=True)
TERMS = {A: SLICED, B: SLICED, C: SharingRules("whole")}
PACE = MpsPace(
    command_seconds=2, start_seconds=1.5, quit_seconds=1, probe_seconds=0.2, silent_seconds=0.5,
    backoff_seconds=0.05, longest_backoff_seconds=0.4,
)  # fmt: skip
LOG = logging.getLogger("enforcement")

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="MPS serves containers only as root")


class Hardware(SimulatedInventory):
    """Devices that count as real ones."""

    simulated = False


class Holders:
    """The lease service, as far as the enforcement knows it."""

    def __init__(self, allocator: Allocator) -> None:
        self.allocator = allocator
        self.told: list[tuple[str, str]] = []
        self.ready = asyncio.Event()
        self.ready.set()

    def leases(self) -> tuple[Lease, ...]:
        return self.allocator.leases()

    async def tell(self, lease_id: str, sentence: str) -> None:
        self.told.append((lease_id, sentence))
        await self.allocator.tell(lease_id, sentence)

    async def set_health(self, *healths: DeviceHealth) -> None:
        await self.allocator.set_health(*healths)


class WatchedNode(LocalNode):
    """The local node; a test sees what it was given, and adds news of its own."""

    def __init__(self, settings: LocalSettings) -> None:
        super().__init__(settings, LOG)
        self.applied: list[DesiredState] = []
        self.facts: NodeFacts
        self.news: asyncio.Queue[NodeEvent] = asyncio.Queue()

    async def start(self) -> NodeFacts:
        self.facts = await super().start()
        return self.facts

    async def apply(self, desired: DesiredState) -> None:
        self.applied.append(desired)
        await super().apply(desired)

    async def events(self) -> AsyncIterator[NodeEvent]:
        async def forward() -> None:
            async for event in LocalNode.events(self):
                self.news.put_nowait(event)

        forwarding = asyncio.create_task(forward())
        try:
            while True:
                yield await self.news.get()
                self.news.task_done()
        finally:
            forwarding.cancel()

    async def report(self, *events: NodeEvent) -> None:
        """As if the machine had reported it; the broker has dealt with it when this returns."""
        for event in events:
            self.news.put_nowait(event)
        await self.news.join()


class Machine:
    """A state folder and a ledger on which brokers come and go."""

    def __init__(self, folder: Path, program: Path) -> None:
        self.folder, self.program = folder, program
        self.inventory: Hardware = Hardware(DEVICES)
        self.ledger = MemoryLedger()
        self.metrics = Metrics()
        self.number = 0
        self.running: Enforcement | None = None
        self.idle_seconds = 300.0
        self.node: WatchedNode
        self.holders: Holders
        self.journal: Journal
        self.allocator: Allocator

    async def broker(
        self, terms: dict[str, SharingRules] = TERMS, managed: frozenset[str] = frozenset()
    ) -> Enforcement:
        """A new broker takes over."""
        await self.end()
        self.allocator = Allocator(self.ledger, clock=lambda: NOW)  # type: ignore[arg-type]
        await self.allocator.load(DEVICES, terms)
        self.holders = Holders(self.allocator)
        self.journal = Journal(self.ledger, LOG)
        settings = LocalSettings(
            lambda: self.inventory, self.folder, find_mps=lambda: MpsProgram(self.program), pace=PACE,
            read_seconds=0.05, retry_seconds=0.05,
        )  # fmt: skip
        self.node = WatchedNode(settings)
        facts = await self.node.start()
        tools = Tools(
            node=self.node, facts=facts, pooling=Pooling(DEVICES, terms, managed), metrics=self.metrics,
            journal=self.journal, log=LOG, retry_seconds=0.05, idle_seconds=self.idle_seconds,
        )  # fmt: skip
        self.running = Enforcement(tools, self.holders)
        self.allocator.on_lease = self.running.on_lease
        await self.running.start()
        return self.running

    async def end(self) -> None:
        if self.running is not None:
            await self.running.stop()
            await self.node.close()
            self.running = None

    async def lease(self, running: bool = True, **want: object) -> Lease:
        """A slice, with a container or without."""
        self.number += 1
        asked = replace(Want(1, mode=Mode.SLICE), **want)  # type: ignore[arg-type]
        request = GpuRequest(f"{self.number:032x}", "hub", f"user-{self.number}", "", "slice", asked)
        lease = await self.allocator.acquire(request)
        return await self.allocator.set_running(lease.id, f"{self.number:064x}") if running else lease

    async def close(self, lease: Lease) -> None:
        await self.allocator.begin_release(lease.id, "stopped")
        await self.allocator.close(lease.id)

    def place(self, uuid: str = A) -> MpsPlace:
        return place_of(uuid, self.folder)

    def pid(self, uuid: str = A) -> int | None:
        daemon = find_daemon(self.place(uuid), ProcessTable())
        return None if daemon is None else daemon.pid

    def commands(self, uuid: str = A) -> list[str]:
        lines = (self.place(uuid).log / "commands").read_text().splitlines()
        return [line for line in lines if line.startswith(("set_default", "quit"))]

    def healthy(self, uuid: str = A) -> bool:
        views = self.allocator.snapshot().devices
        return next(view.health.healthy for view in views if view.device.uuid == uuid)


@asynccontextmanager
async def machine_in(tmp_path: Path) -> AsyncIterator[Machine]:
    """One, with nothing left of it at the end. The stand-in's commands have a time limit."""
    folder = Path("/tmp") / f"gse-{os.getpid()}-{tmp_path.name[-12:]}"
    folder.mkdir()
    with going_first(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpuspawner.node.mps.control.RUN_DIR", folder / "run")
        machine = Machine(folder, standin.install(tmp_path))
        yield machine
        await machine.end()
        for uuid in (A, B, C):
            for process in find_all(machine.place(uuid), ProcessTable()):
                os.kill(process.pid, signal.SIGKILL)
    shutil.rmtree(folder)


async def until(what: object) -> None:
    """Waits until it is so."""
    async with asyncio.timeout(SOON_SECONDS):
        while not what():  # type: ignore[operator]
            await asyncio.sleep(0.02)
