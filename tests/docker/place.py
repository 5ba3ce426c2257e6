"""A state folder with its broker, its Docker proxy and its hub's client: what a test works with."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import pytest
from gpuspawner.core.errors import BrokerUnavailable
from gpuspawner.core.labels import LEASE, broker_label
from gpuspawner.protocol.client import BrokerClient

from tests.docker.faulty_docker import FaultyDocker
from tests.docker.life import Server
from tests.soon import SOON_SECONDS, until

ON_BOTH = pytest.mark.parametrize(
    "place", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True
)
"""For a test that is repeated with a ledger on PostgreSQL, in the slow rest."""


class Zygote:
    """See zygote.py."""

    def __init__(self) -> None:
        script = str(Path(__file__).with_name("zygote.py"))
        pipe = subprocess.PIPE
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, script], stdin=pipe, stdout=pipe, text=True, env=environment
        )
        self.children: list[int] = []

    def start(self, order: dict[str, Any]) -> int:
        """Starts a child and returns its pid."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        pid = int(self._process.stdout.readline())
        self.children.append(pid)
        return pid

    def kill_children(self) -> None:
        """Kills what a test left running."""
        for pid in self.children:
            kill(pid)
        self.children.clear()

    def close(self) -> None:
        """Ends the zygote."""
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """A signal to a child; one that is gone is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def is_alive(pid: int) -> bool:
    """Whether the child still runs (the zygote doesn't keep zombies)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@dataclass
class Place:
    """A state folder with its broker, its Docker proxy and its hub's client."""

    folder: Path
    zygote: Zygote
    engine: docker.APIClient
    proxy: FaultyDocker
    client: BrokerClient
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    extra_argv: list[str] = field(default_factory=lambda: ["--take-over"])
    broker_pid: int = 0
    nvml: str = ""
    """The script of the GPUs; empty for simulated ones."""
    env: dict[str, str] = field(default_factory=dict)
    database_url: str = ""
    """The ledger's; empty for SQLite in the state folder."""
    warnings: tuple[float, float] | None = None
    """How many seconds before its end a server is warned; None: as users know it."""

    @property
    def socket(self) -> Path:
        return self.folder / "broker.sock"

    @property
    def log(self) -> str:
        path = self.folder / "broker.log"
        return path.read_text() if path.exists() else ""

    def launch(self, commit: tuple[int | str, str] | None = None) -> int:
        """Starts a broker, which dies before or after the commit of that number or name, if one is given."""
        config = self.folder / "config.py"
        lines = [
            f"c.{kind}.{key} = {value!r}"
            for kind, all_ in self.settings.items()
            for key, value in all_.items()
        ]
        if self.database_url:
            lines.append(f"c.GpuBroker.database_url = {self.database_url!r}")
        config.write_text("\n".join(lines))
        self.broker_pid = self.zygote.start(
            {
                "kind": "broker",
                "argv": ["--config", str(config), *self.extra_argv],
                "commit": commit,
                "log": str(self.folder / "broker.log"),
                "env": {"GPUSPAWNER_STATE_DIR": str(self.folder), "DOCKER_HOST": self.proxy.host, **self.env},
                "nvml": self.nvml,
                "warnings": self.warnings,
            }
        )
        return self.broker_pid

    async def start(self, commit: tuple[int | str, str] | None = None) -> int:
        """Starts a broker and waits until it answers (or dies at its commit)."""
        pid = self.launch(commit)
        await until(
            lambda: not is_alive(pid) or f"broker answers on {self.socket}" in self.log[self._mark :], 30
        )
        return pid

    _mark: int = 0

    async def restart(self) -> int:
        """A new broker after the last one died."""
        self._mark = len(self.log)
        return await self.start()

    async def kill_broker(self) -> None:
        """kill -9."""
        kill(self.broker_pid)
        await until(lambda: not is_alive(self.broker_pid))

    async def keep_restarting(self) -> None:
        """Restarts the broker whenever it dies; runs until cancelled."""
        while True:
            if not is_alive(self.broker_pid):
                await self.restart()
            await asyncio.sleep(0.02)

    def server(self, user: str = "anna", **more: Any) -> Server:
        """A server of a user, whose container is named after place and user."""
        return Server(self.client, self.engine, user, self.name_of(user), **more)

    def name_of(self, user: str) -> str:
        return f"gpuspawner-test-{self.folder.name}-{user}"

    def launch_hub(self, user: str, kill_at: tuple[str, str] | None = None) -> tuple[int, str]:
        """Starts a hub of one user as a process; returns its pid and the lease's id."""
        lease_id = uuid.uuid4().hex
        hub = {"kill": kill_at, "socket": str(self.socket), "docker_host": self.proxy.host, "user": user,
               "name": self.name_of(user), "lease_id": lease_id}  # fmt: skip
        log = str(self.folder / "hub.log")
        return self.zygote.start({"kind": "hub", "hub": hub, "log": log}), lease_id

    def containers(self) -> dict[str, str]:
        """This place's containers: the name's last part and the state."""
        found = self.engine.containers(
            all=True,
            filters={
                "label": [LEASE, *(f"{key}={value}" for key, value in broker_label(str(self.folder)).items())]
            },
        )
        return {item["Names"][0].rsplit("-", 1)[1]: item["State"] for item in found}

    async def leases(self) -> dict[str, tuple[str, int]]:
        """The broker's leases: user → state and number of devices that say they are theirs."""
        status = await self.client.status()
        held = [device["lease_id"] for device in status["devices"]]
        assert len({lease["id"] for lease in status["leases"]}) == len(status["leases"])
        users = [lease["user"] for lease in status["leases"]]
        assert sorted(users) == sorted(set(users)), "a server has two leases"
        return {lease["user"]: (lease["state"], held.count(lease["id"])) for lease in status["leases"]}

    async def settled(self, *running: str, seconds: float = SOON_SECONDS) -> None:
        """Waits until exactly these users have a running container, each with its lease and device."""
        containers = dict.fromkeys(running, "running")
        leases = dict.fromkeys(running, ("running", 1))

        async def agree() -> bool:
            try:
                return self.containers() == containers and await self.leases() == leases
            except BrokerUnavailable:
                return False

        try:
            await until(agree, seconds)
        except AssertionError:
            now = self.containers(), await self.leases() if is_alive(self.broker_pid) else "no broker"
            raise AssertionError(f"wanted {running} to run, and nothing else; there are {now}") from None
