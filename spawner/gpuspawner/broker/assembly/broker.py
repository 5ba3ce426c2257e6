"""A broker at work: its parts, the order in which they start and end, and what runs until then."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from tornado.httpserver import HTTPServer

from ...core.errors import ConfigError
from ...node.api import Node
from ...node.remote.members import Members
from ..api.socket import unbind_socket
from ..enforce.sharing import Sharing
from ..leases.home_moves import HomeMoves
from .deciding import Deciding, open_deciding
from .ground import Ground
from .homes import HomeMoving, open_homes
from .leasing import Leasing, open_leasing
from .machine import FoundNode
from .machines import Machines
from .members import Following
from .observing import Observing, make_observing
from .rounds import Rounds

RARELY = (1_000, 2, 300)
"""Of Python's garbage collector. Everything is looked through after a million new objects: with a thousand
open requests that takes 0.1 s and more, in which nobody gets an answer. By default it comes after 70,000.
What is new is looked through in small parts: 10,000 objects took 6 ms, longer than an answer takes."""


@dataclass(frozen=True, slots=True)
class Broker:
    """One a process, on its event loop."""

    ground: Ground
    deciding: Deciding
    machines: Machines
    leasing: Leasing
    observing: Observing
    rounds: Rounds
    following: Following | None = None
    """Of brokers that have a door for agents."""
    homes: HomeMoving | None = None
    """Of brokers of a Swarm."""

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set; running servers keep running then. Raises ConfigError or a Fault."""
        await self.observing.journal.load()
        await self.machines.start()
        # Half of what a broker imports is for its API and pages: quotas don't wait for that.
        from .serving import Serving

        servers: list[HTTPServer] = []
        loops: list[asyncio.Task[None]] = []
        serving = Serving(
            self.ground, self.deciding, self.machines, self.leasing, self.observing, self._moves()
        )
        try:
            await self.rounds.look()
            servers.append(serving.open_socket())
            servers.extend(serving.open_pages())
            self.leasing.service.reachable()
            self.ground.engine.watch_events(self.leasing.service.on_event)
            rounds = {**self._loops(), "lab readings": serving.lab_readings().run()}
            loops.extend(asyncio.create_task(loop, name=name) for name, loop in rounds.items())
            gc.freeze()  # what stays (modules, rules) is not looked through again by each collection
            gc.set_threshold(*RARELY)
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
            **self.machines.loops(),
            **self.observing.loops(),
        }
        if leasing.unknown is not None:
            loops["unknown servers"] = leasing.unknown.run()
        if self.following is not None:
            loops["members"] = self.following.run()
        if leasing.prestart is not None:
            loops["prestart"] = leasing.prestart.run()
        if self.homes is not None:
            loops["home moves"] = self.homes.loop()
        return loops

    def _moves(self) -> HomeMoves | None:
        return None if self.homes is None else self.homes.moves

    async def _close(self, servers: list[HTTPServer]) -> None:
        for server in servers:
            server.stop()
        if servers:
            unbind_socket(self.ground.settings.site.socket_path)
        for server in servers:
            await server.close_all_connections()
        if self.homes is not None:
            await self.homes.close()
        await self.machines.stop()
        await self.ground.engine.close()
        self.leasing.own_folders.close()

    def _say_ready(self) -> None:
        kind = "simulated devices" if self.machines.simulated else "devices"
        way, count = self.machines.here.way_in.way, self.machines.device_count
        ways = way.value if way else "not known yet: Docker doesn't answer"
        socket_path = self.ground.settings.site.socket_path
        self.ground.log.info("The broker answers on %s: %d %s, injection %s", socket_path, count, kind, ways)


async def open_broker(ground: Ground, nodes: Sequence[Node], members: Members | None = None) -> Broker:
    """Starts the nodes and makes all parts; nothing else runs yet. The first node is this machine.

    `members` are the other machines that may join; the nodes of those that have are among `nodes`.

    Raises ConfigError or a Fault.
    """
    others = len(nodes) > 1 or members is not None
    found = [await _find(ground, node, here=node is nodes[0], others=others) for node in nodes]
    _say_strangers(ground, {each.facts.name for each in found})
    awaited = {each.facts.name: each.facts.away for each in found if each.facts.away}
    deciding = await open_deciding(ground, [each.sharing.pooling for each in found], awaited)
    machines = Machines(ground, deciding, found)
    leasing = await open_leasing(ground, deciding, machines)
    observing = make_observing(ground, machines)
    machines.connect(leasing.service, observing.journal)
    rounds = Rounds(ground, leasing.service, deciding.allocator, machines)
    following = None if members is None else Following(ground, members, machines, leasing.service)
    homes = open_homes(ground, deciding, machines)
    return Broker(ground, deciding, machines, leasing, observing, rounds, following, homes)


def _say_strangers(ground: Ground, names: set[str]) -> None:
    """Logs which machines the settings name that this broker doesn't have; they may join later."""
    site = ground.settings.site
    named = {name for pool in site.parsed_pools() for name in pool.nodes} | set(site.parsed_node_labels())
    for name in sorted(named - names):
        ground.log.warning(
            "The settings name the machine %s, which hasn't joined: see `gpuspawner node list`",
            name,
        )


async def _find(ground: Ground, node: Node, *, here: bool, others: bool) -> FoundNode:
    """A node, started, and how its devices are shared.

    Settings that can't work on this machine are the admin's to correct: ConfigError. Another machine only
    stays out of use until they can.
    """
    facts = await node.start()
    sharing = Sharing(ground.settings.site, ground.settings.tiers, others=others)
    try:
        for warning in sharing.find(facts).warnings:
            ground.log.warning("%s", warning)
    except ConfigError as error:
        if here:
            raise
        ground.log.error("Machine %s is not used: %s", facts.name, error)
        sharing = Sharing(ground.settings.site, ground.settings.tiers, others=others)
    return FoundNode(node, facts, sharing)
