"""The gateway: one container on the hub's machine that is in every lane, and forwards between hub and labs.

Hub and proxy run on the machine, outside all overlay networks. The gateway is in the bridge network where the
hub listens, and in each lab's network. It sees no more than bytes; `gateway_program.py` is what runs in it.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

from ...core.errors import EngineFault
from ...core.labels import HUB
from ...protocol.call import Call, or_none
from ..container import NO_DEVICES
from ..network import ensure_network, gateway_of
from .lanes import GATEWAY_ALIAS

FIRST_PORT = 20_000
_PROGRAM = Path(__file__).with_name("gateway_program.py")
_ARGUMENTS = "gpuspawner.gateway"
"""The label with the digest of program and arguments: with another one, the gateway must be replaced."""
_SEEN = frozenset({403, 409, 500})
"""Statuses with which Docker says that a container is in the network already (20.10: 403, 28: 403 or 500)."""
_MEMORY_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Gateway:
    """The settings of the gateway. `network` and `subnet` are the bridge's, on which the hub listens."""

    hub_id: str
    network: str
    subnet: str
    image: str
    lanes: int
    lab_port: int
    hub_port: int

    @property
    def name(self) -> str:
        """The container's."""
        return f"{self.network}-gateway"

    @property
    def address(self) -> str:
        """Its own in the bridge: the second of the subnet, after the machine's."""
        return str(ip_network(self.subnet)[2])

    def place_of(self, lane: int) -> tuple[str, int]:
        """Where hub and proxy reach the lab of this lane."""
        return self.address, FIRST_PORT + lane

    def ensure(self, call: Call, network_ids: tuple[str, ...]) -> bool:
        """Sees that it runs; if it has to be made, connects it to these networks.

        Returns whether it was made. Raises EngineFault, ConfigError.
        """
        found = or_none(call, "inspect_container", self.name)
        wanted = self._digest()
        if found is not None and found["Config"]["Labels"].get(_ARGUMENTS) == wanted:
            if not found["State"]["Running"]:
                call("start", self.name)
            return False
        ensure_network(call, self.network, self.subnet)
        if found is not None:
            call("remove_container", self.name, force=True)
        self._create(call, wanted)
        for network_id in network_ids:
            self.connect(call, network_id)
        call("start", self.name)
        return True

    def connect(self, call: Call, network_id: str) -> None:
        """Puts it into a lab's network; no error if it is there."""
        try:
            call("connect_container_to_network", self.name, network_id, aliases=[GATEWAY_ALIAS])
        except EngineFault as fault:
            if fault.status not in _SEEN or "already exists" not in str(fault):
                raise

    def disconnect(self, call: Call, network_id: str) -> None:
        """Takes it out of a lab's network; no error if it isn't there."""
        try:
            call("disconnect_container_from_network", self.name, network_id, force=True)
        except EngineFault as fault:
            if fault.status is None:
                raise

    def _command(self) -> list[str]:
        ports = (FIRST_PORT, self.lanes, self.lab_port, self.hub_port)
        return ["python3", f"/{_PROGRAM.name}", gateway_of(self.subnet), self.address, *map(str, ports)]

    def _digest(self) -> str:
        parts = [*self._command(), self.image, _PROGRAM.read_text()]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _create(self, call: Call, digest: str) -> None:
        endpoint = {"IPAMConfig": {"IPv4Address": self.address}}
        host = call(
            "create_host_config",
            network_mode=self.network,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            restart_policy={"Name": "always"},
            mem_limit=_MEMORY_BYTES,
            pids_limit=256,
        )
        call(
            "create_container",
            self.image,
            self._command(),
            name=self.name,
            entrypoint=[],
            user="65534:65534",
            working_dir="/",
            environment=dict(NO_DEVICES),
            labels={HUB: self.hub_id, _ARGUMENTS: digest},
            networking_config={"EndpointsConfig": {self.network: endpoint}},
            host_config=host,
        )
        call("put_archive", self.name, "/", _archive(_PROGRAM))


def _archive(path: Path) -> bytes:
    data = io.BytesIO()
    content = path.read_bytes()
    entry = tarfile.TarInfo(path.name)
    entry.size, entry.mode = len(content), 0o644
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(entry, io.BytesIO(content))
    return data.getvalue()
