"""The builder itself, on a real engine: under a tag of the tests' own, so that no lab's image is touched."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace

import docker
import pytest
from docker.errors import DockerException, ImageNotFound

from images.table import Table, read_table


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the steps said at their ends, without how long they took.

    A step that takes long (15 s: a busy machine is enough) says in between where it is; that is left out.
    """
    said = re.sub(r" \(\d+\.\d s\)", "", capsys.readouterr().out).splitlines()
    return [line for line in said if not line.startswith("…")]


def under_tag(table: Table, tag: str) -> Table:
    """The same images under another tag."""
    images = tuple(replace(image, tag=tag) for image in table.images)
    return replace(table, base=replace(table.base, tag=tag), images=images)


def references(engine: docker.DockerClient) -> list[str]:
    """The names of all images, by tag and by digest.

    Not from `engine.images.list`: it asks for each image once more, and fails if one was removed meanwhile,
    as by the tests that run beside this one.
    """
    found = engine.api.images()
    return [name for image in found for key in ("RepoTags", "RepoDigests") for name in image[key] or ()]


@pytest.fixture
def tag(engine: docker.DockerClient) -> Iterator[str]:
    """A tag of the test's own; the images that have it are gone afterwards."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    yield name
    for reference in references(engine):
        if reference.startswith("gpuspawner/") and reference.split(":")[-1].startswith(name):
            with contextlib.suppress(DockerException):
                engine.images.remove(reference, force=True)


@pytest.fixture
def adopt(engine: docker.DockerClient, tag: str) -> Callable[..., Table]:
    """Gives the named images of this machine the test's tag too, as if they had been built under it."""

    def run(*names: str) -> Table:
        table = read_table()
        images = {image.name: image for image in table.images}
        references = [table.base.reference]
        references += [text for name in names for text in (images[name].core, images[name].reference)]
        for reference in references:
            try:
                image = engine.images.get(reference)
            except ImageNotFound:
                pytest.skip(f"{reference} is not built: make images")
            image.tag(reference.replace(f":{table.base.tag}", f":{tag}"))
        return under_tag(table, tag)

    return run
