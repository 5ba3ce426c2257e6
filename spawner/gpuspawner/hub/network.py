"""The labs' own Docker network: creates and repairs it, and picks each server's address.

The functions take `call`: it calls a method of docker-py's APIClient, blocks, and raises EngineFault.
"""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_network
from typing import Any

from ..core.errors import ConfigError, EngineFault
from ..protocol.call import Call, or_none
from .docker_answers import address_is_taken, network_is_missing

DOCKERS_OWN = frozenset({"bridge", "host", "none", "default"})
"""Networks that always exist."""


def network_settings(name: str, subnet: str) -> dict[str, Any]:
    """Arguments of docker-py's `create_network` for the labs' own network.

    Containers on it reach the internet and the hub, but not each other. The hub listens on the bridge's own
    address, the first of the subnet. Raises ConfigError for a subnet that can't be used.
    """
    return {
        "name": name,
        "driver": "bridge",
        "options": {
            "com.docker.network.bridge.enable_icc": "false",
            "com.docker.network.bridge.enable_ip_masquerade": "true",
        },
        "ipam": {
            "Driver": "default",
            "Config": [{"Subnet": str(_subnet(subnet)), "Gateway": gateway_of(subnet)}],
        },
        "labels": {"gpuspawner.network": name},
    }


def gateway_of(subnet: str) -> str:
    """The first address of the subnet: the host's own on the labs' bridge. Raises ConfigError."""
    return str(_subnet(subnet)[1])


def has_address(address: str) -> bool:
    """Whether this machine has the address: whether a socket can be bound to it (any free port)."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


@dataclass(frozen=True, slots=True)
class NetworkSeen:
    """What Docker has under the name of the labs' network."""

    subnets: tuple[str, ...]
    isolated: bool
    """Whether its containers can't reach each other."""
    running: tuple[str, ...]
    """The names of the running containers in it."""


def look_at(call: Call, name: str) -> NetworkSeen | None:
    """Docker's network of that name; None if there is none. Raises EngineFault when Docker doesn't say."""
    found = or_none(call, "inspect_network", name)
    return None if found is None else _seen(found)


def _seen(found: dict[str, Any]) -> NetworkSeen:
    subnets = tuple(str(entry["Subnet"]) for entry in _ipam_of(found) if entry.get("Subnet"))
    options = found.get("Options") or {}
    running = sorted(str(each.get("Name", "")) for each in (found.get("Containers") or {}).values())
    isolated = options.get("com.docker.network.bridge.enable_icc") == "false"
    return NetworkSeen(subnets, isolated, tuple(running))


def subnets_of_all(call: Call) -> frozenset[str]:
    """The subnets of all Docker's networks. Raises EngineFault."""
    return frozenset(
        str(entry["Subnet"])
        for network in call("networks")
        for entry in _ipam_of(network)
        if entry.get("Subnet")
    )


def remove_network(name: str, running: Collection[str]) -> str:
    """How a network is removed: "run 'docker network rm labs'", after its containers were stopped."""
    stop = f"stop its containers ({', '.join(running)}), then " if running else ""
    return f"{stop}run 'docker network rm {name}'"


def ensure_network(call: Call, name: str, subnet: str) -> str:
    """Creates the labs' network if there is none; returns the host's address on it.

    Raises ConfigError if a network of that name has another subnet, or if Docker refuses the subnet.
    """
    wanted = network_settings(name, subnet)
    config = wanted["ipam"]["Config"][0]
    present = or_none(call, "inspect_network", name)
    if present is None:
        try:
            call("create_network", **wanted, check_duplicate=True)
        except EngineFault as fault:
            if fault.status is None:
                raise
            if fault.status != 409:  # another process has just created it
                raise ConfigError(
                    f"Docker can't create the network {name!r} with {subnet}: {fault}. "
                    "Set another one (GPUSPAWNER_SUBNET, c.GpuDockerSpawner.subnet)"
                ) from fault
        present = call("inspect_network", name)
    seen = _seen(present)
    if config["Subnet"] not in seen.subnets:
        raise ConfigError(
            f"the network {name!r} has the addresses {', '.join(seen.subnets)}, not {config['Subnet']}: set "
            f"GPUSPAWNER_SUBNET to them, or {remove_network(name, seen.running)}"
        )
    return str(config["Gateway"])


class Addresses:
    """Gives out a subnet's addresses one after the other, so a freed address is reused last.

    Docker always gives the lowest free address, so the next server would get the address of a server that has
    just ended. Until the hub notices that end, its proxy would send the former user's requests, with their
    token, to the new server. Thread-safe. Source: seen with JupyterHub 6.1 and Docker 20.10.
    """

    def __init__(self, subnet: str) -> None:
        self._network = _subnet(subnet)
        self._count = (
            self._network.num_addresses - 3
        )  # without the network's, the host's and the broadcast address
        self._turn = random.randrange(self._count)
        self._lock = threading.Lock()

    def next(self, used: Collection[str]) -> str | None:
        """The next address that isn't in `used`; None if all are."""
        with self._lock:
            for _ in range(self._count):
                address = str(self._network[2 + self._turn])
                self._turn = (self._turn + 1) % self._count
                if address not in used:
                    return address
        return None


_turns: dict[tuple[str, str], Addresses] = {}


def free_address(call: Call, name: str, subnet: str) -> str | None:
    """An address for the next server; None if Docker must choose one.

    Docker chooses in a network of the site's own, where it may refuse a requested address; in a network that
    doesn't exist; and if Docker manages only a range of the subnet: other machines may use the other
    addresses. Raises ConfigError.
    """
    network = None if name in DOCKERS_OWN else or_none(call, "inspect_network", name)
    if network is None:
        return None
    wanted = str(_subnet(subnet))
    ranges = [entry.get("IPRange") for entry in _ipam_of(network) if entry.get("Subnet") == wanted]
    if not ranges or any(ranges):
        return None
    used = {str(each["IPv4Address"]).partition("/")[0] for each in (network["Containers"] or {}).values()}
    return _turns.setdefault((name, subnet), Addresses(subnet)).next(used)


class Reach(StrEnum):
    """How hub and proxy reach a server."""

    ADDRESS = "its address on the network"
    HOSTNAME = "its container's name"
    PUBLISHED = "a port of the host"


@dataclass(frozen=True, slots=True)
class LabNetwork:
    """The network of the settings, and how a server on it is reached."""

    name: str
    subnet: str
    port: int
    reach: Reach = Reach.ADDRESS

    def endpoint(self, call: Call) -> dict[str, Any] | None:
        """The `networking_config` of a container's creation; None as in `free_address`."""
        address = free_address(call, self.name, self.subnet)
        if address is None:
            return None
        return {"EndpointsConfig": {self.name: {"IPAMConfig": {"IPv4Address": address}}}}

    def reconnect(self, call: Call, container_id: str, address: str | None) -> None:
        """Connects a container that was cut from the network, at the address that it had; None: at any.

        The proxy's route leads to that address, so the server is reached as before. Raises EngineFault.
        """
        call("connect_container_to_network", container_id, self.name, ipv4_address=address)

    def repair(self, call: Call, fault: EngineFault, container_id: str) -> bool:
        """Repairs the network after a failed start; returns whether it fixed the cause of `fault`.

        It creates a missing network (somebody pruned it), and takes the next address if Docker uses this one
        for another container. Raises ConfigError, EngineFault.
        """
        if address_is_taken(fault):
            address = free_address(call, self.name, self.subnet)
            call("disconnect_container_from_network", container_id, self.name)
            call("connect_container_to_network", container_id, self.name, ipv4_address=address)
            return True
        if not network_is_missing(fault, self.name) or self.name in DOCKERS_OWN:
            return False
        ensure_network(call, self.name, self.subnet)
        return True

    def address_of(self, container: dict[str, Any]) -> tuple[str, int]:
        """The server's address, from Docker's document. Raises ConfigError if it isn't on the network."""
        if self.reach is Reach.HOSTNAME:
            return str(container["Name"]).lstrip("/"), self.port
        settings = container["NetworkSettings"]
        if self.reach is Reach.ADDRESS:
            network = (settings.get("Networks") or {}).get(self.name) or {}
            if not network.get("IPAddress"):
                raise ConfigError(
                    f"the container has no address on the network {self.name!r}: connect it, or set "
                    "c.GpuDockerSpawner.network_name, or use_internal_ip = False"
                )
            return str(network["IPAddress"]), self.port
        published = (settings.get("Ports") or {}).get(f"{self.port}/tcp") or [{}]
        ip = published[0].get("HostIp") or "127.0.0.1"
        return "127.0.0.1" if ip == "0.0.0.0" else ip, int(published[0].get("HostPort") or self.port)


def _ipam_of(network: dict[str, Any]) -> list[dict[str, Any]]:
    """The subnets in Docker's document of a network."""
    return (network.get("IPAM") or {}).get("Config") or []


def _subnet(text: str) -> Any:
    try:
        network = ip_network(text)
    except ValueError as error:
        raise ConfigError(f'the network {text!r} can\'t be read: write it like "10.213.0.0/20"') from error
    if network.num_addresses < 4:
        raise ConfigError(f'the network {text!r} is too small: write it like "10.213.0.0/20"')
    return network
