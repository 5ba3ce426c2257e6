"""The labs' network: what Docker and this machine have of it, and whether it leads to the hub."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from traitlets.config import Config

from ...core.errors import ConfigError, EngineFault
from ...core.finding import Finding, Level
from ...core.labels import HUB
from ...hub.check import spawner_of
from ...hub.docker import DockerEngine
from ...hub.metadata import MetadataWall
from ...hub.network import DOCKERS_OWN, gateway_of, has_address, look_at
from .facts import Facts, MetadataFacts, NetworkFacts

_SUBJECT = "Labs' network"
_METADATA, _METADATA_SECONDS = "169.254.169.254", 0.5


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
        strangers = strangers_of(engine.call_here("containers", all=True), spawner.prefix)
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
        running=found.running if found else (),
        strangers=strangers,
        metadata=read_metadata(MetadataWall(spawner.subnet), block=spawner.block_metadata),
    )


def strangers_of(containers: Iterable[Mapping[str, Any]], prefix: str) -> tuple[str, ...]:
    """The names of labs among Docker's containers that have no label of any hub. Pure."""
    found = []
    for container in containers:
        names = [str(name).lstrip("/") for name in container.get("Names") or ()]
        if HUB not in (container.get("Labels") or {}):
            found += [name for name in names if name.startswith((f"{prefix}-", "jupyter-"))]
    return tuple(sorted(found))


def read_metadata(wall: MetadataWall, *, block: bool) -> MetadataFacts:
    """Whether a metadata service answers this machine, and which rules of the wall are missing. Blocks."""
    missing = wall.missing()
    try:
        socket.create_connection((_METADATA, 80), _METADATA_SECONDS).close()
        answers = True
    except OSError:
        answers = False
    return MetadataFacts(answers, block, None if missing is None else len(missing))


def network_findings(facts: Facts) -> Iterator[Finding]:
    """Whether hub and labs reach each other. Pure."""
    network = facts.network
    if network is None or network.error:
        return  # without Docker, that is told already
    if network.metadata is not None:
        yield metadata_finding(network.metadata, _no_hub(facts))
    if network.strangers:
        yield _strangers(network.strangers)
    make = (
        "Run `python -m gpuspawner.tools.make_network --config FILE` with the hub's config file; the hub's "
        "service `network` does it within seconds"
    )
    if not network.present:
        level = Level.NOTE if _no_hub(facts) else Level.PROBLEM
        lost = ", so nobody reaches the hub, and no server starts" if network.hub_listens else ""
        yield Finding(level, _SUBJECT, f"Docker has no network {network.name!r}{lost}", make)
    elif network.subnet not in network.subnets:
        yield Finding(
            Level.NOTE,
            _SUBJECT,
            f"{network.name!r} has the addresses {', '.join(network.subnets)}, not {network.subnet}",
            _other_subnet(network),
        )
    elif network.hub_listens and not network.address_here:
        yield Finding(
            Level.PROBLEM,
            _SUBJECT,
            f"the hub's address {gateway_of(network.subnet)} isn't on this machine: nobody reaches the hub",
            f"{_stop(network)} `docker network rm {network.name}`: it is created again",
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


def _no_hub(facts: Facts) -> bool:
    """Whether no hub runs, by its broker: then it is no problem that what the hub sets up is missing."""
    return facts.broker is None or bool(facts.broker.error)


def _strangers(names: tuple[str, ...]) -> Finding:
    """Containers that DockerSpawner has left, or others of such names."""
    more = len(names) - 1
    who = f"{names[0]} and {more} more have names" if more else f"{names[0]} has the name"
    return Finding(
        Level.NOTE,
        "Other containers",
        f"{who} of labs, but no label of a hub, as containers of DockerSpawner: nobody here stops them, "
        "and a server with such a name can't start",
        f"Save what is in them, then `docker rm -f {' '.join(names)}`",
    )


_BUILD = "Run `python -m gpuspawner.tools.block_metadata --config FILE` as root, after each boot"


def metadata_finding(facts: MetadataFacts, no_hub: bool, remedy: str = _BUILD) -> Finding:
    """Whether labs get the keys of a cloud's machine."""
    if not facts.answers:
        return Finding(Level.OK, "Metadata service", f"none answers this machine at {_METADATA}")
    if not facts.block:
        text = f"labs may reach {_METADATA}, as c.GpuDockerSpawner.block_metadata = False allows"
        return Finding(
            Level.NOTE, "Metadata service", text, "Remove the setting, if this is no longer intended"
        )
    if facts.rules_missing == 0:
        return Finding(Level.OK, "Metadata service", f"labs don't reach {_METADATA}")
    if facts.rules_missing is None:
        text = f"whether labs reach {_METADATA} is not known: this user can't read the firewall"
        return Finding(Level.NOTE, "Metadata service", text, remedy)
    keys = f"{_METADATA}, which gives them the keys of this machine"
    if no_hub:
        text = f"no rule of the firewall keeps labs from {keys}; a hub that runs as root adds the rules"
        return Finding(
            Level.NOTE,
            "Metadata service",
            text,
            f"If the hub doesn't run as root: {remedy[0].lower()}{remedy[1:]}",
        )
    return Finding(Level.PROBLEM, "Metadata service", f"labs reach {keys}", remedy)


def _other_subnet(network: NetworkFacts) -> str:
    """What to do about a network of the right name with other addresses, which is probably another hub's."""
    started = (
        f"The hub was probably started with GPUSPAWNER_SUBNET={network.subnets[0]}: set it "
        "(c.GpuDockerSpawner.subnet) for this command, too"
        if network.subnets
        else "Nothing, if the network is your own"
    )
    own = "if the network belongs to another hub, give this hub a GPUSPAWNER_NAME of its own"
    if network.running:
        return f"{started}; {own}. Don't remove it: {_runs(network)} in it"
    return f"{started}; {own}; if nobody needs it, `docker network rm {network.name}`"


def _stop(network: NetworkFacts) -> str:
    return f"Stop its containers ({', '.join(network.running)}), then run" if network.running else "Run"


def _runs(network: NetworkFacts) -> str:
    """Who is in the network, with the verb: "lab-ada runs", "lab-ada and 11 others run"."""
    first, others = network.running[0], len(network.running) - 1
    if not others:
        return f"{first} runs"
    return f"{first} and {others} other{'s' if others > 1 else ''} run"
