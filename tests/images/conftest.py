"""The lab images of this machine, and a container helper that shows the log of a lab when a test fails."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import docker
import pytest
from docker.errors import DockerException, ImageNotFound
from docker.models.containers import Container
from gpuspawner.core.labels import Owner
from gpuspawner.core.limits import ConfiguredLimits, LabRules, Machine, limits_of
from gpuspawner.hub.container import ContainerFacts, plan
from gpuspawner.hub.engine_rights import may_raise_limits

from images.table import Image
from tests.labs import TABLE, offspring


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`image` in test_<name>.py and test_<name>_<more>.py runs over that image and its children."""
    if "image" in metafunc.fixturenames:
        words = metafunc.module.__name__.rsplit("test_", 1)[1].replace("_", "-")
        name = next(image.name for image in TABLE.images if f"{words}-".startswith(f"{image.name}-"))
        images = offspring(name)
        metafunc.parametrize("image", images, ids=[image.name for image in images], scope="session")


@pytest.fixture(autouse=True)
def _image_is_built(image: Image, engine: docker.DockerClient) -> None:
    try:
        engine.images.get(image.reference)
    except ImageNotFound:
        pytest.skip(f"{image.reference} is not built: make images")


Start = Callable[..., Container]

WAIT_SECONDS = 180.0


@pytest.fixture
def start(image: Image, engine: docker.DockerClient) -> Iterator[Start]:
    """Starts containers of the image (or `of` another one), as the hub would; removed after the test."""
    containers: list[Container] = []

    def run(*command: str, of: str = "", **options: Any) -> Container:
        settings = {"network_mode": "none", "security_opt": ["no-new-privileges"], "cap_drop": ["ALL"]}
        container = engine.containers.run(
            of or image.reference, list(command) or None, detach=True, **{**settings, **options}
        )
        containers.append(container)
        return container

    yield run
    for container in containers:
        with contextlib.suppress(DockerException):
            print(f"--- {container.name}\n{container.logs(tail=50).decode(errors='replace')}")
        container.remove(force=True, v=True)


@pytest.fixture
def home(engine: docker.DockerClient) -> Iterator[str]:
    """A named volume for a home, gone after the test."""
    volume = engine.volumes.create(f"gpuspawner-test-{uuid.uuid4().hex[:8]}")
    yield volume.name
    volume.remove()


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it is so; WAIT_SECONDS is what only a broken lab takes, however busy the machine is."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.1)


def output(container: Container, *command: str, user: str = "") -> str:
    """What a command prints in the container. Fails the test if it fails there."""
    done = container.exec_run(list(command), user=user)
    text = str(done.output.decode(errors="replace"))
    assert done.exit_code == 0, f"{command} ended with {done.exit_code}: {text}"
    return text


@pytest.fixture
def lab(image: Image, engine: docker.DockerClient) -> Iterator[Container]:
    """A container of the image as the spawner makes it, with 4 GiB; removed after the test."""
    facts = ContainerFacts(
        name=f"gpuspawner-test-{uuid.uuid4().hex[:8]}",
        image=image.reference,
        command=("sleep", "infinity"),
        owner=Owner("test", "ada", "", "cpu"),
        env={},
        port=8888,
        container_user="1000:100",
        network="bridge",  # where its own name resolves, as in the labs' network
        limits=limits_of(ConfiguredLimits(memory_bytes=4 << 30, cpu_cores=2), LabRules(), Machine()),
        entrypoint=tuple(engine.api.inspect_image(image.reference)["Config"]["Entrypoint"]),
        machine=Machine(raises_limits=may_raise_limits({})),
    )
    planned = plan(facts, None)
    host = engine.api.create_host_config(**planned.host)
    container = engine.containers.get(engine.api.create_container(**planned.create, host_config=host)["Id"])
    container.start()
    yield container
    container.remove(force=True, v=True)
