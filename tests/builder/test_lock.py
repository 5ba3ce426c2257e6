"""`make lock` on a package index of the test's own: what is resolved, and what is kept and said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from images import lock, table

from .conftest import lines
from .packageindex import add_source, add_wheel, served

TOML = """
tag = "1"
default = "low"
[base]
pull = "127.0.0.1:9/none:1"
packages = []
[[image]]
name = "low"
title = "Low"
from = "base"
cuda = ""
min_driver = ""
needs_gpu = false
lock = "requirements.lock"
[[image]]
name = "high"
title = "High"
from = "low"
cuda = "13.0"
min_driver = "580"
needs_gpu = true
lock = "requirements.lock"
source = ["as-source"]
elsewhere = ["only-there"]
"""
HIGH = f"{lock.HEAD}as-source==1.0\nonly-there==3.0\n"


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images with their requirements, and an old lock of the upper one."""
    folder = tmp_path / "images"
    for name, wanted in (("low", "plain>=1\n"), ("high", "as-source==1.0\nonly-there==3.0\n")):
        (folder / name).mkdir(parents=True)
        (folder / name / "requirements.in").write_text(wanted)
    (folder / "high" / "requirements.lock").write_text("as-source==0.9\nonly-there==2.0\n")
    (folder / "images.toml").write_text(TOML)
    read = table.read_table
    monkeypatch.setattr(table, "IMAGES_DIR", folder)
    monkeypatch.setattr(lock, "IMAGES_DIR", folder)
    monkeypatch.setattr(lock, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(lock, "read_table", lambda: read(folder / "images.toml"))
    return folder


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The public index, the only one that pip is set up with."""
    folder = tmp_path / "index"
    add_wheel(folder, "plain", "1.0")
    add_wheel(folder, "plain", "1.2")
    add_source(folder, "as-source", "1.0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    with served(folder) as address:
        monkeypatch.setenv("PIP_INDEX_URL", address)
        yield folder


def test_what_cannot_be_reached_keeps_its_lock(
    images: Path, index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (images / "high" / "requirements.lock").read_text()
    assert lock.main() == 0
    assert lines(capsys) == [
        "– base image: kept without a digest: pulled by its tag, as 127.0.0.1:9/none:1 can't be looked up in "
        "its registry",
        "✓ image low: 1 packages",
        "– image high: kept unchanged: NVIDIA's package index can't be reached (no only-there==3.0)",
    ]
    assert (images / "low" / "requirements.lock").read_text() == f"{lock.HEAD}plain==1.2\n"
    assert (images / "high" / "requirements.lock").read_text() == before
    assert not (images / "base.lock").exists()


def test_what_can_be_reached_is_resolved(
    images: Path,
    index: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_wheel(tmp_path / "other", "only-there", "3.0")
    with served(tmp_path / "other") as address:
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", address)
        assert lock.main() == 0
    assert lines(capsys)[-1] == "✓ image high: 2 packages"
    assert (images / "high" / "requirements.lock").read_text() == HIGH


def test_what_does_not_go_together_is_said(
    images: Path, index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "low" / "requirements.in").write_text("plain>=2\n")
    assert lock.main() == 1
    assert "✗ pip finds no versions that fit together" in capsys.readouterr().err
