"""A broker's socket with the rules behind it, in a thread: real allocator and ledger, no Docker."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpuspawner.broker.api.homes import home_routes
from gpuspawner.broker.api.offer import offer_routes
from gpuspawner.broker.api.public.history import HistoryTools, history_routes
from gpuspawner.broker.api.public.images import image_routes
from gpuspawner.broker.api.public.local import local_routes
from gpuspawner.broker.api.public.rules import MoreRoutes, joined, public_rules
from gpuspawner.broker.api.rules import hub_routes
from gpuspawner.broker.api.socket import Site, bind_socket, make_app
from gpuspawner.broker.decide.place.sharing_rules import SharingRules
from gpuspawner.broker.decide.when.gpu_use import GpuUse
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.leases.endings import EndingParts, Endings
from gpuspawner.broker.leases.gate import QuotaGate
from gpuspawner.broker.leases.home_moves import HomeMoves
from gpuspawner.broker.leases.offers import Offers
from gpuspawner.broker.leases.rule_service import RuleService
from gpuspawner.broker.leases.rulebook import Rulebook
from gpuspawner.broker.ledger import Ledger
from gpuspawner.broker.observe.checkup import Checkup
from gpuspawner.broker.observe.metrics import Metrics
from gpuspawner.config.idle import IdleRules
from gpuspawner.config.quotas import Known
from gpuspawner.config.tiers import parse_tiers
from gpuspawner.core.model import Device
from gpuspawner.protocol.pulls import ImageDocument
from tornado.httpserver import HTTPServer

from tests.unit.lease_examples import GPU0, GPU1

TIERS = [{"name": "cpu"}, {"name": "gpu", "devices": 1}]
QUOTAS = [{"group": "students", "devices": 1}]
CONFIG = "c.GpuSite.timezone = 'Europe/Berlin'\nc.GpuSite.socket_path = {socket!r}\n"


@dataclass(frozen=True)
class Machine:
    """Its devices, how they are shared, and the site's tiers."""

    devices: tuple[Device, ...] = (GPU0, GPU1)
    terms: Mapping[str, SharingRules] = field(default_factory=dict)
    tiers: Sequence[Mapping[str, Any]] = field(default_factory=lambda: TIERS)
    quotas: Sequence[Mapping[str, Any]] = field(default_factory=lambda: QUOTAS)


class Served:
    """A broker's socket in a thread of its own; `times` moves its clock.

    `database` is the URL of its ledger, SQLite's in the folder by default.
    """

    def __init__(self, folder: Path, times: Any, machine: Machine | None = None, database: str = "") -> None:
        self._where: Path | str = database or folder / "ledger"
        self._times, self._machine = times, machine or Machine()
        self.loop = asyncio.new_event_loop()
        self.config = folder / "config.py"
        self.socket = str(folder / "b.sock")
        self.config.write_text(CONFIG.format(socket=self.socket))
        self.images: tuple[ImageDocument, ...] = ()
        self.homes: HomeMoves | None = None
        """Set it before `start`."""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(20)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(20)

    def do(self, work: Any) -> Any:
        """The result of a coroutine on the broker's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.open())
        self._ready.set()
        self.loop.run_forever()
        self.loop.run_until_complete(self.close())
        self.loop.close()

    async def close(self) -> None:
        """Ends what `open` began."""
        self.server.stop()
        await self.server.close_all_connections()
        await self.ledger.close()

    async def open(self) -> None:
        """Opens ledger and socket on the present loop."""
        times = self._times
        self.ledger: Ledger = times.make_ledger(self._where)
        await self.ledger.open()
        machine = self._machine
        known = Known(parse_tiers(list(machine.tiers)), None, "Europe/Berlin")
        rulebook = Rulebook(self.ledger, machine.quotas, known, clock=times.now)
        gate = QuotaGate(rulebook, self.ledger, times.now)
        self.allocator = Allocator(self.ledger, clock=times.now, gate=gate)
        await self.allocator.load(machine.devices, machine.terms)
        self.rules = RuleService(rulebook, gate, self.allocator, self.ledger, times.now)
        service: Any = type(
            "Service",
            (),
            {
                "now": staticmethod(times.now),
                "leases": staticmethod(self.allocator.leases),
                "release": staticmethod(self.allocator.begin_release),
                "tell": staticmethod(self.allocator.tell),
            },
        )
        parts = EndingParts(
            rulebook=rulebook,
            gate=gate,
            allocator=self.allocator,
            service=service,
            ledger=self.ledger,
            gpu_use=lambda lease: GpuUse(GPU1.uuid not in lease.device_uuids),
            idle=IdleRules(),
            clock=times.now,
        )
        self.endings = Endings(parts, logging.getLogger("test"))
        self.unknown: set[str] = set()
        self.site = Site(
            service, service, Metrics(), 60.0, logging.getLogger("test"), unknown=lambda: self.unknown
        )
        gate.floor = self.allocator
        offers = Offers(self.rules, gate, self.allocator, times.now)
        routes = [
            *hub_routes(self.site, self.rules, self.endings),
            *offer_routes(self.site, self.rules, self.endings, offers),
            *home_routes(self.site, self.rules, self.endings, self.homes),
            *local_routes(service, "hub", self._api()),
        ]
        self.server = HTTPServer(make_app(self.site, routes))
        self.server.add_socket(bind_socket(self.socket))

    def _api(self) -> MoreRoutes:
        past = HistoryTools(self.site, self.rules, self.endings, self.ledger, Checkup(tuple), self._times.now)
        return joined(
            public_rules(self.site, self.rules, self.endings),
            history_routes(past),
            image_routes(lambda: self.images),
        )
