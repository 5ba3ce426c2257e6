"""With homes that all machines share, a user's files are there wherever the server starts."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import docker
import pytest

from tests.swarm.cluster import Cluster
from tests.swarm.site import Site, open_site
from tests.swarm.test_services import container_of

pytestmark = [pytest.mark.docker, pytest.mark.slow]
HOME = "/home/jovyan"
SETTINGS = """
from docker.types import DriverConfig
device = 'FOLDER/home-{{index .Service.Labels "gpuspawner.user"}}'
c.GpuDockerSpawner.volumes = {}
c.GpuDockerSpawner.mounts = [{
    "type": "volume", "source": "{prefix}-home-{username}", "target": "/home/jovyan",
    "driver_config": DriverConfig("local", {"type": "none", "o": "bind", "device": device}),
}]
c.GpuSwarm.shared_homes = True
"""
"""As in docs/several-machines.md, with a folder that all three machines see in place of the file server."""


@pytest.fixture(scope="module")
def sharing(machines: Cluster, engine: docker.APIClient) -> Iterator[Site]:
    """Ada and ben have folders on the file server."""
    folder = machines.folder / "server"
    for user in ("ada", "ben"):
        (folder / f"home-{user}").mkdir(parents=True)
    with open_site(machines, engine, SETTINGS.replace("FOLDER", str(folder))) as found:
        yield found


def test_files_are_there_wherever_the_server_starts(sharing: Site) -> None:
    hub, machines = sharing.hub, sharing.machines
    hub.spawn("ada", "on-b")
    lab = container_of(machines, "b", "ada")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        entry = tarfile.TarInfo("notes.txt")
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"mine\n"))
    machines["b"].client.put_archive(lab["Id"], HOME, stream.getvalue())
    hub.stop("ada")
    for tier, machine in (("on-c", "c"), ("on-a", "a"), ("cpu", "a")):
        hub.spawn("ada", tier)
        found, _ = machines[machine].client.get_archive(
            container_of(machines, machine, "ada")["Id"], f"{HOME}/notes.txt"
        )
        with tarfile.open(fileobj=io.BytesIO(b"".join(found))) as tar:
            notes = tar.extractfile("notes.txt")
            assert notes is not None
            assert notes.read() == b"mine\n"
        hub.stop("ada")
    assert (machines.folder / "server" / "home-ada" / "notes.txt").read_text() == "mine\n"
    assert machines.manager.client.configs(filters={"label": "gpuspawner.home"}) == []  # no machine has it
    hub.spawn("ben", "on-b")  # another user doesn't see them
    assert list((machines.folder / "server" / "home-ben").iterdir()) == []
    hub.stop("ben")


def test_a_shared_home_is_not_moved(sharing: Site) -> None:
    refused = sharing.hub.homes("move", "ada", "c")
    assert refused.returncode == 1
    assert "use `list`" in refused.stderr
