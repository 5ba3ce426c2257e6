"""The other machines of a broker: what stands for each that has joined, and the door where agents connect."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from datetime import datetime
from pathlib import Path

from ...core.errors import ConfigError, Fault
from .certificates import Authority
from .door import Door
from .joining import JoinLine
from .membership import Membership
from .remote_node import RemoteNode

FOLDER = "machines"
"""In the broker's state folder: its keys, who has joined, and the tokens."""
MANY = 10
APART_SECONDS = 9.0
"""With more than so many other machines, each sends every other of its readings, which come every 5 s."""
NOTE_SECONDS = 30.0
"""How often it is recorded when each machine was heard last: a broker that is killed loses no more."""


def membership_of(state_dir: Path) -> Membership:
    """Who has joined the broker with this state folder."""
    return Membership(state_dir / FOLDER)


def make_line(state_dir: Path, address: str) -> JoinLine:
    """A line with a new token for another machine; makes the broker's keys if there are none. Blocks.

    Raises ConfigError for an address that isn't HOST:PORT, Fault if the state folder can't be written.
    """
    host, port = split_address(address)
    if host in ("0.0.0.0", "[::]"):  # it listens everywhere: other machines need a name
        host = socket.getfqdn()
    authority = Authority(state_dir / FOLDER / "keys")
    return JoinLine(host, port, membership_of(state_dir).make_token(), authority.broker_fingerprint)


def split_address(address: str) -> tuple[str, int]:
    """Host and port. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"{address!r} isn't an address for agents: write it as HOST:PORT, like 10.0.0.1:8098"
        )
    return host, int(port)


class Members:
    """One a broker; `open` comes first."""

    def __init__(self, state_dir: Path, log: logging.Logger) -> None:
        self._folder, self._log = state_dir / FOLDER, log
        self._membership = membership_of(state_dir)
        self._nodes: dict[str, RemoteNode] = {}
        self._joined: dict[str, str] = {}
        """The fingerprints of their certificates, as of the last look."""
        self._door: Door | None = None
        self._heard: dict[str, datetime] = {}
        """As it was recorded last."""
        self._noted_at = -math.inf

    async def open(self, address: str) -> tuple[RemoteNode, ...]:
        """Listens for agents; returns what stands for the machines that have joined.

        Raises ConfigError if the address can't be used.
        """
        host, port = split_address(address)
        authority = await asyncio.to_thread(Authority, self._folder / "keys")
        self._heard = await asyncio.to_thread(self._membership.heard)
        joined, _ = await self.look()
        self._door = Door(authority, self._membership, self._nodes.get, self._log)
        try:
            await self._door.open(host, port)
        except OSError as error:
            raise ConfigError(
                f"Agents can't connect to {address}: {error.strerror}. Set c.GpuBroker.agents_address to "
                "another one"
            ) from error
        return joined

    async def look(self) -> tuple[tuple[RemoteNode, ...], tuple[str, ...]]:
        """The machines that have joined since the last look, and the names of those that were forgotten.

        One that was forgotten and has joined again is both.
        """
        joined = await asyncio.to_thread(self._membership.fingerprints)
        gone = tuple(name for name in self._nodes if self._joined.get(name) != joined.get(name))
        for name in gone:
            await self._nodes.pop(name).close()
        self._joined = joined
        new = [name for name in joined if name not in self._nodes]
        self._nodes |= {name: RemoteNode(name, self._log, heard_at=self._heard.get(name)) for name in new}
        for node in self._nodes.values():
            node.set_apart(APART_SECONDS if len(self._nodes) > MANY else 0.0)
        await self._note_heard()
        return tuple(self._nodes[name] for name in new), gone

    async def _note_heard(self) -> None:
        """Records when each machine was heard last, now and then. Raises Fault."""
        now = asyncio.get_running_loop().time()
        heard = {name: node.heard_at for name, node in self._nodes.items() if node.heard_at is not None}
        if heard == self._heard or now < self._noted_at + NOTE_SECONDS:
            return
        await asyncio.to_thread(self._membership.note_heard, heard)
        self._heard, self._noted_at = heard, now

    async def close(self) -> None:
        """Ends all connections."""
        self._noted_at = -math.inf
        try:
            await self._note_heard()
        except Fault as fault:
            self._log.warning("%s", fault)
        if self._door is not None:
            await self._door.close()
