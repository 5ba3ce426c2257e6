"""Keeps the labs' own Docker network while the hub runs.

`python -m gpuspawner.tools.keep_network --config FILE`

The hub listens on the host's address in that network. Docker takes both away as soon as nothing runs in the
network and somebody calls `docker network rm` or `docker system prune`. From then on nobody reaches the hub,
so no start of a server can repair it. The hub's service `network` does. It keeps the labs from the cloud's
metadata service, too, if it may change the firewall.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ..core.errors import ConfigError, EngineFault
from ..hub.docker import DockerEngine
from ..hub.metadata import MetadataWall, Run, may_build, run_program, sweep
from ..hub.network import (
    DOCKERS_OWN,
    ensure_network,
    gateway_of,
    has_address,
    look_at,
    remove_network,
    subnets_of_all,
)
from ..protocol.call import Call
from .doctor.swarm_network import wall_of
from .make_network import spawner_of_file

LOG = logging.getLogger("gpuspawner.tools.keep_network")
LOOK_SECONDS = 0.25
"""How often it checks whether the address is on this machine. This asks the kernel, not Docker."""
ASK_SECONDS = 5.0
"""How often it asks Docker in any case: a network without its address is no network for labs."""
SHIELD_SECONDS = 600.0
"""How often the rules for labs of a Swarm are looked for."""
RETRY_SECONDS = 2.0
"""The pause after a round that failed."""


class NetworkKeeper:
    """Creates the labs' network again if it was removed, and logs it. `look` blocks on Docker.

    `wall` None: the labs may reach the metadata service, or somebody else has to keep them from it.
    """

    def __init__(
        self,
        call: Call,
        name: str,
        subnet: str,
        has_address: Callable[[str], bool] = has_address,
        wall: MetadataWall | None = None,
    ) -> None:
        self._wall = wall
        self._call = call
        self._name = name
        self._subnet = subnet
        self._address = gateway_of(subnet)
        self._has_address = has_address
        self._asked = -ASK_SECONDS
        self._told = ""

    def look(self, now: float) -> float:
        """Repairs what is missing. Returns the pause until the next round; `now` is in monotonic seconds."""
        if self._has_address(self._address) and now - self._asked < ASK_SECONDS:
            return LOOK_SECONDS
        try:
            self._repair()
        except EngineFault as fault:
            self._tell(logging.WARNING, f"Docker doesn't say whether the network exists, retrying: {fault}")
            return RETRY_SECONDS
        except ConfigError as error:
            self._tell(logging.ERROR, f"Servers can't start, and may not reach the hub: {error}")
            return RETRY_SECONDS
        self._asked = now
        self._build_wall()
        if self._has_address(self._address):
            self._told = ""
            return LOOK_SECONDS
        self._tell(
            logging.ERROR,
            f"Docker has the network {self._name!r}, but its address {self._address} isn't on this machine, "
            f"so nobody reaches a hub that listens there: {self._remedy()}, and it is "
            "created again. If Docker runs on another machine, remove the service `network` from "
            "c.JupyterHub.services",
        )
        return RETRY_SECONDS

    def end(self) -> None:
        """The hub ends: without a lab in the network, nobody needs the rules of the firewall any more."""
        if self._wall is None:
            return
        try:
            seen = look_at(self._call, self._name)
        except EngineFault:
            return  # a lab may run
        if seen is None or not seen.running:
            self._wall.remove()

    def _remedy(self) -> str:
        """How to remove the network, with its containers named if Docker tells them."""
        try:
            seen = look_at(self._call, self._name)
        except EngineFault:
            seen = None
        return remove_network(self._name, seen.running if seen else ())

    def _build_wall(self) -> None:
        """Somebody may have emptied the firewall's rules, so they are looked for each time."""
        if self._wall is None:
            return
        try:
            added = self._wall.build()
        except EngineFault as fault:
            LOG.warning(
                "Labs may reach the cloud's metadata service; 'gpuspawner doctor' says more: %s", fault
            )
            self._wall = None  # said once
            return
        if added:
            LOG.info(
                "Labs of %s don't reach the cloud's metadata service: %d rules added", self._subnet, added
            )

    def _repair(self) -> None:
        if look_at(self._call, self._name) is not None:
            ensure_network(self._call, self._name, self._subnet)  # it may be another one of that name
            return
        ensure_network(self._call, self._name, self._subnet)
        LOG.warning(
            "The labs' network %s was removed (docker network rm, or a prune), and with it the hub's address "
            "%s: both are back. 'docker system prune' and 'docker network prune' keep it with "
            '--filter "label!=gpuspawner.network"',
            self._name,
            self._address,
        )

    def _tell(self, level: int, text: str) -> None:
        """Logs it once, not every round."""
        if text != self._told:
            LOG.log(level, "%s", text)
        self._told = text


class SwarmShield:
    """Keeps labs that are services of a Swarm from this machine's cloud keys. `look` blocks on Docker."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._next = 0.0
        self._told = ""

    def look(self, now: float) -> None:
        """Adds missing rules of the firewall, now and then; `now` is in monotonic seconds."""
        if now < self._next:
            return
        self._next = now + SHIELD_SECONDS
        try:
            wall = wall_of(self._call)
            added = wall.build() if wall is not None else 0
        except EngineFault as fault:
            if str(fault) != self._told:
                LOG.warning("Labs of the Swarm may reach the cloud's metadata service: %s", fault)
            self._told = str(fault)
            return
        if added and wall is not None:
            LOG.info(
                "Labs of %s don't reach the cloud's metadata service: %d rules added", wall.subnet, added
            )


def sweep_rules(call: Call, has_address: Callable[[str], bool] = has_address, run: Run = run_program) -> None:
    """Takes back the firewall's rules of labs' networks that were removed, of this hub and of others.

    A subnet whose first address is on this machine belongs to a network of another Docker Engine.
    """
    try:
        known = subnets_of_all(call)
    except EngineFault:
        return  # any network may exist
    gone = sweep(lambda subnet: subnet in known or has_address(gateway_of(subnet)), run)
    if gone:
        LOG.info("Removed the firewall's rules for networks that don't exist any more: %s", ", ".join(gone))


def keep(config_file: Path) -> None:
    """Keeps the network that `config_file` names until the parent process ends. Raises ConfigError."""
    parent = os.getppid()
    if hub_has_ended(parent, os.environ):
        return
    spawner = spawner_of_file(config_file)
    if spawner.network_name in DOCKERS_OWN:
        LOG.info("The network %s is Docker's own: there is nothing to keep", spawner.network_name)
        signal.pause()
    engine = DockerEngine(spawner.client_kwargs, spawner.tls_config)
    wall = MetadataWall(spawner.subnet) if spawner.block_metadata and may_build() else None
    keeper = NetworkKeeper(engine.call_here, spawner.network_name, spawner.subnet, wall=wall)
    if wall is not None:
        sweep_rules(engine.call_here)
    shield = SwarmShield(engine.call_here) if wall is not None and spawner.site.engine == "swarm" else None
    try:
        while os.getppid() == parent:
            if shield is not None:
                shield.look(time.monotonic())
            time.sleep(keeper.look(time.monotonic()))
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # a second one must not cut this short
            signal.signal(number, signal.SIG_IGN)
        keeper.end()
        if wall is not None:
            sweep_rules(engine.call_here)


def hub_has_ended(parent: int, environment: Mapping[str, str], init: Path = Path("/proc/1/cmdline")) -> bool:
    """Whether the hub that started this process ended before it could look for its parent.

    Then init is the parent. In a container the hub itself may be process 1.
    """
    if parent != 1 or "JUPYTERHUB_SERVICE_NAME" not in environment:
        return False
    try:
        return b"jupyterhub" not in init.read_bytes()
    except OSError:
        return False


def main(arguments: list[str] | None = None) -> int:
    """The command. Runs until the process that started it ends, or until a signal."""
    parser = argparse.ArgumentParser(prog="python -m gpuspawner.tools.keep_network", description=keep.__doc__)
    parser.add_argument("--config", type=Path, default=Path("jupyterhub_config.py"), help="the hub's own")
    options = parser.parse_args(arguments)
    # The hub ends services with SIGINT; a shell in the background hands it down as ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="[%(levelname).1s network] %(message)s")
    try:
        keep(options.config)
    except ConfigError as error:
        LOG.error("The labs' network isn't watched: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
