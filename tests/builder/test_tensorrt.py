"""lab-tensorrt: built where NVIDIA's package index can be reached, left out with a reason elsewhere.

The indexes are folders on 127.0.0.1 with tiny packages under the names and versions of the lock. lab-tensorrt
stands on lab-base here, as PyTorch with CUDA would be gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from images.build import build_images
from images.engine import run
from images.stock import Stock
from images.table import Table, pins_of, read_table
from setup.steps import SetupError

from .conftest import lines
from .packageindex import add_source, add_wheel, served

pytestmark = [pytest.mark.docker, pytest.mark.slow]

TENSORRT = next(image for image in read_table().images if image.name == "lab-tensorrt")
PINS = pins_of(TENSORRT.folder / TENSORRT.lock)
MADE_FROM = "import tensorrt, tensorrt_cu13_libs; print(tensorrt.MADE_FROM, tensorrt_cu13_libs.MADE_FROM)"


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The public index, and NVIDIA's: each has what it has in truth, in the same form."""
    public, nvidia = tmp_path_factory.mktemp("public"), tmp_path_factory.mktemp("nvidia")
    for name, version in PINS.items():
        add = add_source if name in TENSORRT.source else add_wheel
        add(nvidia if name in TENSORRT.elsewhere else public, name, version)
    with served(public) as first, served(nvidia) as second:
        yield first, second


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, indexes: tuple[str, str]) -> Callable[[bool], None]:
    """Sets pip up as a machine would be that knows the public index and, if told so, NVIDIA's."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", indexes[0])
    monkeypatch.setenv("CPU", "0")

    def run(nvidia: bool) -> None:
        if nvidia:
            monkeypatch.setenv("PIP_EXTRA_INDEX_URL", indexes[1])
        else:
            monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)

    return run


@pytest.fixture
def table(adopt: Callable[..., Table]) -> Table:
    """lab-base as it is on this machine, and lab-tensorrt on it."""
    table = adopt("lab-base")
    base, _, tensorrt = table.images
    return replace(table, images=(base, replace(tensorrt, parent="lab-base")), default="lab-base")


def test_built_where_the_index_is_reached_and_left_out_elsewhere(
    engine: docker.DockerClient,
    table: Table,
    pip: Callable[[bool], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tensorrt, stock = table.images[1], Stock(tmp_path)
    missing = f"NVIDIA's package index can't be reached (pip finds no tensorrt-cu13-libs=={PINS['tensorrt']})"
    pip(False)
    build_images(engine, table, [], stock)
    assert lines(capsys)[-1] == f"– image lab-tensorrt: not built: {missing}"
    with pytest.raises(SetupError) as caught:
        build_images(engine, table, ["lab-tensorrt"], stock)
    assert caught.value.problem == f"lab-tensorrt can't be built here: {missing}"
    assert caught.value.remedy.startswith("name it in pip's settings (docs/admin-setup.md, lab-tensorrt)")

    capsys.readouterr()
    pip(True)
    build_images(engine, table, [], stock)
    assert lines(capsys)[-1] == f"✓ image lab-tensorrt: {tensorrt.reference} built"
    listed = run(engine, tensorrt.reference, ["pip", "freeze"], entrypoint=[], network_mode="none")
    installed = dict(line.split("==") for line in listed.splitlines() if "==" in line)
    found = {name: installed.get(name) or installed.get(name.replace("-", "_")) for name in PINS}
    assert found == PINS
    # as published: two as source, the libraries as wheels from NVIDIA's index
    said = run(engine, tensorrt.reference, ["python", "-c", MADE_FROM], entrypoint=[], network_mode="none")
    assert said == "source wheel\n"
    labels = engine.images.get(tensorrt.reference).labels
    names = ("gpuspawner.cuda", "gpuspawner.min-driver", "gpuspawner.needs-gpu")
    assert [labels[name] for name in names] == ["13.0", "580", "1"]

    pip(False)  # what is built needs no index any more
    build_images(engine, table, ["lab-tensorrt"], stock)
    assert lines(capsys)[-1] == f"✓ image lab-tensorrt: {tensorrt.reference} is up to date"


def test_left_out_without_a_driver(
    engine: docker.DockerClient,
    table: Table,
    pip: Callable[[bool], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pip(True)
    monkeypatch.setenv("CPU", "1")
    build_images(engine, table, [], Stock(tmp_path))
    reason = "it needs an NVIDIA GPU, and no driver is loaded here"
    assert lines(capsys)[-1] == f"– image lab-tensorrt: not built: {reason}"
