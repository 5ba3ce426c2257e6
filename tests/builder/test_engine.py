"""What a build leaves on the engine, and what it does to a build that runs at the same time: nothing."""

from __future__ import annotations

import io
from collections.abc import Callable

import docker
import pytest
from docker.errors import ImageNotFound
from docker.models.images import Image as DockerImage

from images import engine as builder
from images.engine import INPUTS_LABEL, STAGE_LABEL, build
from images.table import read_table
from setup.steps import SetupError, Step

pytestmark = pytest.mark.docker

DOCKERFILE = """
ARG BASE
FROM $BASE AS build
ARG STAGE
LABEL gpuspawner.stage=$STAGE
RUN echo {content} >/made
FROM $BASE
RUN sleep {seconds}
COPY --from=build /made /made
"""
Build = Callable[..., DockerImage]


class Watched(Step):
    """A step that calls `then` once, when the build says that it has come to `instruction`."""

    def __init__(self, instruction: str, then: Callable[[], object]) -> None:
        super().__init__("test", io.StringIO())
        self._instruction, self._then = instruction, then

    def detail(self, text: str) -> None:
        """What the build says."""
        if self._instruction and self._instruction in text:
            self._instruction = ""
            self._then()


@pytest.fixture
def make(engine: docker.DockerClient, tag: str, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Builds an image with a stage, named and labelled after the test and `name`."""
    base = read_table().base.reference
    try:
        engine.images.get(base)
    except ImageNotFound:
        pytest.skip(f"{base} is not built: make images")

    def run(name: str, content: str = "one", seconds: int = 0, step: Step | None = None) -> DockerImage:
        context = [("Dockerfile", DOCKERFILE.format(content=content, seconds=seconds).encode())]
        reference, arguments = f"gpuspawner/{name}:{tag}", ({"BASE": base}, {INPUTS_LABEL: content})
        with monkeypatch.context() as patch:
            patch.setattr(builder.secrets, "token_hex", lambda length: f"{tag}-{name}")
            build(engine, [*context], reference, arguments, step or Step("test", io.StringIO()))
        return engine.images.get(reference)

    return run


def there(engine: docker.DockerClient, image: DockerImage) -> bool:
    """Whether the engine still has it."""
    try:
        engine.images.get(str(image.id))
    except ImageNotFound:
        return False
    return True


def test_a_build_takes_away_its_own_stage_and_no_other_builds(
    engine: docker.DockerClient, make: Build, tag: str
) -> None:
    """The second build begins and ends while the first has nothing but its finished stage."""
    beside: list[DockerImage] = []
    step = Watched("RUN sleep", lambda: beside.append(make("second", "two")))
    first = make("first", seconds=10, step=step)
    assert [image.labels[INPUTS_LABEL] for image in (first, *beside)] == ["one", "two"]
    for name in ("first", "second"):
        assert engine.api.images(all=True, filters={"label": f"{STAGE_LABEL}={tag}-{name}"}) == []


def test_a_build_that_fails_leaves_nothing(engine: docker.DockerClient, make: Build, tag: str) -> None:
    with pytest.raises(SetupError, match="could not be built"):
        make("first", seconds=-1)
    assert engine.api.images(all=True, filters={"label": f"{STAGE_LABEL}={tag}-first"}) == []


def test_what_was_replaced_goes_unless_somebody_has_it(
    engine: docker.DockerClient, make: Build, tag: str
) -> None:
    first = make("name", "one")
    second = make("name", "two")
    assert (there(engine, first), there(engine, second)) == (False, True)

    tagged = make("name", "three")
    tagged.tag("gpuspawner/kept", tag=tag)
    used = make("name", "four")
    assert engine.images.get(f"gpuspawner/kept:{tag}").id == tagged.id
    container = engine.containers.create(used)
    try:
        make("name", "five")
        assert there(engine, used)
    finally:
        container.remove()
        engine.images.remove(str(used.id))


def test_a_clean_up_that_fails_fails_no_build(
    engine: docker.DockerClient, make: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker refuses a prune while another one runs."""

    def refuse(*_: object, **__: object) -> None:
        raise docker.errors.APIError("409 Conflict: a prune operation is already running")

    monkeypatch.setattr(type(engine.images), "prune", refuse)
    assert make("name", "one").labels[INPUTS_LABEL] == "one"
