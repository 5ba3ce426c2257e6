"""The labs' network: what Docker and this machine have of it, and whether it leads to the hub."""

from __future__ import annotations

from collections.abc import Iterator

from traitlets.config import Config

from ...core.errors import ConfigError, EngineFault
from ...hub.check import spawner_of
from ...hub.docker import DockerEngine
from ...hub.network import DOCKERS_OWN, gateway_of, has_address, look_at
from .facts import Facts, NetworkFacts
from .finding import Finding, Level

_SUBJECT = "Labs' network"


def read_network(config: Config) -> NetworkFacts | None:
    """The network that the hub's settings name; None: unusable, or Docker's own. Blocks."""
    try:
        spawner = spawner_of(config)
    except ConfigError:
        return None  # the hub says it, and doesn't start
    name, address = spawner.network_name, gateway_of(spawner.subnet)
    if name in DOCKERS_OWN:
        return None
    hub_listens = config.get("JupyterHub", Config()).get("hub_ip") == address
    engine = DockerEngine(spawner.client_kwargs, spawner.tls_config)
    try:
        found = look_at(engine.call_here, name)
    except EngineFault as fault:
        return NetworkFacts(name, spawner.subnet, error=str(fault))
    finally:
        engine.close()
    return NetworkFacts(
        name,
        spawner.subnet,
        present=found is not None,
        subnets=found.subnets if found else (),
        isolated=found.isolated if found else True,
        hub_listens=hub_listens,
        address_here=has_address(address),
    )


def network_findings(facts: Facts) -> Iterator[Finding]:
    """Whether hub and labs reach each other. Pure."""
    network = facts.network
    if network is None or network.error:
        return  # without Docker, that is told already
    make = (
        "Run `python -m gpuspawner.tools.make_network --config FILE` with the hub's config file; the hub's "
        "service `network` does it within seconds"
    )
    if not network.present:
        never = facts.broker is None or bool(facts.broker.error)
        level = Level.NOTE if never else Level.PROBLEM
        lost = ", so nobody reaches the hub, and no server starts" if network.hub_listens else ""
        yield Finding(level, _SUBJECT, f"Docker has no network {network.name!r}{lost}", make)
    elif network.subnet not in network.subnets:
        yield Finding(
            Level.NOTE,
            _SUBJECT,
            f"{network.name!r} has the addresses {', '.join(network.subnets)}, not {network.subnet}",
            f"Nothing, if it is your own; else `docker network rm {network.name}`, or set "
            "c.GpuDockerSpawner.subnet",
        )
    elif network.hub_listens and not network.address_here:
        yield Finding(
            Level.PROBLEM,
            _SUBJECT,
            f"the hub's address {gateway_of(network.subnet)} isn't on this machine: nobody reaches the hub",
            f"Run `docker network rm {network.name}`: it is created again",
        )
    elif not network.isolated:
        yield Finding(
            Level.NOTE,
            _SUBJECT,
            f"in {network.name!r}, {network.subnet}, labs reach each other",
            f"Stop all servers, then `docker network rm {network.name}`: it is created again without that",
        )
    else:
        yield Finding(Level.OK, _SUBJECT, f"{network.name!r}, {network.subnet}; no lab reaches another")
