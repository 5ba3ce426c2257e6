"""Two machines, each with its own Docker: one that can't be asked frees nothing, and delays nobody else.

A walk takes random steps: leases asked for, started, given back; containers that start and end, also while
the broker can't see them; machines that go away and come back; brokers that die. A naive model knows which
containers really run. No device ever has two of them, no lease ends while its container is there, and a
machine that was away gets nothing before its Docker has listed everything.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from gpuspawner.broker.enforce.presence import Presence, PresenceParts
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.leases.engines import Engines
from gpuspawner.broker.leases.leasing import LeaseService, Parts
from gpuspawner.broker.ledger import Ledger
from gpuspawner.broker.observe.metrics import Metrics
from gpuspawner.core import labels
from gpuspawner.core.errors import BrokerUnavailable, EngineFault, GpuSpawnerError
from gpuspawner.core.model import ContainerPatch, Device, DeviceHealth, GpuRequest, Lease, LeaseState
from gpuspawner.core.want import Want
from gpuspawner.node.api import NodeFacts
from gpuspawner.node.engine import Container

from tests.unit.service_bench import FakeEngine, FakeFolders

LOG = logging.getLogger("engines")
FLEET = tuple(
    Device(f"GPU-{node}{index}", model, 80 << 30, simulated=True, node=node, index=index)
    for node, model in (("a", "H100 80GB"), ("b", "A100 80GB"))
    for index in range(2)
)
THERE, CUT = NodeFacts("b"), NodeFacts("b", away="the machine b can't be reached: cut")
WANTS = {"a": Want(1, "h100"), "b": Want(1, "a100")}


class Cluster:
    """A broker with two machines; `a` is its own. `boxes` of an engine is what really runs there.

    `listed`: whether b's Docker has listed everything since b was last known to be away.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.engines = {"a": FakeEngine(), "b": FakeEngine()}
        self.listed = False
        self.holds: dict[str, Callable[[], None]] = {}
        self.closed_with_container: list[str] = []
        self.placed_too_early: list[str] = []
        self._placed: set[str] = set()
        self._numbers = 0

    async def boot(self) -> None:
        """A broker begins; nothing of the one before is left but the ledger."""
        self.holds = {}
        allocator = self.allocator = Allocator(self.ledger)
        await allocator.load(FLEET, {}, place=False)
        allocator.on_lease = self._on_lease
        elsewhere = lambda lease: self.engines["b"] if allocator.node_of(lease) == "b" else None  # noqa: E731
        parts = Parts(
            "here", allocator, self.ledger, Engines(self.engines["a"], elsewhere), FakeFolders(),
            lambda lease: ContainerPatch(), Metrics(),
        )  # fmt: skip
        self.service = LeaseService(parts, LOG)
        self.service.ready.set()
        await self._set_away("a new broker hasn't looked yet")
        self.presence = Presence(
            PresenceParts(
                "b", self._set_away, self._nothing, self._compare,
                lambda facts: None, Metrics(), LOG, round_seconds=1.0, retry_seconds=0.0,
            ),
            NodeFacts("b", away="not looked yet"),
        )  # fmt: skip

    async def _nothing(self, facts: NodeFacts) -> None:
        return

    async def _compare(self) -> bool:
        good = await self.service.reconcile(self.engines["b"])
        self.listed = self.listed or good
        return good

    async def _set_away(self, reason: str) -> None:
        self.listed = self.listed and not reason
        for device in FLEET:
            if device.node == "b":
                await self.allocator.set_health(DeviceHealth(device.uuid, not reason, reason))

    def _on_lease(self, lease: Lease) -> None:
        """Looks at each commit as it happens."""
        boxes = [box for engine in self.engines.values() for box in engine.boxes.values()]
        if lease.state is LeaseState.CLOSED and any(box.lease_id == lease.id for box in boxes):
            self.closed_with_container.append(lease.id)
        if lease.state is LeaseState.RESERVED and lease.id not in self._placed:
            self._placed.add(lease.id)
            if lease.node == "b" and not self.listed:
                self.placed_too_early.append(lease.id)

    async def settle(self) -> None:
        """Everything that runs in the background ends."""
        for _ in range(3):
            await asyncio.sleep(0)
            while self.service._tasks or self.service._removals._tasks:
                await asyncio.sleep(0.001)

    async def rounds(self) -> None:
        """What the broker's loops do now and then."""
        with suppress(EngineFault):
            await self.service.reconcile()
        self.presence.on_facts(CUT if self.engines["b"].fault else THERE)
        with suppress(EngineFault):
            await self.presence.follow()
        with suppress(GpuSpawnerError):
            await self.allocator.advance()
        await self.settle()

    async def die(self) -> None:
        """kill -9, as far as leases are concerned."""
        await self.service.close()
        await self.boot()

    # ---- what a hub and its users do

    def ask(self, rng: random.Random) -> GpuRequest:
        self._numbers += 1
        node = rng.choice("ab")
        return GpuRequest(f"{self._numbers:032x}", "hub", f"u{rng.randrange(5)}", "", "gpu", WANTS[node])

    async def open(self, request: GpuRequest) -> None:
        hold = self.service.hold(request.lease_id)
        hold.__enter__()
        try:
            await self.service.open(request)
        except (BrokerUnavailable, EngineFault):  # its server's last container can't be removed now
            hold.__exit__(None, None, None)
            await self.service.dropped(request.lease_id)
        else:
            self.holds[request.lease_id] = lambda: hold.__exit__(None, None, None)

    def start(self, lease: Lease) -> None:
        """The hub starts the container of a lease that it holds; the machine does, whoever can see it."""
        with suppress(GpuSpawnerError):
            self.service.confirm(lease.id)
            engine = self.engines[self.allocator.node_of(lease)]
            marks = {**labels.lease_labels(lease), **labels.broker_label("here")}
            engine.boxes[f"c{lease.id}"] = Container(f"c{lease.id}", labels.parse(marks), "running")

    async def let_go(self, lease_id: str) -> None:
        """The hub has no open request any more."""
        if release := self.holds.pop(lease_id, None):
            release()
            await self.service.dropped(lease_id)

    # ---- what must hold

    def check(self) -> None:
        assert self.closed_with_container == []
        assert self.placed_too_early == []
        running = [box for engine in self.engines.values() for box in engine.boxes.values()]
        used = [uuid for box in running for uuid in box.labels.device_uuids]
        assert sorted(used) == sorted(set(used)), "a device has two containers"
        held = [uuid for lease in self.allocator.leases() for uuid in lease.device_uuids]
        assert sorted(held) == sorted(set(held)), "a device has two leases"
        assert set(used) <= set(held), "a container runs whose lease has ended"


@asynccontextmanager
async def cluster(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setattr("gpuspawner.broker.leases.leasing.SUPERSEDE_SECONDS", 0.02)
    monkeypatch.setattr("gpuspawner.broker.leases.leasing._LOOK_AGAIN_SECONDS", 0.005)
    monkeypatch.setattr("gpuspawner.broker.leases.removals.FIRST_PAUSE_SECONDS", 0.0)
    found = Cluster(ledger)
    await found.boot()
    yield found
    await found.service.close()


async def step(found: Cluster, rng: random.Random) -> None:
    """Something happens."""
    leases = found.allocator.leases()
    lease = rng.choice(leases) if leases else None
    engine = found.engines[rng.choice("ab")]
    match rng.randrange(9):
        case 0 | 1:
            await found.open(found.ask(rng))
        case 2 | 3 if lease is not None and lease.state is LeaseState.RESERVED:
            found.start(lease)
        case 4 if lease is not None:
            await found.let_go(lease.id)
        case 5 if lease is not None:
            await found.service.stopped(lease.id)
        case 6 if engine.boxes:  # a lab ends by itself
            del engine.boxes[rng.choice(list(engine.boxes))]
        case 7:
            engine.fault = "" if engine.fault else "can't be asked"
        case 8 if rng.random() < 0.3:
            await found.die()
        case _:
            await found.rounds()
    await found.settle()


@pytest.mark.parametrize("seed", range(25))
async def test_a_walk(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    async with cluster(ledger, monkeypatch) as found:
        for _ in range(120):
            await step(found, rng)
            found.check()
        for engine in found.engines.values():
            engine.fault = ""
        for lease_id in tuple(found.holds):
            await found.let_go(lease_id)
        for _ in range(4):
            await found.rounds()
            found.check()
        running = {box.lease_id for engine in found.engines.values() for box in engine.boxes.values()}
        assert {lease.id: lease.state for lease in found.allocator.leases()} == dict.fromkeys(
            running, LeaseState.RUNNING
        )


async def started(found: Cluster, number: int, node: str) -> Lease:
    request = GpuRequest(f"{number:032x}", "hub", f"u{number}", "", "gpu", WANTS[node])
    await found.open(request)
    lease = found.allocator.lease(request.lease_id)
    assert lease is not None
    found.start(lease)
    await found.rounds()
    await found.let_go(lease.id)
    return lease


def states(found: Cluster) -> dict[str, str]:
    return {lease.user: lease.state.value for lease in found.allocator.leases()}


async def test_a_machine_that_cannot_be_asked_keeps_what_it_has_and_others_go_on(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(ledger, monkeypatch) as found:
        await found.rounds()
        here, there = await started(found, 1, "a"), await started(found, 2, "b")
        assert (here.node, there.node) == ("a", "b")
        found.engines["b"].fault = "cut"
        for engine in found.engines.values():
            engine.boxes.clear()  # both labs end; one of them unseen
        await found.rounds()
        assert states(found) == {"u2": "running"}
        await found.service.stopped(there.id)  # its user gives it back
        await found.rounds()
        assert states(found) == {"u2": "releasing"}
        found.engines["b"].fault = ""
        await found.rounds()
        assert states(found) == {}


async def test_an_unknown_container_is_taken_up_on_the_machine_that_has_it(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with cluster(ledger, monkeypatch) as found:
        await found.rounds()
        lost = await started(found, 1, "b")
        for lease in found.allocator.leases():
            found.closed_with_container.clear()
            await found.service.forget(lease.id, "test")
        found.closed_with_container.clear()
        marks = {**labels.lease_labels(lost), labels.LEASE: "e" * 32, **labels.broker_label("here")}
        found.engines["b"].boxes = {"c9": Container("c9", labels.parse(marks), "running")}
        await found.rounds()
        assert [(each.node, each.state) for each in found.allocator.leases()] == [("b", LeaseState.RUNNING)]


async def test_a_container_that_names_devices_of_another_machine_is_stopped(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(ledger, monkeypatch) as found:
        await found.rounds()
        here = await started(found, 1, "a")
        marks = {**labels.lease_labels(here), labels.LEASE: "e" * 32, **labels.broker_label("here"),
                 labels.USER: "eve", "gpuspawner.devices": "GPU-a1"}  # fmt: skip
        found.engines["b"].boxes["c9"] = Container("c9", labels.parse(marks), "running")
        await found.rounds()
        assert states(found) == {"u1": "running"}
        assert "stop c9" in found.engines["b"].calls
