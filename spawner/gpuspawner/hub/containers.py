"""Labs as containers of this machine's Docker Engine: the way of one machine without Swarm."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import Any

from ..core.errors import EngineFault
from ..protocol.call import Call
from .container import ContainerPlan
from .docker import DockerEngine
from .engine import Created
from .engine_words import unusable
from .home import belongs_to_root, own_home
from .network import LabNetwork


@dataclass(frozen=True, slots=True)
class Containers:
    """Labs as containers of one Docker Engine: see `LabEngine` for the methods.

    If an image doesn't know the home, `user` ("uid:gid") becomes its owner.
    """

    docker: DockerEngine
    network: LabNetwork
    user: str

    async def find(self, lab: str) -> dict[str, Any] | None:
        """Docker's document of the container."""
        return await self.docker.find_container(lab)

    async def create(self, plan: ContainerPlan) -> Created:
        """Creates the container on the labs' network."""
        return await self.docker.run(lambda call: self._create(call, plan))

    async def start(self, lab_id: str) -> None:
        """Starts the container."""
        await self.docker.call("start", lab_id)

    async def repair(self, fault: EngineFault, lab_id: str) -> str:
        """A missing network, or an address that is taken: see `LabNetwork.repair`."""
        repaired = await self.docker.run(lambda call: self.network.repair(call, fault, lab_id))
        return f"Repaired the labs' network {self.network.name}" if repaired else ""

    async def reconnect(self, lab_id: str, address: str | None) -> None:
        """Connects it to the labs' network at its earlier address."""
        await self.docker.run(lambda call: self.network.reconnect(call, lab_id, address))

    async def stop(self, lab_id: str, grace_seconds: int) -> None:
        """Stops the container."""
        await self.docker.stop_container(lab_id, grace_seconds)

    async def remove(self, lab_id: str) -> None:
        """Removes the container and its anonymous volumes."""
        await self.docker.remove_container(lab_id)

    async def home_machine(self, volume: str) -> str:
        """ "": there is one machine."""
        return ""

    async def log_tail(self, lab_id: str, secret: str = "") -> str:
        """The end of the container's log."""
        return await self.docker.log_tail(lab_id, secret)

    def address_of(self, lab: dict[str, Any]) -> tuple[str, int]:
        """Its address on the labs' network, its name, or a port of the host."""
        return self.network.address_of(lab)

    def _create(self, call: Call, plan: ContainerPlan) -> Created:
        unlimited = limit_home(call, plan)
        # Only on this network; extra_host_config may name another one.
        on_ours = plan.host["network_mode"] == self.network.name
        settings = {"networking_config": self.network.endpoint(call) if on_ours else None, **plan.create}
        try:
            host = call("create_host_config", **plan.host)
            container_id = str(call("create_container", **settings, host_config=host)["Id"])
        except TypeError as error:
            raise unusable(error) from error
        rooted = _give_home(call, container_id, plan.new_home, self.user) if plan.new_home else ""
        return Created(container_id, tuple(filter(None, (unlimited, rooted))))


def limit_home(call: Call, plan: ContainerPlan) -> str:
    """Creates the home's volume with its size; returns why it has none. An existing volume isn't changed.

    Docker's own driver refuses a size where its folder has no quotas (moby 20.10 to 28, volume/local).
    """
    if plan.sized_home is None:
        return ""
    driver = plan.host.get("volume_driver")
    try:
        call("create_volume", plan.sized_home, driver=driver, **plan.home_volume)
    except EngineFault as fault:
        if fault.status is None:
            raise
        return f"The home {plan.sized_home} has no limit of its size: {fault}"
    return ""


def _give_home(call: Call, container_id: str, home: str, user: str) -> str:
    """Gives the home to its user. Docker unpacks an archive into the volume, so nothing has to run.

    Only if root owns the folder, as in a new Docker volume; otherwise its permissions don't change.
    """
    parent, archive = own_home(home, user)
    try:
        # docker-py's get_archive doesn't close a response that isn't read to its end; a home may be large.
        address = call("_url", "/containers/{0}/archive", container_id)
        with call("_get", address, params={"path": home}, stream=True) as answer:
            first = next(answer.iter_content(tarfile.BLOCKSIZE), b"") if answer.ok else b""
        if belongs_to_root(first):
            call("put_archive", container_id, parent, archive)
    except EngineFault as fault:
        if fault.status is None:
            raise
        return f"The home may not be writable: {fault}"
    return ""
