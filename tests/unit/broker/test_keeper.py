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
from gpuspawner.broker import keeper as keeper_module

from tests.soon import SOON_SECONDS

KEEPER = """
import sys
from gpuspawner.broker import keeper
keeper.SHORT_SECONDS = {short}
keeper.FIRST_PAUSE_SECONDS = {pause}
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
RAISES = f"""
if number < 3:
    raise RuntimeError("a bug")
{WAITS}
"""


@contextmanager
def kept(
    folder: Path, then: str, short: float = 0.0, pause: float = 60.0
) -> Iterator[subprocess.Popen[bytes]]:
    folder.mkdir()
    broker = BROKER.replace("{then}", then)
    code = KEEPER.format(broker=broker, folder=str(folder), short=short, pause=pause)
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
    deadline = time.monotonic() + SOON_SECONDS
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
        assert keeper.wait(2 * SOON_SECONDS) == 0
        assert len(brokers(folder)) == 3


def test_a_broker_that_was_asked_to_end_ends_its_keeper(tmp_path: Path) -> None:
    with kept(tmp_path / "brokers", "") as keeper:
        assert keeper.wait(2 * SOON_SECONDS) == 0


def test_settings_that_cannot_work_end_the_keeper(tmp_path: Path) -> None:
    """Nobody has run with them: the hub says so, and starting again would change nothing."""
    folder = tmp_path / "brokers"
    with kept(folder, "sys.exit(78)", short=60.0, pause=0.0) as keeper:
        assert keeper.wait(2 * SOON_SECONDS) == 78
        assert len(brokers(folder)) == 1


def test_a_slow_start_with_such_settings_is_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "brokers"
    with kept(folder, "sys.exit(78)", short=0.0, pause=0.0) as keeper:
        assert keeper.wait(2 * SOON_SECONDS) == 78
        assert len(brokers(folder)) == 1


@pytest.mark.parametrize("end", ["sys.exit(1)", "raise RuntimeError('a bug')", "os.abort()"])
def test_a_broker_that_ends_unasked_is_started_again(tmp_path: Path, end: str) -> None:
    folder = tmp_path / "brokers"
    with kept(folder, f"{end} if number < 3 else {WAITS}" if "raise" not in end else RAISES) as keeper:
        assert [arguments for _, arguments in wait_for(folder, 4)] == [
            "--config x --take-over", *["--config x"] * 3,
        ]  # fmt: skip
        keeper.send_signal(signal.SIGTERM)
        assert keeper.wait(2 * SOON_SECONDS) == 0


def test_settings_that_cannot_work_any_more_are_tried_a_few_times(tmp_path: Path) -> None:
    """One ran before: somebody may be writing the file just now."""
    folder = tmp_path / "brokers"
    with kept(folder, "sys.exit(1 if number == 0 else 78)") as keeper:
        assert keeper.wait(2 * SOON_SECONDS) == 78
        assert len(brokers(folder)) == 1 + 5


def test_a_broker_that_ends_soon_is_not_started_again_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "brokers"
    with kept(folder, "os.kill(os.getpid(), signal.SIGSEGV)", short=60.0) as keeper:
        wait_for(folder, 1)
        time.sleep(1)
        assert len(brokers(folder)) == 1
        keeper.send_signal(signal.SIGINT)
        assert keeper.wait(2 * SOON_SECONDS) == 128 + signal.SIGSEGV


def test_the_pauses_grow_up_to_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a broker has lived for a while: then the next one comes at once."""
    pauses: list[float] = []
    lives = iter([*[1.0] * 9, 100.0, 1.0])
    clock = [0.0]

    class Broker:
        def __init__(self, command: list[str]) -> None:
            pass

        def wait(self) -> int:
            try:
                clock[0] += next(lives)
            except StopIteration:
                return 0
            return 1

    monkeypatch.setattr(keeper_module.subprocess, "Popen", Broker)
    monkeypatch.setattr(keeper_module.signal, "signal", lambda *_: None)
    monkeypatch.setattr(keeper_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(keeper_module.Keeper, "_wait", lambda _, seconds: pauses.append(seconds))
    assert keeper_module.Keeper([]).run() == 0
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 0.0, 1.0]
