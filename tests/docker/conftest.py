"""Real brokers and real containers; each test has a state folder, and with it containers, of its own."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import docker
import docker.errors
import pytest
from gpuspawner.core.labels import broker_label
from gpuspawner.protocol.client import BrokerClient

from tests import postgres as postgresql
from tests.docker.faulty_docker import FaultyDocker
from tests.docker.life import IMAGE, remove
from tests.docker.place import Place, Zygote

DOCKER_HOST = "unix:///var/run/docker.sock"


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.APIClient]:
    """The Docker Engine of this machine."""
    try:
        client = docker.APIClient(base_url=DOCKER_HOST, version="auto", timeout=30)
    except docker.errors.DockerException as error:
        pytest.skip(f"no Docker Engine answers here: {error}")
    yield client
    client.close()


@pytest.fixture(scope="session")
def tiny_image(engine: docker.APIClient) -> str:
    """An image with nothing but a static busybox."""
    busybox = shutil.which("busybox")
    if busybox is None or b"statically" not in subprocess.check_output(["file", "-L", busybox]):
        pytest.skip("no static busybox for the test image: apt-get install busybox-static")
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.add(os.path.realpath(busybox), "bin/busybox")
    engine.import_image_from_data(data.getvalue(), repository=IMAGE, tag="latest")
    return IMAGE


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """One for all tests."""
    process = Zygote()
    yield process
    process.close()


@pytest.fixture
async def place(
    zygote: Zygote, engine: docker.APIClient, tiny_image: str, request: pytest.FixtureRequest
) -> AsyncIterator[Place]:
    """A place whose broker isn't started yet; its ledger is SQLite's, or PostgreSQL's with `ON_BOTH`."""
    folder = Path(tempfile.mkdtemp(prefix="gs-"))  # short: a socket's path may have 107 bytes
    client = BrokerClient(str(folder / "broker.sock"))
    async with FaultyDocker(folder / "docker.sock") as proxy:
        found = Place(folder, zygote, engine, proxy, client)
        if getattr(request, "param", "sqlite") == "postgresql":
            server: postgresql.Server = request.getfixturevalue("postgres")
            found.database_url = server.url(server.create())
        yield found
        print(found.log)  # pytest shows it when the test fails
        hub_log = folder / "hub.log"
        print(hub_log.read_text() if hub_log.exists() else "")
        await client.close()
        zygote.kill_children()
        for item in engine.containers(
            all=True,
            filters={"label": [f"{key}={value}" for key, value in broker_label(str(folder)).items()]},
        ):
            remove(engine, item["Id"])
    shutil.rmtree(folder, ignore_errors=True)
