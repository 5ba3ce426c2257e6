"""The base image from a real registry: pulled, by tag and by digest, and what is said if it can't be."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest
from docker.errors import ImageNotFound

from images.base import ensure_base
from images.debs import RECORD
from images.engine import run
from images.lock import lock_base
from images.stock import Stock
from images.table import Base, read_table
from setup.steps import SetupError, step

from .conftest import references
from .registry import running_registry

pytestmark = [pytest.mark.docker, pytest.mark.slow]


@pytest.fixture
def pushed(
    engine: docker.DockerClient, tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Base]:
    """A base that is to be pulled from a registry of the test's own, where this machine's base image lies."""
    monkeypatch.delenv("BASE_IMAGE", raising=False)
    own = read_table().base.reference
    if own not in references(engine):
        pytest.skip(f"{own} is not built: make images")
    with running_registry(tmp_path) as address:
        name = f"{address}/debian:bookworm-slim"
        engine.images.get(own).tag(name)
        for line in engine.images.push(name, stream=True, decode=True):
            assert "error" not in line, line
        engine.images.remove(name)
        yield Base(tag=tag, pull=name, packages=("ca-certificates", "tree"))
        for reference in references(engine):
            if reference.startswith(address):
                with contextlib.suppress(ImageNotFound):  # its digest goes with its last tag
                    engine.images.remove(reference, force=True)


def ensure(engine: docker.DockerClient, base: Base, folder: Path) -> str:
    with step("base image") as current:
        ensure_base(engine, base, Stock(folder), current)
    return current.note


def test_pulled_by_tag_and_once(engine: docker.DockerClient, pushed: Base, tmp_path: Path) -> None:
    assert re.fullmatch(rf"from {pushed.pull}, \d+ Debian packages", ensure(engine, pushed, tmp_path))
    labels = engine.images.get(pushed.reference).labels
    # what was pulled is written down by its digest, though it was asked for by its tag
    assert re.fullmatch(r"127\.0\.0\.1:\d+/debian@sha256:[0-9a-f]{64}", labels["gpuspawner.base"])
    options = {"entrypoint": [], "network_mode": "none"}
    assert "\ntree=" in run(engine, pushed.reference, ["cat", RECORD], **options)
    assert run(engine, pushed.reference, ["tree", "--version"], **options).startswith("tree v")
    assert ensure(engine, pushed, tmp_path) == f"{pushed.reference} is there"
    assert ensure(engine, replace(pushed, packages=("less",)), tmp_path) != f"{pushed.reference} is there"


def test_pulled_by_the_digest_that_make_lock_writes(
    engine: docker.DockerClient, pushed: Base, tmp_path: Path
) -> None:
    lock = tmp_path / "base.lock"
    said = lock_base(pushed, lock)
    head, line = lock.read_text().splitlines()
    name, digest = line.split()
    assert (head[0], name, said) == ("#", pushed.pull, f"{pushed.pull} is {digest}")
    locked = replace(pushed, digest=digest)
    assert ensure(engine, locked, tmp_path).startswith(f"from {locked.source}, ")
    labels = engine.images.get(pushed.reference).labels
    assert labels["gpuspawner.base"] == locked.source


def test_a_registry_that_has_no_such_image(
    engine: docker.DockerClient, pushed: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = pushed.pull.replace("bookworm", "trixie")
    monkeypatch.setenv("BASE_IMAGE", other)
    with pytest.raises(SetupError) as caught:
        ensure(engine, pushed, tmp_path)
    assert caught.value.problem == f"the base image {other} could not be pulled"
    lock = tmp_path / "base.lock"
    kept = "kept without a digest: pulled by its tag"
    assert (
        lock_base(replace(pushed, pull=other), lock)
        == f"{kept}, as {other} can't be looked up in its registry"
    )
    assert not lock.exists()
