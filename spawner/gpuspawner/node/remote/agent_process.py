"""`python -m gpuspawner.node.remote.agent_process --broker HOST:PORT`: the agent of this machine."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from functools import partial
from pathlib import Path

import uvloop
from traitlets import Bool, Unicode, default
from traitlets.config import Application

from ...config.site import GpuSite
from ...core.errors import ConfigError, Fault
from ..docker_engine import DockerEngine
from ..docker_homes import DockerHomes
from ..local import open_node
from .agent import Agent, Hands
from .certificates import Identity
from .joining import connect
from .shielding import shield_labs

IDENTITY_FOLDER = "agent"


class GpuAgent(Application):
    """Keeps the GPUs of this machine as a broker elsewhere says."""

    name = "gpuspawner-agent"
    classes = [GpuSite]  # noqa: RUF012
    aliases = {"broker": "GpuAgent.broker", "name": "GpuAgent.machine", "config": "GpuAgent.config_file"}  # noqa: RUF012

    broker = Unicode(
        help="""
        Where the broker's door for agents is.

        Default: none; it must be given. Example: `--broker=10.0.0.1:8098`
        """
    ).tag(config=True)
    machine = Unicode(
        help="""
        The name of this machine, as the broker and its pages call it.

        Default: as the machine calls itself. Example: `--name=gpu-b`
        """
    ).tag(config=True)
    config_file = Unicode(
        help="""
        The file with the settings: those of `GpuSite` about this machine count.

        Default: none; all settings have their defaults. Example: `--config=/etc/gpuspawner/config.py`
        """
    ).tag(config=True)

    block_metadata = Bool(
        True,
        help="""
        Keep labs of a Swarm on this machine from the cloud's metadata service (169.254.169.254), which gives
        them the machine's own keys. Rules of the firewall do it, for Docker's network `docker_gwbridge`.

        Default: on; it needs root. Example: `c.GpuAgent.block_metadata = False`
        """,
    ).tag(config=True)

    @default("machine")
    def _machine_default(self) -> str:
        return socket.gethostname()

    @default("log_level")
    def _log_level_default(self) -> int:
        return logging.INFO

    async def run(self) -> None:
        """Runs until SIGTERM. Raises ConfigError or Fault."""
        site = GpuSite(parent=self)
        folder = Path(site.state_dir)
        identity = Identity(folder / IDENTITY_FOLDER)
        host, _, port = self.broker.rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigError(f"--broker={self.broker} isn't an address: give it as HOST:PORT")
        connecting = partial(connect, host, int(port), identity)
        engine = DockerEngine(log=self.log)
        node = open_node(site, self.log, self.machine, joined=True)
        homes = DockerHomes(engine, str(folder))
        hands = Hands(node, engine, homes, folder, self.config_file)
        shielding = asyncio.create_task(shield_labs(engine, self.log)) if self.block_metadata else None
        running = asyncio.create_task(Agent(self.machine, hands, connecting, self.log).run())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, running.cancel)
        try:
            await running
        except asyncio.CancelledError:
            self.log.info("The agent ends; labs, daemons and compute modes stay as they are")
        finally:
            if shielding is not None:
                shielding.cancel()
                await asyncio.gather(shielding, return_exceptions=True)
            homes.close()
            await engine.close()


def main(argv: list[str] | None = None) -> int:
    """Runs the agent. If it can't start, it prints why and exits with 1."""
    agent = GpuAgent()
    try:
        agent.initialize(argv)
        if agent.config_file:
            agent.load_config_file(agent.config_file)
        uvloop.run(agent.run())
    except (ConfigError, Fault) as error:
        print(f"gpuspawner agent: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
