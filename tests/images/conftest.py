"""The lab images of this machine, and a container helper that shows the log of a lab when a test fails."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import docker
import pytest
from docker.errors import DockerException, ImageNotFound
from docker.models.containers import Container

from images.table import Image
from tests.labs import offspring


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`image` in the tests of folder module test_<name>.py runs over that image and its children."""
    if "image" in metafunc.fixturenames:
        name = metafunc.module.__name__.rsplit("test_", 1)[1].replace("_", "-")
        images = offspring(name)
        metafunc.parametrize("image", images, ids=[image.name for image in images], scope="session")


@pytest.fixture(autouse=True)
def _image_is_built(image: Image, engine: docker.DockerClient) -> None:
    try:
        engine.images.get(image.reference)
    except ImageNotFound:
        pytest.skip(f"{image.reference} is not built: make images")


Start = Callable[..., Container]


@pytest.fixture
def start(image: Image, engine: docker.DockerClient) -> Iterator[Start]:
    """Starts containers of the image, as the hub would: without privileges; removed after the test."""
    containers: list[Container] = []

    def run(*command: str, **options: Any) -> Container:
        settings = {"network_mode": "none", "security_opt": ["no-new-privileges"], "cap_drop": ["ALL"]}
        container = engine.containers.run(
            image.reference, list(command) or None, detach=True, **{**settings, **options}
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


def output(container: Container, *command: str, user: str = "") -> str:
    """What a command prints in the container. Fails the test if it fails there."""
    done = container.exec_run(list(command), user=user)
    text = str(done.output.decode(errors="replace"))
    assert done.exit_code == 0, f"{command} ended with {done.exit_code}: {text}"
    return text
