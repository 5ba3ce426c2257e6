"""`gpuspawner node`: other machines join the broker, are listed and forgotten; runs a machine's agent."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from traitlets import Unicode, default

from ..core.errors import BadOption, BrokerUnavailable, ConfigError, GpuSpawnerError, Refusal
from ..node.remote import agent_process
from ..node.remote.certificates import Identity
from ..node.remote.joining import join, parse_line
from ..node.remote.members import make_line, membership_of
from ..protocol.client import BrokerClient
from .cli import Command, make_console, table
from .rules_cli import Verb

USAGE = (
    "gpuspawner node token | list | forget NAME, on the broker's machine; "
    "gpuspawner node join LINE | leave | agent HOST:PORT, on another one"
)


class NodeCommand(Command):
    """Lets other machines join the broker, lists and forgets them; runs the agent of a machine."""

    name = "gpuspawner-node"
    description = __doc__
    aliases = {**Command.aliases, "name": "NodeCommand.machine"}  # noqa: RUF012

    machine = Unicode(
        help="""
        The name under which this machine joins the broker.

        Default: as the machine calls itself.
        Example: `gpuspawner node join LINE --name gpu-b`
        """,
    ).tag(config=True)

    @default("machine")
    def _machine_default(self) -> str:
        return socket.gethostname()

    def start(self) -> None:
        """Runs the verb; `exit_status` is 1 for what can't be done, 2 for an invalid command line."""
        verb, *rest = self.extra_args or [""]
        verbs: Mapping[str, tuple[int, Verb]] = {
            "token": (0, self._token), "list": (0, self._list), "forget": (1, self._forget),
            "join": (1, self._join), "leave": (0, self._leave), "agent": (1, self._agent),
        }  # fmt: skip
        if verb not in verbs or len(rest) != verbs[verb][0]:
            self._fail(2, f"usage: {USAGE}")
            return
        try:
            verbs[verb][1](rest)
        except (GpuSpawnerError, Refusal) as error:
            self._fail(1, str(error))

    def _fail(self, status: int, sentence: str) -> None:
        self.exit_status = status
        print(f"gpuspawner node: {sentence}", file=sys.stderr)

    def _state_dir(self) -> Path:
        return Path(self.settings().site.state_dir).absolute()

    # ---- on the broker's machine

    def _token(self, rest: Sequence[str]) -> None:
        """A line with which one machine may join, within an hour."""
        address = self.settings().agents_address
        if not address:
            raise ConfigError(
                "This broker has no door for agents: set c.GpuBroker.agents_address and restart it"
            )
        print(make_line(self._state_dir(), address))

    def _list(self, rest: Sequence[str]) -> None:
        names = membership_of(self._state_dir()).names()
        devices = self._devices()
        rows = [
            {"name": name, "devices": None if devices is None else len(mine), "in_service": _healthy(mine)}
            for name in names
            for mine in [[each for each in devices or () if each["node"] == name]]
        ]
        if self.json:
            print(json.dumps(rows))
            return
        shown = table("Machines that have joined", "Name", "GPUs", "In service")
        for row in rows:
            counts = ("–", "–") if devices is None else (str(row["devices"]), str(row["in_service"]))
            shown.add_row(str(row["name"]), *counts)
        make_console().print(shown)

    def _devices(self) -> list[dict[str, Any]] | None:
        """Those of the running broker; None if none answers."""

        async def ask() -> list[dict[str, Any]]:
            client = BrokerClient(self.settings().site.socket_path)
            try:
                found: list[dict[str, Any]] = (await client.status())["devices"]
                return found
            finally:
                await client.close()

        try:
            return asyncio.run(ask())
        except BrokerUnavailable:
            return None

    def _forget(self, rest: Sequence[str]) -> None:
        """Its certificate is worth nothing, and its leases end, whatever still runs there."""
        if not membership_of(self._state_dir()).forget(rest[0]):
            raise BadOption(f"No machine {rest[0]} has joined: `gpuspawner node list` shows those that have.")
        if not self.json:
            print(
                f"Forgot {rest[0]}: its leases end within seconds. Switch the machine off if it still runs."
            )

    # ---- on another machine

    def _identity(self) -> Identity:
        return Identity(self._state_dir() / agent_process.IDENTITY_FOLDER)

    def _join(self, rest: Sequence[str]) -> None:
        line = parse_line(rest[0])
        asyncio.run(join(line, self.machine, self._identity()))
        if not self.json:
            print(f"Joined as {self.machine}. Now run: gpuspawner node agent {line.host}:{line.port}")

    def _leave(self, rest: Sequence[str]) -> None:
        """This machine's key is deleted: it can't connect any more."""
        shutil.rmtree(self._identity().folder, ignore_errors=True)
        if not self.json:
            print("Left. On the broker's machine: gpuspawner node forget NAME")

    def _agent(self, rest: Sequence[str]) -> None:
        """Runs until SIGTERM."""
        config = [f"--config={self.config_file}"] if self.config_file else []
        self.exit_status = agent_process.main([f"--broker={rest[0]}", f"--name={self.machine}", *config])


def _healthy(devices: Sequence[Mapping[str, Any]]) -> int:
    return sum(bool(device["healthy"]) for device in devices)
