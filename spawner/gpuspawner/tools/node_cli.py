"""`gpuspawner node`: other machines join the broker, are listed and forgotten; runs a machine's agent."""

from __future__ import annotations

import asyncio
import getpass
import json
import shlex
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from traitlets import Unicode, default

from ..core.errors import BadOption, BrokerUnavailable, ConfigError, GpuSpawnerError, Refusal
from ..core.machine import MachineState, MachineView
from ..node.remote import agent_process
from ..node.remote.certificates import Identity
from ..node.remote.joining import join, parse_line
from ..node.remote.members import make_line, membership_of
from ..protocol.client import BrokerClient
from ..protocol.rules import DrainChange, DrainDocument, DrainsDocument
from .agent_unit import RUNNING, UNIT, UNITS, AgentUnit
from .cli import Command, ask_status, make_console, show_machines
from .rules_cli import Verb

USAGE = (
    "gpuspawner node token | list | drain NAME [REASON] | undrain NAME | forget NAME, on the broker's "
    "machine; gpuspawner node join LINE | leave | agent HOST:PORT, on another one"
)


_NONE, _ONE = range(1), range(1, 2)
"""How many words may follow a verb."""


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
        verbs: Mapping[str, tuple[range, Verb]] = {
            "token": (_NONE, self._token), "list": (_NONE, self._list), "forget": (_ONE, self._forget),
            "drain": (range(1, 3), self._drain), "undrain": (_ONE, self._undrain),
            "join": (_ONE, self._join), "leave": (_NONE, self._leave), "agent": (_ONE, self._agent),
        }  # fmt: skip
        if verb not in verbs or len(rest) not in verbs[verb][0]:
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
        joined, status = membership_of(self._state_dir()).names(), self._status()
        known: list[dict[str, Any]] = [] if status is None else status[0]["machines"]
        names = {each["name"] for each in known}
        missing = [_unknown(name, status is not None) for name in joined if name not in names]
        rows = [*known, *missing]
        if self.json:
            print(json.dumps(rows))
            return
        show_machines(rows, "UTC" if status is None else status[1], make_console())

    def _drain(self, rest: Sequence[str]) -> None:
        """Nothing new starts on the machine's GPUs, also on those that it has later; what runs goes on."""
        reason = rest[1] if len(rest) > 1 else ""
        gpus = self._machine(rest[0])["gpus"]
        self._change("POST", [DrainChange(uuid="", machine=rest[0], author=getpass.getuser(), reason=reason)])
        self._say(
            f"Nothing new starts on {rest[0]} ({_count(gpus)}), nor on GPUs that appear there later; what "
            "runs there goes on."
        )

    def _undrain(self, rest: Sequence[str]) -> None:
        """New servers start there again, also on GPUs that were drained one by one."""
        machine, uuids = self._machine(rest[0]), self._uuids(rest[0])
        drains = asyncio.run(self._drains())
        mine = [each for each in drains if each.machine == rest[0] or each.uuid in uuids]
        if not mine:
            raise BadOption(f"The machine {rest[0]} is not drained.")
        author = getpass.getuser()
        self._change(
            "DELETE",
            [DrainChange(uuid=each.uuid, machine=each.machine, author=author, reason="") for each in mine],
        )
        self._say(f"New servers start on {rest[0]} again ({_count(machine['gpus'])}).")

    async def _drains(self) -> tuple[DrainDocument, ...]:
        client = BrokerClient(self.settings().site.socket_path)
        try:
            return (await client.ask_all("/api/drains", DrainsDocument)).drains
        finally:
            await client.close()

    def _say(self, sentence: str) -> None:
        if not self.json:
            print(sentence)

    def _running(self) -> dict[str, Any]:
        """The broker's status. Raises BrokerUnavailable."""
        status = self._status()
        if status is None:
            raise BrokerUnavailable("The broker doesn't answer: this needs one that runs.")
        return status[0]

    def _machine(self, name: str) -> dict[str, Any]:
        """The machine with this name. Raises BrokerUnavailable, BadOption."""
        found = next((each for each in self._running()["machines"] if each["name"] == name), None)
        if found is None:
            raise BadOption(f"The broker knows no machine {name}: see `gpuspawner node list`.")
        return dict(found)

    def _uuids(self, name: str) -> set[str]:
        """Of the machine's devices, as far as they are known; a single machine has no name there."""
        return {each["uuid"] for each in self._running()["devices"] if each["node"] in (name, "")}

    def _change(self, method: str, changes: Sequence[DrainChange]) -> None:
        async def send() -> None:
            client = BrokerClient(self.settings().site.socket_path)
            try:
                for change in changes:
                    await client.tell(method, "/api/drains", change)
            finally:
                await client.close()

        asyncio.run(send())

    def _status(self) -> tuple[dict[str, Any], str] | None:
        """The running broker's status, and the site's time zone; None if no broker answers."""
        try:
            return asyncio.run(ask_status(self.settings().site.socket_path))
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
        unit = AgentUnit(f"{line.host}:{line.port}", self.machine, self._state_dir(), self.config_file)
        if RUNNING.is_dir():
            unit.install()
            self._say(f"Joined as {self.machine}. systemd runs the agent: systemctl status {UNIT}")
            return
        self._say(
            f"Joined as {self.machine}. systemd doesn't run here, so start the agent yourself, as root:\n"
            f"    GPUSPAWNER_STATE_DIR={self._state_dir()} {shlex.join(unit.command)}\n"
            f"Where systemd runs, this is its unit ({UNITS / UNIT}):\n\n{unit.text()}"
        )

    def _leave(self, rest: Sequence[str]) -> None:
        """This machine's key is deleted: it can't connect any more."""
        shutil.rmtree(self._identity().folder, ignore_errors=True)
        if not self.json:
            print("Left. On the broker's machine: gpuspawner node forget NAME")

    def _agent(self, rest: Sequence[str]) -> None:
        """Runs until SIGTERM."""
        config = [f"--config={self.config_file}"] if self.config_file else []
        self.exit_status = agent_process.main([f"--broker={rest[0]}", f"--name={self.machine}", *config])


def _unknown(name: str, answers: bool) -> dict[str, Any]:
    """A machine that has joined, and of which the broker says nothing."""
    state = "not known yet: ask again in some seconds" if answers else "no broker answers"
    counts = dict.fromkeys(("gpus", "in_service", "drained", "leases"))
    return {**asdict(MachineView(name, MachineState.UNUSED)), "state": state, **counts}


def _count(devices: int) -> str:
    return f"{devices} GPU{'' if devices == 1 else 's'}"
