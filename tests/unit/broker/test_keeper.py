"""The broker's keeper: which end of its broker is the end, and which starts another."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

KEEPER = """
import sys
from gpuspawner.broker import keeper
keeper.SHORT_SECONDS = {short}
command = [sys.executable, "-c", {broker!r}, {folder!r}]
sys.exit(keeper.Keeper(["--config", "x", "--take-over"], command).run())
"""
# Writes its arguments into a file of its own, then does as it is told.
BROKER = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
number = len(list(folder.iterdir()))
(folder / "new").write_text(f"{os.getpid()} {' '.join(sys.argv[2:])}")
(folder / "new").rename(folder / str(number))
{then}
"""
WAITS = "time.sleep(60)"


@contextmanager
def kept(folder: Path, then: str, short: float = 0.0) -> Iterator[subprocess.Popen[bytes]]:
    folder.mkdir()
    code = KEEPER.format(broker=BROKER.replace("{then}", then), folder=str(folder), short=short)
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pid, _ in brokers(folder):
            subprocess.run(["kill", "-9", str(pid)], check=False, stderr=subprocess.DEVNULL)


def brokers(folder: Path) -> list[tuple[int, str]]:
    """Pid and arguments of each that was started, in that order."""
    texts = [(folder / str(number)).read_text() for number in range(len(list(folder.glob("[0-9]*"))))]
    return [(int(text.partition(" ")[0]), text.partition(" ")[2]) for text in texts]


def wait_for(folder: Path, count: int) -> list[tuple[int, str]]:
    deadline = time.monotonic() + 20
    while len(found := brokers(folder)) < count:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def test_a_broker_that_is_killed_is_started_again_and_takes_nothing_over(tmp_path: Path) -> None:
    folder = tmp_path / "brokers"
    with kept(folder, WAITS) as keeper:
        for count in (1, 2):
            subprocess.run(["kill", "-9", str(wait_for(folder, count)[-1][0])], check=True)
        assert [arguments for _, arguments in wait_for(folder, 3)] == [
            "--config x --take-over", "--config x", "--config x",
        ]  # fmt: skip
        keeper.send_signal(signal.SIGTERM)
        assert keeper.wait(20) == 0
        assert len(brokers(folder)) == 3


@pytest.mark.parametrize(("then", "status"), [("sys.exit(3)", 3), ("", 0)])
def test_a_broker_that_ends_by_itself_ends_its_keeper(tmp_path: Path, then: str, status: int) -> None:
    """The hub says so, and starts both again when it sees fit: 3 may be settings that can't work."""
    with kept(tmp_path / "brokers", then) as keeper:
        assert keeper.wait(20) == status


def test_a_broker_that_is_killed_soon_is_not_started_again_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "brokers"
    with kept(folder, "os.kill(os.getpid(), signal.SIGSEGV)", short=60.0) as keeper:
        wait_for(folder, 1)
        time.sleep(1)
        assert len(brokers(folder)) == 1
        keeper.send_signal(signal.SIGINT)
        assert keeper.wait(20) == 128 + signal.SIGSEGV
