"""images/wheels.py: whether pip offers a package is asked of pip, as the machine has it set up."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from images import wheels
from images.wheels import Target, build_source, offers
from setup.steps import SetupError, step

from .packageindex import add_source, add_wheel, served

TARGET = Target(python="3.11", glibc="2.36")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for an index, and pip with no settings but those of the test."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(wheels, "OFFER_SECONDS", 120.0)  # what is offered is not to hang on a busy machine
    folder = tmp_path / "index"
    folder.mkdir()
    return folder


def test_offered_or_not(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_wheel(index, "made-up", "1.0")
    add_source(index, "as-source", "1.0")
    with served(index) as address:
        monkeypatch.setenv("PIP_INDEX_URL", address)
        offered = {
            name: offers(name, TARGET) for name in ("made-up==1.0", "made-up==2.0", "as-source", "none")
        }
    assert offered == {"made-up==1.0": True, "made-up==2.0": False, "as-source": False, "none": False}


def test_no_answer_is_a_no(monkeypatch: pytest.MonkeyPatch, index: Path) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    assert not offers("made-up", TARGET)


def test_silence_is_a_no_too_and_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, index: Path) -> None:
    """pip is ended when its time is over, whatever it waits for."""
    monkeypatch.setattr(wheels, "OFFER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        started = time.monotonic()
        assert not offers("made-up", TARGET)
        assert time.monotonic() - started >= 0.5  # given up, and not refused


def test_source_becomes_a_wheel_and_a_wheel_is_left_to_the_download(
    index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    add_source(index, "as-source", "1.0")
    add_wheel(index, "made-up", "1.0")
    with served(index) as address, step("test") as current:
        monkeypatch.setenv("PIP_INDEX_URL", address)
        build_source(["as-source==1.0", "made-up==1.0"], TARGET, tmp_path, current)
        assert [path.name for path in tmp_path.glob("*.whl")] == ["as_source-1.0-py3-none-any.whl"]
        with pytest.raises(SetupError, match="No matching distribution found for none==1"):
            build_source(["none==1"], TARGET, tmp_path, current)
