"""A broker at work: its parts, the order in which they start and end, and what runs until then."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from tornado.httpserver import HTTPServer

from ...node.api import Node, NodeFacts
from ..api.socket import unbind_socket
from ..enforce.sharing import Sharing
from .deciding import Deciding, open_deciding
from .ground import Ground
from .leasing import Leasing, open_leasing
from .machine import Machine
from .observing import Observing, make_observing
from .rounds import Rounds
from .serving import Serving


@dataclass(frozen=True, slots=True)
class Broker:
    """One a process, on its event loop."""

    ground: Ground
    deciding: Deciding
    machine: Machine
    leasing: Leasing
    observing: Observing
    rounds: Rounds

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set; running servers keep running then. Raises ConfigError or a Fault."""
        await self.observing.journal.load()
        await self.machine.enforcement.start()
        servers: list[HTTPServer] = []
        loops: list[asyncio.Task[None]] = []
        serving = Serving(self.ground, self.deciding, self.machine, self.leasing, self.observing)
        try:
            await self.rounds.look()
            servers.append(serving.open_socket())
            servers.extend(serving.open_pages())
            self.leasing.service.reachable()
            self.ground.engine.watch_events(self.leasing.service.on_event)
            loops.extend(asyncio.create_task(loop, name=name) for name, loop in self._loops().items())
            gc.freeze()  # what stays (modules, rules) is not looked through again by each collection
            self._say_ready()
            await stop.wait()
            self.ground.log.info(
                "The broker ends; leases stay in the ledger and running servers keep running"
            )
        finally:
            for task in loops:
                task.cancel()
            await self.leasing.service.close()  # first: from now on, a broken hold frees nothing
            await self._close(servers)

    def _loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What runs beside the answers until the broker ends, by name."""
        allocator, leasing = self.deciding.allocator, self.leasing
        loops = {
            "reconcile": self.rounds.run(),
            "waits": allocator.waits.run(),
            "endings": leasing.endings.run(),
            "announcements": self.deciding.announcements.run(allocator.leases, leasing.folders),
            **self.machine.loops(),
            **self.observing.loops(),
        }
        if leasing.unknown is not None:
            loops["unknown servers"] = leasing.unknown.run()
        if leasing.prestart is not None:
            loops["prestart"] = leasing.prestart.run()
        return loops

    async def _close(self, servers: list[HTTPServer]) -> None:
        for server in servers:
            server.stop()
        if servers:
            unbind_socket(self.ground.settings.site.socket_path)
        for server in servers:
            await server.close_all_connections()
        await self.machine.enforcement.stop()
        await self.ground.engine.close()
        self.leasing.folders.close()

    def _say_ready(self) -> None:
        kind = "simulated devices" if self.machine.simulated else "devices"
        way, count = self.machine.way_in.way, self.machine.device_count
        ways = way.value if way else "not known yet: Docker doesn't answer"
        socket_path = self.ground.settings.site.socket_path
        self.ground.log.info("The broker answers on %s: %d %s, injection %s", socket_path, count, kind, ways)


async def open_broker(ground: Ground, node: Node, facts: NodeFacts) -> Broker:
    """Makes all parts for a node that has started; nothing runs yet. Raises ConfigError or a Fault."""
    sharing = Sharing(ground.settings.site, ground.settings.tiers)
    for warning in sharing.find(facts).warnings:
        ground.log.warning("%s", warning)
    deciding = await open_deciding(ground, sharing.pooling)
    machine = Machine(ground, node, facts, sharing, deciding)
    leasing = await open_leasing(ground, deciding, machine)
    observing = make_observing(ground, machine)
    machine.connect(leasing.service, observing.journal)
    rounds = Rounds(ground, leasing.service, deciding.allocator, machine)
    return Broker(ground, deciding, machine, leasing, observing, rounds)
