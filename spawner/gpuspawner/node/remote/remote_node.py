"""A machine whose agent is connected to the broker, or isn't: implements `Node` on the broker's side.

It keeps the desired state, and the agent gets it each time it connects. While no agent is connected, the
facts say so (`away`), and what needs the machine fails with that sentence. A state without any device in a
pool isn't sent: the broker, just started, hasn't looked at the machine yet, and the agent holds what it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from ...core.disk import Disk
from ...core.errors import DeviceFault, Fault, GpuSpawnerError
from ...core.model import DeviceHealth
from ..api import (
    Access,
    Contact,
    DesiredState,
    Labs,
    NodeEvent,
    NodeFacts,
    Outcome,
    Process,
    Seat,
    TurnHands,
    TurnReadings,
)
from .link import Link, LinkPace
from .remote_labs import RemoteDoctor, RemoteEngine, RemoteFolders, RemoteHomes
from .wire import VERSION, Garbled, Hello, event_of

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
RIVAL_SECONDS = 60.0
"""So long after its last attempt, another agent with the same certificate is still told of."""


class RemoteNode:
    """One for each machine that has joined. See `Node` for the methods."""

    def __init__(
        self,
        name: str,
        log: logging.Logger,
        pace: LinkPace | None = None,
        *,
        heard_at: datetime | None = None,
    ) -> None:
        """`heard_at`: when an earlier broker heard of the agent last."""
        self._name, self._log, self._pace = name, log, pace
        self._contact = Contact(heard_at=heard_at)
        away = f"the machine {name} hasn't reported yet since the broker started"
        self._facts = NodeFacts(name, away=away, contact=self._contact)
        self._desired: DesiredState | None = None
        self._held: tuple[Link, DesiredState] | None = None
        """What the agent has said that it holds, and over which connection."""
        self._sending = asyncio.Lock()
        """One state at a time, so that the last one that the agent got is the one that is noted."""
        self._link: Link | None = None
        self._heard: tuple[str, int] = ("", 0)
        """Of which start of the agent, and up to which number, events were taken."""
        self._apart_seconds = 0.0
        self._version = VERSION
        """Of the messages that the connected agent knows."""
        self._events: asyncio.Queue[NodeEvent | None] = asyncio.Queue()
        self._forgetting: asyncio.TimerHandle | None = None
        """Of what is said about another agent with the same certificate."""
        self._engine = RemoteEngine(self._ask)
        folders = RemoteFolders(self._ask, lambda: self._version)
        self._labs = Labs(self._engine, folders, RemoteDoctor(self._ask), RemoteHomes(self._ask))

    @property
    def facts(self) -> NodeFacts:
        """The latest facts."""
        return self._facts

    @property
    def heard_at(self) -> datetime | None:
        """When the agent was heard last; None if it never was."""
        return self._contact.heard_at if self._link is None else self._link.heard_at

    # ---- the agent comes and goes

    def refuse(self, hello: Hello, why: str) -> None:
        """The broker can't work with this agent of the machine. One that is connected stays so."""
        if self._link is None:
            self._contact = Contact(hello.release, self._contact.heard_at, refused=True)
            self._set_away(why)

    def _refuse_rival(self, streams: Streams, hello: Hello) -> None:
        """Raises ValueError for another agent with the same certificate while one is connected.

        Two machines would serve in turn, as one. An agent that was started again finds no connection of its
        earlier run: the kernel closes it, or it ends by its silence.
        """
        if self._link is None or self._link.ended or hello.run == self._heard[0]:
            return
        copied = (
            "If one of the two machines is a copy of the other, run `gpuspawner node leave` and `gpuspawner "
            "node join LINE` on the copy"
        )
        address = (streams[1].get_extra_info("peername") or ["an unknown address"])[0]
        if self._forgetting is not None:
            self._forgetting.cancel()
        self._forgetting = asyncio.get_running_loop().call_later(RIVAL_SECONDS, self._say_rival, "")
        self._say_rival(f"A second agent of this machine connects, from {address}, and is refused. {copied}")
        raise ValueError(f"the agent of machine {self._name} is connected already. {copied}")

    def _say_rival(self, sentence: str) -> None:
        if sentence != self._contact.rival:
            self._contact = replace(self._contact, rival=sentence)
            self._set_facts(self._facts)

    def _set_facts(self, facts: NodeFacts) -> None:
        self._facts = replace(facts, name=self._name, contact=self._contact)
        self._events.put_nowait(self._facts)

    async def serve(self, streams: Streams, hello: Hello) -> None:
        """Takes this connection of the machine's agent, in place of an earlier one, until it ends.

        Raises ValueError if another agent is connected as this machine.
        """
        self._refuse_rival(streams, hello)
        if self._link is not None:  # the machine has a new one, so the old one is dead
            self._link.close()
        if hello.run != self._heard[0]:
            self._heard = (hello.run, 0)
        self._version = hello.version
        link = self._link = Link(streams, self._no_calls, self._on_tell, self._log, self._pace)
        running = asyncio.create_task(link.run())
        try:
            await self._take_up(link, hello.release)
            await asyncio.shield(running)
        except GpuSpawnerError as error:
            self._log.warning("Machine %s has connected, but can't serve yet: %s", self._name, error)
        finally:
            link.close()
            await asyncio.gather(running, return_exceptions=True)
            if self._link is link:
                self._link = None
                self._contact = replace(self._contact, heard_at=link.heard_at)
                self._set_away(link.ended)

    async def _take_up(self, link: Link, release: str) -> None:
        """The agent gets the desired state before the machine counts as there."""
        facts: NodeFacts = await link.call("start")
        if self._desired is not None and self._desired.quotas.device_uuids:
            await self._send(link, self._desired)
        health: tuple[DeviceHealth, ...] = await link.call("health")
        if self._link is not link:
            raise DeviceFault("another connection of this machine came")
        devices = tuple(replace(device, node=self._name) for device in facts.devices)
        for each in health:
            self._events.put_nowait(each)
        self._contact = Contact(release)
        self._set_facts(replace(facts, devices=devices, away=""))
        link.tell("readings_apart", self._apart_seconds)
        link.tell("heard", self._heard[1])
        self._log.info("Machine %s is connected: %d devices", self._name, len(devices))

    async def _send(self, link: Link, desired: DesiredState) -> None:
        """Most changes of leases change nothing of it, as when a lease waits for its container."""
        async with self._sending:
            if self._held != (link, desired):
                self._held = None
                await link.call("apply", desired)
                self._held = link, desired

    def set_apart(self, seconds: float) -> None:
        """Readings needn't come more often than this, because there are many machines."""
        if seconds != self._apart_seconds:
            self._apart_seconds = seconds
            if self._link is not None:
                self._link.tell("readings_apart", seconds)

    def _set_away(self, reason: str) -> None:
        self._set_facts(replace(self._facts, away=self._sentence(reason)))

    def _sentence(self, reason: str) -> str:
        return f"the machine {self._name} can't be reached: {reason}"

    async def _no_calls(self, name: str, arguments: tuple[Any, ...]) -> Any:
        raise Garbled(f"an agent has nothing to ask ({name})")

    def _on_tell(self, what: str, value: Any) -> None:
        """The agent's events. Numbered ones are repeated until they were heard.

        What a newer agent tells beside them is left out.
        """
        if what == "docker":
            self._engine.report(value)
        elif what == "event":
            self._on_event(value)

    def _on_event(self, value: Any) -> None:
        if not isinstance(value, dict):
            raise Garbled("an event without a number")
        event, number = event_of(value.get("event")), value.get("number")
        if isinstance(number, int):
            run, last = self._heard
            if number <= last:
                return
            self._heard = (run, number)
            if self._link is not None:
                self._link.tell("heard", number)
        if isinstance(event, NodeFacts):
            devices = tuple(replace(device, node=self._name) for device in event.devices)
            self._set_facts(replace(event, devices=devices, away=self._facts.away))
        elif event is not None:
            self._events.put_nowait(event)

    async def _ask(self, name: str, *arguments: Any) -> Any:
        """Raises DeviceFault while the machine is away."""
        if self._link is None:
            raise DeviceFault(self._facts.away)
        return await self._link.call(name, *arguments)

    # ---- the interface

    async def start(self) -> NodeFacts:
        """At once: its devices come with its agent."""
        return self._facts

    async def apply(self, desired: DesiredState) -> None:
        """Kept; an agent that isn't connected gets it when it is."""
        self._desired = desired
        if self._link is not None and desired.quotas.device_uuids:
            try:
                await self._send(self._link, desired)
            except Fault as fault:
                self._log.warning("Machine %s doesn't hold its new state yet: %s", self._name, fault)

    async def settle(self, uuid: str) -> None:
        """Raises DeviceFault, also while the machine is away."""
        await self._ask("settle", uuid)

    async def health(self) -> tuple[DeviceHealth, ...]:
        """Of the devices that are watched; nothing while the machine is away."""
        if self._link is None:
            return ()
        try:
            found: tuple[DeviceHealth, ...] = await self._link.call("health")
        except DeviceFault:
            return ()
        return found

    async def way_in(
        self, info: Mapping[str, Any], version: Mapping[str, Any], uuids: Iterable[str]
    ) -> Access:
        """As the machine itself sees it."""
        access: Access = await self._ask("way_in", dict(info), dict(version), tuple(uuids))
        return access

    async def service_way_in(
        self, info: Mapping[str, Any], version: Mapping[str, Any], uuids: Iterable[str]
    ) -> Access:
        """As the machine itself sees it."""
        access: Access = await self._ask("service_way_in", dict(info), dict(version), tuple(uuids))
        return access

    async def processes(self, uuid: str) -> tuple[Process, ...]:
        """Raises DeviceFault, also while the machine is away."""
        found: tuple[Process, ...] = await self._ask("processes", uuid)
        return found

    async def reload_stamp(self) -> int | None:
        """None while the machine is away."""
        if self._link is None:
            return None
        stamp: int | None = await self._ask("reload_stamp")
        return stamp

    async def disks(self, docker_root: str) -> tuple[Disk, ...]:
        """None while the machine is away."""
        if self._link is None:
            return ()
        found: tuple[Disk, ...] = await self._ask("disks", docker_root)
        return found

    def labs(self) -> Labs | None:
        """Its Docker and its folders, through the agent."""
        return self._labs

    def turn_hands(self) -> TurnHands | None:
        """Through the agent; None while no real GPUs are listed there."""
        real = not self._facts.simulated and bool(self._facts.devices)
        return RemoteHands(self._ask) if real else None

    async def check_turns(self, uuids: Sequence[str]) -> str:
        """Why not, also while the machine is away."""
        try:
            reason: str = await self._ask("check_turns", tuple(uuids))
        except DeviceFault as fault:
            return str(fault)
        return reason

    async def events(self) -> AsyncIterator[NodeEvent]:
        """Ends when the node is closed."""
        while (event := await self._events.get()) is not None:
            yield event

    async def close(self) -> None:
        """Ends the connection; the agent keeps holding what it was told."""
        if self._forgetting is not None:
            self._forgetting.cancel()
        if self._link is not None:
            self._link.close()
        self._events.put_nowait(None)


class RemoteHands:
    """`TurnHands` through the agent. Each raises DeviceFault while the machine is away."""

    def __init__(self, ask: Any) -> None:
        self._ask = ask

    async def read(self, seats: Sequence[Seat]) -> TurnReadings:
        """See `TurnHands`, as for all."""
        found: TurnReadings = await self._ask("turn_read", tuple(seats))
        return found

    async def pause(self, seat: Seat) -> Outcome:
        """See `TurnHands`."""
        outcome: Outcome = await self._ask("turn_pause", seat)
        return outcome

    async def sleep(self, seat: Seat) -> Outcome:
        """See `TurnHands`."""
        outcome: Outcome = await self._ask("turn_sleep", seat)
        return outcome

    async def wake(self, seat: Seat, gpu_uuid: str) -> Outcome:
        """See `TurnHands`."""
        outcome: Outcome = await self._ask("turn_wake", seat, gpu_uuid)
        return outcome

    async def may_end(self, seat: Seat) -> bool:
        """See `TurnHands`."""
        allowed: bool = await self._ask("turn_may_end", seat)
        return allowed

    async def end(self, seat: Seat) -> int:
        """See `TurnHands`."""
        count: int = await self._ask("turn_end", seat)
        return count

    async def forget(self, alive: Sequence[Seat]) -> None:
        """See `TurnHands`."""
        await self._ask("turn_forget", tuple(alive))
