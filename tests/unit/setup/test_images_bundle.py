"""images/bundle.py: what a bundle is checked for, before anything is built from it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from images.build import choose_stock
from images.bundle import MANIFEST, Bundle, Wanted, describe, open_bundle
from images.stock import CACHE, Goods, Stock
from images.table import read_table
from setup.steps import SetupError

HERE = Wanted(tag="0.1.0", jupyterhub="6.1.1", cuda=False, machine="x86_64")
GOODS = Goods("wheels", "lab-base", "numpy==2.4.6")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle with two files of lab-base."""
    for name in ("numpy.whl", "requirements.lock"):
        path = tmp_path / GOODS.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    files = {
        str(path.relative_to(tmp_path)): describe(path) for path in tmp_path.rglob("*") if path.is_file()
    }
    made = {"tag": "0.1.0", "machine": "x86_64", "jupyterhub": "6.1.1", "cuda": False}
    (tmp_path / MANIFEST).write_text(json.dumps({"format": 1, "for": made, "files": files}))
    return tmp_path


def get(bundle: Bundle, goods: Goods = GOODS) -> Path:
    def fill(_: Path) -> None:
        raise AssertionError("a bundle is never filled")

    return bundle.get(goods, fill)


def refused(folder: Path, wanted: Wanted = HERE) -> tuple[str, str]:
    with pytest.raises(SetupError) as caught:
        open_bundle(folder, wanted)
    return caught.value.problem, caught.value.remedy


def test_a_bundle_gives_what_it_has(folder: Path) -> None:
    bundle = open_bundle(folder, HERE)
    assert bundle.has(GOODS)
    assert get(bundle) == folder / GOODS.folder


def test_what_was_made_from_another_state_of_the_checkout(folder: Path) -> None:
    other = replace(GOODS, key="numpy==2.4.7")
    bundle = open_bundle(folder, HERE)
    assert not bundle.has(other)
    with pytest.raises(
        SetupError, match="lacks the Python packages of lab-base as needed here: make it again"
    ):
        get(bundle, other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("missing", "numpy.whl is missing: copy it again"),
        ("damaged", "numpy.whl is damaged: copy it again"),
        ("longer", "numpy.whl is damaged: copy it again"),
        ("extra", "torch.whl does not belong there: remove that file"),
    ],
)
def test_what_was_lost_or_changed_on_the_way(folder: Path, change: str, said: str) -> None:
    path = folder / GOODS.folder / "numpy.whl"
    if change == "missing":
        path.unlink()
    elif change == "damaged":
        path.write_text("numpy.wh1")
    elif change == "longer":
        path.write_text("numpy.whl and more")
    else:
        path.with_name("torch.whl").touch()
    with pytest.raises(SetupError, match=re.escape(said)):
        get(open_bundle(folder, HERE))


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere") == (
        f"there is no bundle in {tmp_path / 'nowhere'} (it has no manifest.json)",
        "set BUNDLE to the folder that `make bundle` wrote, and copy all of it",
    )
    (tmp_path / MANIFEST).write_text('{"format"')
    problem, remedy = refused(tmp_path)
    assert problem.startswith(f"{tmp_path / MANIFEST} can't be read: ")
    assert remedy == "copy the bundle again"
    (tmp_path / MANIFEST).write_text('{"format": 99}')
    assert refused(tmp_path)[0] == f"the bundle {tmp_path} has another format than this version reads"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"tag": "0.2.0"}, "for gpuspawner 0.1.0, and here it is 0.2.0"),
        ({"machine": "aarch64"}, "for machines of the kind x86_64, and here it is aarch64"),
        ({"jupyterhub": "6.2.0"}, "for JupyterHub 6.1.1, and here it is 6.2.0"),
    ],
)
def test_a_bundle_for_something_else(folder: Path, change: dict[str, Any], problem: str) -> None:
    assert refused(folder, replace(HERE, **change)) == (
        f"the bundle {folder} is {problem}",
        f"use one that was made for {next(iter(change.values()))}, or make it again with this checkout "
        "(`make bundle`, where packages can be reached)",
    )


def test_a_bundle_and_a_base_image_exclude_each_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUNDLE", str(folder))
    monkeypatch.setenv("BASE_IMAGE", "debian:trixie")
    with pytest.raises(SetupError, match="BUNDLE and BASE_IMAGE are both set: unset one"):
        choose_stock(read_table())
    monkeypatch.delenv("BUNDLE")
    assert choose_stock(read_table()) == Stock(CACHE)


def test_a_bundle_with_the_other_builds(folder: Path) -> None:
    assert refused(folder, replace(HERE, cuda=True)) == (
        f"the bundle {folder} has the CPU builds, and this machine needs the CUDA builds",
        "set CPU=1 to use it anyway, or make one with `make bundle CPU=0`",
    )
