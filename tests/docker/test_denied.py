"""A container that may no longer open a device is told from one that may, by trying it inside."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import docker
import pytest
from gpuspawner.node.docker_engine import DockerEngine

pytestmark = pytest.mark.docker
NODE = "/dev/nvidiactl"
COPY = "/nvidiactl"
"""A node outside /dev, which is a file system of the container's own that Docker's archives don't reach."""


@pytest.fixture
def containers(engine: docker.APIClient, tiny_image: str) -> Iterator[tuple[str, str]]:
    """One that has the device from Docker, and one with the node alone, as after a daemon-reload."""
    made = []
    for devices in ([f"/dev/null:{NODE}:rwm"], []):
        host = engine.create_host_config(devices=devices, network_mode="none", cap_drop=["ALL"])
        command = ["/bin/busybox", "sleep", "600"]
        made.append(engine.create_container(tiny_image, command, user="1000:100", host_config=host)["Id"])
        engine.start(made[-1])
    entry = tarfile.TarInfo(COPY.lstrip("/"))
    entry.type, entry.mode, entry.devmajor, entry.devminor = tarfile.CHRTYPE, 0o666, 195, 255
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(entry)
    engine.put_archive(made[1], "/", data.getvalue())
    # The image's only program is busybox: its shell under the name that the probe uses.
    for container in made:
        shell = tarfile.TarInfo("bin/sh")
        shell.type, shell.linkname = tarfile.SYMTYPE, "/bin/busybox"
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as archive:
            archive.addfile(shell)
        engine.put_archive(container, "/", data.getvalue())
    yield made[0], made[1]
    for container in made:
        engine.remove_container(container, force=True)


async def test_who_has_lost_a_device(engine: docker.APIClient, containers: tuple[str, str]) -> None:
    kept, lost = containers
    broker = DockerEngine(threads=1)
    try:
        assert await broker.is_denied(kept, NODE) is False
        assert await broker.is_denied(lost, COPY) is True
        assert await broker.is_denied(kept, "/dev/not-there") is False
        engine.kill(kept)
        assert await broker.is_denied(kept, NODE) is False
        assert await broker.is_denied("0" * 64, NODE) is False
    finally:
        await broker.close()
