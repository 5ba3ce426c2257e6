"""Whether the engine may raise limits, with a real socket and a made-up /proc."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpuspawner.hub.engine_rights import may_raise_limits


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield f"unix://{path}"


def make_proc(folder: Path, status: str) -> Path:
    (folder / str(os.getpid())).mkdir()
    (folder / str(os.getpid()) / "status").write_text(status)
    return folder


@pytest.mark.parametrize(
    ("status", "may"),
    [
        ("Name:\tdockerd\nCapEff:\t000001ffffffffff\n", True),
        ("Name:\tdockerd\nCapEff:\t0000000001000000\n", True),
        ("Name:\tdockerd\nCapEff:\t00000000a80425fb\n", False),
        ("", True),
    ],
)
def test_what_the_process_behind_the_socket_may(tmp_path: Path, address: str, status: str, may: bool) -> None:
    assert may_raise_limits({}, address, make_proc(tmp_path, status)) is may


def test_an_engine_that_cant_be_looked_at_is_trusted(tmp_path: Path, address: str) -> None:
    assert may_raise_limits({}, address, tmp_path)
    assert may_raise_limits({}, f"unix://{tmp_path}/none", tmp_path)
    assert may_raise_limits({}, "tcp://10.0.0.1:2376", tmp_path)


def test_a_rootless_engine_may_not(tmp_path: Path, address: str) -> None:
    proc = make_proc(tmp_path, "CapEff:\t000001ffffffffff\n")
    assert not may_raise_limits({"SecurityOptions": ["name=seccomp", "name=rootless"]}, address, proc)
