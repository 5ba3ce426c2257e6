"""One broker for each state folder: the lock, and taking over from the one that has it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpuspawner.broker import lock as module
from gpuspawner.broker.lock import BrokerLock
from gpuspawner.core.errors import ConfigError

HOLD = """
import signal, sys, time
from pathlib import Path
from gpuspawner.broker.lock import BrokerLock
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
BrokerLock(Path(sys.argv[1])).acquire(take_over=False)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock; the parameter says whether SIGTERM ends it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    kind = getattr(request, "param", "obedient")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), kind], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_lock_holds_its_owners_pid_until_it_is_given_back(tmp_path: Path) -> None:
    lock = BrokerLock(tmp_path)
    lock.acquire(take_over=False)
    assert (tmp_path / "broker.lock").read_text() == f"{os.getpid()}\n"
    lock.release()
    lock.release()
    assert (tmp_path / "broker.lock").read_text() == ""


def test_a_held_lock_names_its_owner(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(ConfigError, match=rf"already \(process {holder.pid}\): stop it first"):
        BrokerLock(tmp_path).acquire(take_over=False)
    assert holder.poll() is None


def test_taking_over_ends_the_owner(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    lock = BrokerLock(tmp_path)
    lock.acquire(take_over=True)
    assert holder.wait(5) == -signal.SIGTERM
    lock.release()


@pytest.mark.parametrize("holder", ["deaf"], indirect=True)
def test_an_owner_that_does_not_end_is_named(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TAKE_OVER_SECONDS", 0.3)
    with pytest.raises(ConfigError, match=rf"process {holder.pid}\) does not end: end it with 'kill -9'"):
        BrokerLock(tmp_path).acquire(take_over=True)


def test_a_killed_owner_leaves_no_lock(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait(5)
    lock = BrokerLock(tmp_path)
    lock.acquire(take_over=False)
    lock.release()


@pytest.mark.parametrize("text", ["", "0\n", "1\n", "-5\n", "x" * 40, "12 34"])
def test_what_is_no_pid_is_never_signalled(tmp_path: Path, text: str) -> None:
    (tmp_path / "f").write_text(text)
    file = os.open(tmp_path / "f", os.O_RDONLY)
    assert module._read_pid(file) is None
    os.close(file)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be opened: No such file or directory"):
        BrokerLock(tmp_path / "nowhere").acquire(take_over=False)
