"""The agent: this machine's node as a process of its own, which connects out to the broker.

It holds what it was told while the broker is away, also over its own restart: the desired state is kept in a
file. What the guard and MPS did meanwhile is told when the broker is back. It asks this machine's Docker for
the broker, and keeps the folders of the leases whose labs run here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ... import __version__
from ...core.errors import DeviceFault, EngineFault, Fault, GpuSpawnerError
from ..api import DesiredState, GuardEvent, MpsEvent, Node, NodeEvent, NodeFacts, Readings, TurnHands
from ..engine import ContainerEvent, Engine, EventsConnected
from ..homes import HomeFiles
from ..local_folders import LocalFolders
from .checking import check_machine
from .link import Link, LinkPace
from .wire import Garbled, Hello, event_to_plain, plain, read

RETRY_SECONDS = 2.0
"""Pause before the next attempt to connect, in the mean: a hundred agents don't come at the same moment."""
DESIRED_FILE = "desired.json"
MOST_KEPT = 10_000
"""So many events are kept for a broker that is away, the newest."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Streams]]
"""Opens a connection to the broker. Raises OSError, also for TLS; Fault without a certificate."""


class AgentHomes(HomeFiles, Protocol):
    """The homes of this machine; copies of them end with the connection that asked for them."""

    async def end_all(self) -> None:
        """Ends all copies."""
        ...


@dataclass(frozen=True, slots=True)
class Hands:
    """What the agent does its work with: the node, Docker, the homes there, and the state folder, with the
    desired state and the folders of the leases."""

    node: Node
    engine: Engine
    homes: AgentHomes
    state_dir: Path
    config_file: str = ""
    """With the settings of this machine; "" without one."""


class Agent:
    """One a machine. `connect` opens the connection."""

    def __init__(
        self,
        name: str,
        hands: Hands,
        connect: Connect,
        log: logging.Logger,
        pace: LinkPace | None = None,
    ) -> None:
        self._name, self._node, self._engine, self._connect = name, hands.node, hands.engine, connect
        self._file, self._log, self._pace = hands.state_dir / DESIRED_FILE, log, pace
        self._folders, self._homes = LocalFolders(hands.state_dir), hands.homes
        self._config_file = hands.config_file
        self._run = uuid.uuid4().hex
        self._facts = NodeFacts(name)
        self._readings: Readings | None = None
        self._told: tuple[Readings, float] | None = None
        """The readings that were sent last over this connection, and when, by the loop's clock."""
        self._apart_seconds = 0.0
        """Readings needn't go out more often than this, says the broker."""
        self._kept: deque[tuple[int, NodeEvent]] = deque(maxlen=MOST_KEPT)
        self._number = 0
        self._link: Link | None = None
        self._refused = ""
        self._is_taken_up = False
        """Whether the broker has the facts: it gets events only then."""

    async def run(self, retry_seconds: float = RETRY_SECONDS) -> None:
        """Runs until cancelled. Raises ConfigError for settings that can't work on this machine."""
        self._set_facts(await self._node.start())
        self._engine.watch_events(self._on_docker)
        following = asyncio.create_task(self._follow())
        try:
            await self._take_up()
            told = ""
            while True:
                why = await self._serve()
                if why != told:
                    self._log.warning("The broker can't be reached; quotas stay enforced: %s", why)
                told = why
                await asyncio.sleep(retry_seconds * random.uniform(0.5, 1.5))
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await self._node.close()
            self._folders.close()

    def _set_facts(self, facts: NodeFacts) -> NodeFacts:
        self._facts = replace(facts, lease_folders=str(self._folders.root.absolute()))
        return self._facts

    async def _serve(self) -> str:
        """One connection, from its begin to its end. Returns why it ended."""
        try:
            reader, writer = await self._connect()
        except (OSError, Fault) as error:
            return str(error) or type(error).__name__
        writer.write(json.dumps(plain(Hello(self._name, self._run, release=__version__))).encode() + b"\n")
        link = Link((reader, writer), self._on_call, self._on_tell, self._log, self._pace)
        self._link, self._is_taken_up, self._refused = link, False, ""
        self._told, self._apart_seconds = None, 0.0
        try:
            await link.run()
        finally:
            self._link = None
            await self._homes.end_all()
        return self._refused or link.ended

    # ---- what the broker asks

    async def _on_call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name == "start":
            return self._facts
        if name == "apply":
            await asyncio.to_thread(self._keep, arguments[0])
            return await self._node.apply(arguments[0])
        if name == "check_machine":
            return await check_machine(self._config_file, arguments[0])
        if name == "disks":
            return await self._node.disks(await self._docker_root())
        if name == "folder_write":
            lease_id, files, make = arguments
            return await self._folders.write(lease_id, files, make=make)
        part, _, method = name.partition("_")
        owners: dict[str, Callable[[], Any]] = {
            "turn": self._turn_hands, "docker": lambda: self._engine, "folder": lambda: self._folders,
            "home": lambda: self._homes,
        }  # fmt: skip
        if part in owners:
            return await getattr(owners[part](), method)(*arguments)
        return await getattr(self._node, name)(*arguments)

    def _turn_hands(self) -> TurnHands:
        hands = self._node.turn_hands()
        if hands is None:
            raise DeviceFault(self._facts.fault or "The GPUs are not listed yet.")
        return hands

    async def _docker_root(self) -> str:
        """Docker's folder; "" while it doesn't answer."""
        try:
            info, _ = await self._engine.facts()
        except EngineFault:
            return ""
        return str(info.get("DockerRootDir") or "")

    def _on_tell(self, what: str, value: Any) -> None:
        """`heard`: the broker has heard the events up to a number, so it has taken this machine up."""
        if what == "refused":
            self._refused = str(value)
        elif what == "heard":
            self._on_heard(value)
        elif what == "readings_apart":
            if not isinstance(value, int | float):
                raise Garbled("readings apart, but not by how many seconds")
            self._apart_seconds = value

    def _on_heard(self, value: Any) -> None:
        if not isinstance(value, int):
            raise Garbled("heard, but not up to which event")
        while self._kept and self._kept[0][0] <= value:
            self._kept.popleft()
        if not self._is_taken_up:
            self._is_taken_up = True
            self._repeat()

    def _repeat(self) -> None:
        """Everything that the broker has not heard, and the last readings."""
        for number, event in self._kept:
            self._send(event, number)
        if self._readings is not None:
            self._send_readings(self._readings)

    # ---- the node's events

    async def _follow(self) -> None:
        async for event in self._node.events():
            if isinstance(event, GuardEvent | MpsEvent):
                self._number += 1
                self._kept.append((self._number, event))
                self._send(event, self._number)
                continue
            if isinstance(event, Readings):
                self._readings = event
                self._send_readings(event)
                continue
            self._send(self._set_facts(event) if isinstance(event, NodeFacts) else event)

    def _send_readings(self, readings: Readings) -> None:
        """Unless others went out a moment ago, and nothing has changed since but how much is used."""
        if not self._is_taken_up:
            return
        now = asyncio.get_running_loop().time()
        if self._told is not None:
            before, at = self._told
            if now < at + self._apart_seconds and _but_use(readings) == _but_use(before):
                return
        self._told = readings, now
        self._send(readings)

    def _send(self, event: NodeEvent, number: int | None = None) -> None:
        if self._link is not None and self._is_taken_up:
            self._link.tell("event", {"event": event_to_plain(event), "number": number})

    def _on_docker(self, event: ContainerEvent | EventsConnected) -> None:
        """Docker's events are not kept: the broker compares when it is back."""
        if self._link is not None and self._is_taken_up:
            self._link.tell("docker", event_to_plain(event))

    # ---- what it was told, over a restart

    async def _take_up(self) -> None:
        try:
            desired = await asyncio.to_thread(self._read)
            if desired is not None:
                await self._node.apply(desired)
        except GpuSpawnerError as error:
            self._log.error("What the broker wanted last can't be enforced before it is back: %s", error)

    def _keep(self, desired: DesiredState) -> None:
        """Raises Fault if the file can't be written: then the broker learns that it isn't held."""
        written = self._file.with_suffix(".new")
        try:
            written.write_text(json.dumps(plain(desired)))
            os.replace(written, self._file)
        except OSError as error:
            raise Fault(f"{self._file} can't be written: {error.strerror}") from error

    def _read(self) -> DesiredState | None:
        """Raises Fault if the file can't be read."""
        try:
            desired: DesiredState = read(DesiredState, json.loads(self._file.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, Garbled) as error:
            raise Fault(f"{self._file} can't be read: {error}") from error
        return desired


def _but_use(readings: Readings) -> tuple[object, ...]:
    """What of the readings the broker has to know at once."""
    return readings.blind, readings.xids, readings.usage.keys()
