"""Leases and HTTP with a real allocator and ledger; Docker and the folders are dicts of the test."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.api.socket import MAX_BODY_BYTES, Site, bind_socket, make_app
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.leases.engines import Engines
from gpuspawner.broker.leases.leasing import LeaseService, Parts
from gpuspawner.broker.ledger import Ledger
from gpuspawner.broker.observe.metrics import Metrics
from gpuspawner.core import labels
from gpuspawner.core.errors import EngineFault, Fault, LedgerFault
from gpuspawner.core.model import ContainerPatch, Device, GpuRequest, Lease
from gpuspawner.core.units import Clock, utc_now
from gpuspawner.core.want import Want
from gpuspawner.node.engine import Container, ContainerEvent
from gpuspawner.protocol.client import BrokerClient
from tornado.httpserver import HTTPServer

from tests.soon import until

HOUR = 3600.0


@dataclass
class FakeEngine:
    """Docker as a dict of containers; `fault` makes every call fail."""

    boxes: dict[str, Container] = field(default_factory=dict)
    fault: str = ""
    calls: list[str] = field(default_factory=list)
    started: dict[str, datetime] = field(default_factory=dict)
    """When containers were started, as far as the test says it."""
    slow: set[str] = field(default_factory=set)
    """Containers whose removal takes until the test ends it."""
    stuck: set[str] = field(default_factory=set)
    """Containers whose removal hangs without an answer."""

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.fault:
            raise EngineFault(self.fault)

    async def list(self, lease_id: str | None = None) -> tuple[Container, ...]:
        self._call("list")
        return tuple(item for item in self.boxes.values() if lease_id in (None, item.lease_id))

    async def remove(self, container_id: str) -> None:
        self._call(f"remove {container_id}")
        if container_id in self.stuck:
            await asyncio.sleep(60)
            raise EngineFault("the test was too slow")
        if container_id in self.slow:
            self.boxes[container_id] = replace(self.boxes[container_id], state="removing")
        else:
            self.boxes.pop(container_id, None)

    async def stop(self, container_id: str) -> None:
        self._call(f"stop {container_id}")
        self.boxes[container_id] = replace(self.boxes[container_id], state="exited")

    async def finished_at(self, container_id: str) -> datetime | None:
        self._call(f"inspect {container_id}")
        return None

    async def started_at(self, container_id: str) -> datetime | None:
        self._call(f"inspect {container_id}")
        return self.started.get(container_id)

    async def images(self) -> frozenset[str]:
        return frozenset()

    async def facts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        raise AssertionError("not asked here")


@dataclass
class FakeFolders:
    """The leases' folders as a dict."""

    written: dict[str, Lease] = field(default_factory=dict)
    fault: str = ""
    turns: dict[str, str] = field(default_factory=dict)

    async def write(self, lease: Lease) -> None:
        if self.fault:
            raise LedgerFault(self.fault)
        self.written[lease.id] = lease

    async def refresh(self, lease: Lease) -> None:
        await self.write(lease)

    async def write_turn(self, lease_id: str, sentence: str) -> None:
        self.turns[lease_id] = sentence

    async def write_uses(self, texts: Mapping[str, str]) -> Mapping[str, Fault]:
        raise AssertionError("not written here")

    async def remove(self, lease_id: str) -> None:
        self.written.pop(lease_id, None)


class View:
    """Fixed documents."""

    def status(self) -> dict[str, Any]:
        return {"devices": []}

    def tiers(self) -> dict[str, Any]:
        return {"tiers": []}

    def metrics(self) -> bytes:
        return b"up 1\n"


@dataclass
class Bench:
    """A broker without Docker and without devices of its own."""

    socket: Path
    service: LeaseService
    allocator: Allocator
    ledger: Ledger
    engine: FakeEngine
    folders: FakeFolders
    metrics: Metrics
    client: BrokerClient

    def request(
        self, number: int, user: str = "anna", count: int = 1, groups: tuple[str, ...] = ()
    ) -> GpuRequest:
        return GpuRequest(f"{number:032x}", "hub", user, "", "gpu", Want(count), groups)

    def put(self, lease: Lease, container_id: str = "c1", state: str = "running") -> ContainerEvent:
        """The container is there; returns Docker's event."""
        self.engine.boxes[container_id] = Container(
            container_id, labels.parse({**labels.lease_labels(lease), **labels.broker_label("here")}), state
        )  # fmt: skip
        return ContainerEvent("start", container_id, lease.id, "here")

    def states(self) -> dict[str, str]:
        return {lease.user: lease.state.value for lease in self.allocator.leases()}

    async def become(self, **states: str) -> None:
        """Waits until these are the leases."""
        await until(lambda: self.states() == states)

    def refusals(self, reason: str) -> float:
        return self.metrics.registry.get_sample_value("gpuspawner_refusals_total", {"reason": reason}) or 0.0


async def make_bench(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, queue_seconds: float, clock: Clock = utc_now
) -> AsyncIterator[Bench]:
    monkeypatch.setattr("gpuspawner.broker.leases.leasing.READY_SECONDS", 0.2)
    monkeypatch.setattr("gpuspawner.broker.leases.leasing.SUPERSEDE_SECONDS", 0.5)
    engine, folders, metrics = FakeEngine(), FakeFolders(), Metrics()
    allocator = Allocator(ledger, clock=clock)
    await allocator.load([Device("GPU-1", "H100 80GB", 80 << 30, simulated=True)])
    parts = Parts(
        "here", allocator, ledger, Engines(engine), folders,
        lambda lease: ContainerPatch(env={"GPUSPAWNER_LEASE": lease.id}), metrics, clock,
    )  # fmt: skip
    log = logging.getLogger("test_api")
    service = LeaseService(parts, log)
    service.restore()
    service.reachable()
    service.ready.set()
    with tempfile.TemporaryDirectory(prefix="gs-") as folder:
        socket = Path(folder) / "b.sock"
        site = Site(service, View(), metrics, queue_seconds, log, hurry=allocator.waits.hurry)
        server = HTTPServer(make_app(site), max_body_size=MAX_BODY_BYTES)
        server.add_socket(bind_socket(str(socket)))
        client = BrokerClient(str(socket))
        yield Bench(socket, service, allocator, ledger, engine, folders, metrics, client)
        await client.close()
        server.stop()
        await service.close()
        await server.close_all_connections()
