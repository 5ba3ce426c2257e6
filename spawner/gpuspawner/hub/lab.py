"""The container of one server in Docker: created, found by its name and labels, stopped and removed."""

from __future__ import annotations

import asyncio
import logging
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..core.errors import EngineFault
from ..core.labels import Owner
from .container import ContainerPlan
from .docker import Call, DockerEngine
from .docker_answers import running
from .engine_words import unusable
from .home import belongs_to_root, own_home
from .network import LabNetwork
from .removals import Removals

RETRY_SECONDS = 1.0
"""Pause between attempts while Docker doesn't answer."""


@dataclass(frozen=True, slots=True)
class Lab:
    """One server's container, which may not exist. `log` gets a level and a line."""

    name: str
    owner: Owner
    docker: DockerEngine
    removals: Removals
    log: Callable[..., None]

    async def find(self) -> dict[str, Any] | None:
        """Docker's document of the container; None only if Docker says that this server has none.

        Raises EngineFault if Docker doesn't answer. (DockerSpawner treats a 500 as "gone".)
        """
        container = await self.docker.find_container(self.name)
        if container is None or not self.owner.owns(container.get("Config", {}).get("Labels")):
            return None
        return container

    async def end(self, grace_seconds: int) -> None:
        """Stops the container and returns when it is gone. Idempotent.

        While Docker doesn't answer, this keeps trying: a container that may run doesn't count as stopped.
        """
        doubted = False
        while True:
            try:
                await self._end_once(grace_seconds)
                return
            except EngineFault as fault:
                if not doubted:
                    self.log(logging.WARNING, "Can't stop it yet, retrying: %s", fault)
                doubted = True
            await asyncio.sleep(RETRY_SECONDS)

    def remove_later(self, container_id: str) -> None:
        """Removes a container that no longer runs, in the background."""

        async def work() -> None:
            while True:
                try:
                    await self.docker.remove_container(container_id)
                    return
                except EngineFault as fault:
                    self.log(logging.WARNING, "Can't remove the container yet, retrying: %s", fault)
                await asyncio.sleep(RETRY_SECONDS)

        self.removals.begin(self.name, work())

    async def _end_once(self, grace_seconds: int) -> None:
        """Raises EngineFault if it may still run; an ended container is removed later in the background."""
        container = await self.find()
        if container is None:
            return
        if running(container):
            await self.docker.stop_container(container["Id"], grace_seconds)
        try:
            await self.docker.remove_container(container["Id"])
        except EngineFault:
            left = await self.find()
            if left is not None and running(left):
                raise
            self.remove_later(container["Id"])


async def create(
    docker: DockerEngine, plan: ContainerPlan, network: LabNetwork, user: str
) -> tuple[str, tuple[str, ...]]:
    """Creates the container; returns its id, and what is wrong with its home, in sentences.

    If the image doesn't know the home, `user` ("uid:gid") becomes its owner. Raises EngineFault, and
    ConfigError for arguments that docker-py doesn't know.
    """

    def work(call: Call) -> tuple[str, tuple[str, ...]]:
        unlimited = limit_home(call, plan)
        # Only on this network; extra_host_config may name another one.
        on_ours = plan.host["network_mode"] == network.name
        settings = {"networking_config": network.endpoint(call) if on_ours else None, **plan.create}
        try:
            host = call("create_host_config", **plan.host)
            container_id = str(call("create_container", **settings, host_config=host)["Id"])
        except TypeError as error:
            raise unusable(error) from error
        rooted = _give_home(call, container_id, plan.new_home, user) if plan.new_home else ""
        return container_id, tuple(filter(None, (unlimited, rooted)))

    return await docker.run(work)


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
