"""The broker's process: its command line and settings, its lock, and its start and end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import uvloop
from traitlets import Bool, Float, TraitError, Unicode, default
from traitlets.config import Application
from traitlets.config.loader import Config

from ..config.idle import IdleRules
from ..config.loading import load_settings
from ..config.open_files import raise_limit
from ..config.site import GpuSite
from ..core.errors import ConfigError, Fault
from ..core.model import Tier
from ..core.quota import Quota
from ..node.docker_engine import DockerEngine
from ..node.docker_swarm import DockerSwarm
from ..node.opening import open_nodes
from ..node.remote.members import Members, membership_of
from .assembly.broker import Broker, open_broker
from .assembly.ground import BrokerSettings, Ground
from .identity import broker_id
from .keeper import EXIT_SETTINGS
from .leases.hub_api import HubApi
from .ledger import Ledger
from .lock import BrokerLock
from .observe.metrics import Metrics

SWITCH_SECONDS = 0.00005
"""So long a thread that computes (estimates of waits) keeps the interpreter from the loop each time that
an answer has to go on: with Python's 5 ms, one with five such steps takes 25 ms."""


class GpuBroker(Application):
    """Leases GPUs to the servers of JupyterHub; see the settings of GpuSite for what hub and broker share."""

    name = "gpuspawner-broker"
    description = "Leases GPUs to the servers of JupyterHub."
    classes = [GpuSite]  # noqa: RUF012 - traitlets reads it as a plain class attribute
    aliases = {"config": "GpuBroker.config_file"}  # noqa: RUF012
    flags = {  # noqa: RUF012
        "take-over": (
            {"GpuBroker": {"take_over": True}},
            "end the broker that runs on this state folder, and continue with its leases",
        )
    }

    config_file = Unicode(
        "",
        help="""
        The settings file: the hub's `jupyterhub_config.py`.

        Default: none; all settings have their defaults.
        Example: `python -m gpuspawner.broker --config /srv/jupyterhub/jupyterhub_config.py`
        """,
    ).tag(config=True)

    take_over = Bool(
        False,
        help="""
        End the broker that runs on this state folder (SIGTERM) and continue with its leases.

        Default: off, and a second broker refuses to start. For the hub-managed broker it is on, so that
        it starts even if an earlier hub was killed and its broker still runs.
        Example: `python -m gpuspawner.broker --take-over`
        """,
    ).tag(config=True)

    reconcile_seconds = Float(
        2.0,
        min=0.1,
        help="""
        Seconds between two comparisons of the ledger with Docker's containers.

        Default: 2, so that missed events are handled, and orphaned containers removed, within 5 s. Each
        comparison needs one listing of the leased containers from Docker.
        Example: `c.GpuBroker.reconcile_seconds = 1`
        """,
    ).tag(config=True)

    database_url = Unicode(
        help="""
        SQLAlchemy URL of the ledger's database. Don't use the hub's own database. Several brokers may share
        one PostgreSQL database (tested with 15; `pip install 'gpuspawner[postgresql]'`): `broker.id` in its
        state folder identifies each broker, and it changes only its own leases.

        Default: SQLite in `ledger.sqlite` in the state folder.
        Example: `c.GpuBroker.database_url = "postgresql+psycopg://gpuspawner@db/gpuspawner"`
        """,
    ).tag(config=True)

    agents_address = Unicode(
        help="""
        Where agents of other machines connect, "HOST:PORT", over TLS with certificates of the broker's own.

        Default: none: this broker has only its own machine. `gpuspawner node token` gives the line with which
        another machine joins.
        Example: `c.GpuBroker.agents_address = "10.0.0.1:8098"`
        """,
    ).tag(config=True)

    history_days = Float(
        400.0,
        min=1.0,
        help="""
        Days for which the ledger keeps closed leases and ended processes.

        Default: 400, enough for a yearly report. Older ones are deleted hourly in small steps; usage reports
        no longer include them.
        Example: `c.GpuBroker.history_days = 3650`
        """,
    ).tag(config=True)

    @default("database_url")
    def _database_url_default(self) -> str:
        return f"sqlite:///{self.state_dir / 'ledger.sqlite'}"

    @default("log_level")
    def _log_level_default(self) -> int:
        return logging.INFO

    @default("log_format")
    def _log_format_default(self) -> str:
        return "[%(levelname)1.1s %(asctime)s broker] %(message)s"

    site: GpuSite
    tiers: tuple[Tier, ...]
    quotas: tuple[Quota, ...]
    idle: IdleRules
    broker: Broker
    """What is at work, once it has started."""

    @property
    def state_dir(self) -> Path:
        """The state folder, absolute; it is also this broker's name in the labels of its containers."""
        return Path(self.site.state_dir).absolute()

    # ---- settings

    def initialize(self, argv: list[str] | None = None) -> None:
        """Reads command line and config file. Raises ConfigError for invalid settings."""
        try:
            self.parse_command_line(argv)
            command_line = Config(self.cli_config)
            if self.config_file:
                self.update_config(load_settings(Path(self.config_file).absolute()))
                self.update_config(command_line)
            self.site = GpuSite(parent=self)
            self.tiers = self.site.parsed_tiers()
            self.quotas = self.site.parsed_quotas()
            self.idle = self.site.parsed_idle()
        except TraitError as error:
            raise ConfigError(f"A setting can't be used: {error}") from error

    # ---- start and end

    async def run(self) -> None:
        """Runs until SIGTERM or SIGINT. Raises ConfigError or Fault if it can't start."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        _make_state_dir(self.state_dir)
        lock = BrokerLock(self.state_dir)
        await asyncio.to_thread(lock.acquire, take_over=self.take_over)
        try:
            await self._run_locked(stop)
        finally:
            lock.release()

    async def _run_locked(self, stop: asyncio.Event) -> None:
        owner = await asyncio.to_thread(broker_id, self.state_dir)
        ledger = Ledger(self.database_url, owner=owner, log=self.log)
        await ledger.open()
        try:
            await self._run_with(ledger, stop)
        finally:
            await ledger.close()

    async def _run_with(self, ledger: Ledger, stop: asyncio.Event) -> None:
        nodes = open_nodes(self.site, self.log)
        members = self._members()
        try:
            if members is not None:
                nodes = (*nodes, *await members.open(self.agents_address))
            self.broker = await open_broker(self._ground(ledger), nodes, members)
            await self.broker.run(stop)
        finally:
            for node in nodes:
                await node.close()
            if members is not None:
                await members.close()

    def _members(self) -> Members | None:
        """None without `agents_address`. Raises ConfigError if other machines have joined all the same.

        What runs there would count as gone.
        """
        if self.agents_address:
            return Members(self.state_dir, self.log)
        if names := membership_of(self.state_dir).names():
            raise ConfigError(
                f"Other machines have joined ({', '.join(names)}), and c.GpuBroker.agents_address isn't set: "
                "set it, or run `gpuspawner node forget NAME` for each"
            )
        return None

    def _ground(self, ledger: Ledger) -> Ground:
        settings = BrokerSettings(
            site=self.site,
            tiers=self.tiers,
            idle=self.idle,
            config=self.config,
            config_file=self.config_file,
            reconcile_seconds=self.reconcile_seconds,
            history_days=self.history_days,
        )
        metrics = Metrics(tier.name for tier in self.tiers if tier.needs_gpu)
        ledger.on_fault = metrics.ledger_failed
        engine = DockerEngine(log=self.log)
        swarm = DockerSwarm(engine) if self.site.engine == "swarm" else None
        return Ground(settings, ledger, engine, metrics, _hub_api(os.environ), self.log, swarm)


def _hub_api(environment: Mapping[str, str]) -> HubApi | None:
    """The hub's API; None if no hub started this process."""
    known = "JUPYTERHUB_API_TOKEN" in environment and "JUPYTERHUB_API_URL" in environment
    return HubApi(environment) if known else None


def _make_state_dir(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"The state folder {path} can't be created: {error.strerror}. Set another one with "
            "c.GpuSite.state_dir or GPUSPAWNER_STATE_DIR, or fix the permissions"
        ) from error


def main(argv: list[str] | None = None) -> int:
    """Runs a broker. If it can't start, it prints why and exits with EXIT_SETTINGS, or with 1 for a fault."""
    broker = GpuBroker()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        broker.initialize(argv)
        raise_limit(broker.log)
        uvloop.run(broker.run())
    except (ConfigError, Fault) as error:
        print(f"gpuspawner broker: {error}", file=sys.stderr)
        return EXIT_SETTINGS if isinstance(error, ConfigError) else 1
    return 0
