"""Of the lab images only what changed is built anew; each test is under a tag of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import docker
import pytest

from images import build
from images.build import Task, build_images
from images.bundle import Bundle
from images.engine import identity_of
from images.stock import Stock
from images.table import IMAGES_DIR, Table
from setup.steps import SetupError

from .conftest import lines

pytestmark = pytest.mark.docker


def test_nothing_changed(
    engine: docker.DockerClient,
    adopt: Callable[..., Table],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = adopt("lab-base", "lab-torch")
    build_images(engine, table, ["lab-torch"], Stock(tmp_path))
    assert lines(capsys) == [
        f"✓ base image: {table.base.reference} is there",
        *(f"✓ image {image.name}: {image.reference} is up to date" for image in table.images[:2]),
    ]
    assert not list(tmp_path.iterdir())  # and nothing was downloaded


def test_a_changed_notebook_rebuilds_only_the_last_layer(
    engine: docker.DockerClient,
    adopt: Callable[..., Table],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = adopt("lab-base")
    lab = table.images[0]
    before = [engine.images.get(name).id for name in (lab.core, lab.reference)]
    changed = tmp_path / "images"
    changed.mkdir()
    shutil.copy(IMAGES_DIR / "starters.Dockerfile", changed)
    shutil.copytree(IMAGES_DIR / "notebooks", changed / "notebooks")
    (changed / "notebooks" / "README.md").write_text("new\n")
    monkeypatch.setattr(build, "IMAGES_DIR", changed)
    build_images(engine, table, ["lab-base"], Stock(tmp_path / "stock"))
    assert lines(capsys)[-1] == f"✓ image lab-base: {lab.reference} has new starters"
    after = [engine.images.get(name).id for name in (lab.core, lab.reference)]
    assert (after[0] == before[0], after[1] == before[1]) == (True, False)


def test_what_a_bundle_does_not_have_is_left_out(
    engine: docker.DockerClient,
    adopt: Callable[..., Table],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = adopt("lab-base")
    manifest = {"images": ["lab-base"], "base": {"identity": identity_of(engine, table.base.reference)}}
    bundle = Bundle(tmp_path, {**manifest, "files": {}})
    build_images(engine, table, [], bundle)
    assert lines(capsys) == [
        f"✓ base image: {table.base.reference} is there",
        f"✓ image lab-base: {table.images[0].reference} is up to date",
        "– image lab-torch: not built: it is not in the bundle",
        "– image lab-tensorrt: not built: lab-torch is not built",
    ]
    with pytest.raises(SetupError, match="lab-torch can't be built here: it is not in the bundle"):
        build_images(engine, table, ["lab-torch"], bundle)


def test_other_debian_packages_below_are_another_image(
    engine: docker.DockerClient, adopt: Callable[..., Table], tag: str, tmp_path: Path
) -> None:
    """The base made anew with newer packages: what stands on it is built anew, from the same files."""
    table = adopt("lab-base")
    container = engine.containers.create(table.base.reference)
    try:
        engine.api.commit(
            str(container.id),
            repository="gpuspawner/base",
            tag=f"{tag}-newer",
            changes="LABEL gpuspawner.packages=other",
        )
    finally:
        container.remove()
    parents = (table.base.reference, f"gpuspawner/base:{tag}-newer")
    old, new = (Task(engine, table.images[0], parent, Stock(tmp_path)).inputs for parent in parents)
    assert old == engine.images.get(table.images[0].core).labels["gpuspawner.inputs"]
    assert old != new
