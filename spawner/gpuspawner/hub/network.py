"""The labs' own Docker network: made where it is missing, and which address in it a server gets."""

from __future__ import annotations

import random
import threading
from collections.abc import Collection
from ipaddress import ip_network
from typing import Any

import docker.errors
from docker.api.client import APIClient

from ..core.errors import ConfigError

DOCKERS_OWN = frozenset({"bridge", "host", "none", "default"})
"""Networks that are always there."""


def network_settings(name: str, subnet: str) -> dict[str, Any]:
    """Arguments of docker-py's `create_network` for the labs' own network.

    Containers on it reach the world and the hub, not each other; the bridge's own address, the first
    of the subnet, is where the hub listens. Raises ConfigError for a subnet that can't be used.
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
        "labels": {"gpuspawner.tools.make_network": name},
    }


def gateway_of(subnet: str) -> str:
    """The first address of the subnet: the host's own on the labs' bridge. Raises ConfigError."""
    return str(_subnet(subnet)[1])


def ensure_network(client: APIClient, name: str, subnet: str) -> str:
    """Creates the labs' network if there is none; returns the host's address on it. Blocks on Docker.

    Raises ConfigError if one of that name has another subnet, or if Docker refuses the subnet.
    """
    wanted = network_settings(name, subnet)
    config = wanted["ipam"]["Config"][0]
    try:
        present = client.inspect_network(name)
    except docker.errors.NotFound:
        try:
            client.create_network(**wanted, check_duplicate=True)
        except docker.errors.APIError as error:
            if error.status_code != 409:  # somebody else created it just now
                raise ConfigError(
                    f"Docker can't create the network {name!r} with {subnet}: {error.explanation}. "
                    "Set another one (GPUSPAWNER_SUBNET, c.GpuDockerSpawner.subnet)"
                ) from error
        present = client.inspect_network(name)
    found = [entry.get("Subnet") for entry in _ipam_of(present)]
    if config["Subnet"] not in found:
        raise ConfigError(
            f"the network {name!r} has the addresses {found}, not {config['Subnet']}: remove it with "
            f"'docker network rm {name}', or set GPUSPAWNER_SUBNET to what it has"
        )
    return str(config["Gateway"])


class Addresses:
    """A subnet's addresses in turn: one that is free again comes back after all the others.

    Docker gives the lowest that is free, so the next server would have the address of one that died a moment
    ago. Until the hub notices that death, its proxy sends the former user's requests there, with their
    token. For any thread. Source: seen with JupyterHub 6.1 and Docker 20.10.
    """

    def __init__(self, subnet: str) -> None:
        self._network = _subnet(subnet)
        self._count = self._network.num_addresses - 3  # not the network's, the host's, and broadcast
        self._turn = random.randrange(self._count)
        self._lock = threading.Lock()

    def next(self, used: Collection[str]) -> str | None:
        """The next that isn't in `used`; None if all are."""
        with self._lock:
            for _ in range(self._count):
                address = str(self._network[2 + self._turn])
                self._turn = (self._turn + 1) % self._count
                if address not in used:
                    return address
        return None


_turns: dict[tuple[str, str], Addresses] = {}


def free_address(client: APIClient, name: str, subnet: str) -> str | None:
    """An address that the next server may take; None where Docker has to find one. Blocks on Docker.

    That is so in a network of the site's own, where Docker may not take orders, in one that isn't there, and
    in one of whose subnet Docker has but a range: the rest may be that of other machines. Raises ConfigError.
    """
    if name in DOCKERS_OWN:
        return None
    try:
        network = client.inspect_network(name)
    except docker.errors.NotFound:
        return None
    wanted = str(_subnet(subnet))
    ranges = [entry.get("IPRange") for entry in _ipam_of(network) if entry.get("Subnet") == wanted]
    if not ranges or any(ranges):
        return None
    used = {str(each["IPv4Address"]).partition("/")[0] for each in (network["Containers"] or {}).values()}
    return _turns.setdefault((name, subnet), Addresses(subnet)).next(used)


def place(client: APIClient, name: str, subnet: str) -> dict[str, Any] | None:
    """The `networking_config` of a container's creation; None as in `free_address`. Blocks on Docker."""
    address = free_address(client, name, subnet)
    if address is None:
        return None
    return {"EndpointsConfig": {name: {"IPAMConfig": {"IPv4Address": address}}}}


def move(client: APIClient, container_id: str, name: str, subnet: str) -> None:
    """Gives a container that doesn't run another address. Blocks on Docker."""
    client.disconnect_container_from_network(container_id, name)
    client.connect_container_to_network(container_id, name, ipv4_address=free_address(client, name, subnet))


def _ipam_of(network: dict[str, Any]) -> list[dict[str, Any]]:
    """What Docker's document of a network says of each of its subnets."""
    return (network.get("IPAM") or {}).get("Config") or []


def _subnet(text: str) -> Any:
    try:
        network = ip_network(text)
    except ValueError as error:
        raise ConfigError(f'the network {text!r} can\'t be read: write it like "10.213.0.0/20"') from error
    if network.num_addresses < 4:
        raise ConfigError(f'the network {text!r} is too small: write it like "10.213.0.0/20"')
    return network
