"""A hub as a process: free ports, names of its own in Docker, start and end. For tests and benchmarks."""

from __future__ import annotations

import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from weakref import WeakKeyDictionary

import psutil

END_SECONDS = 30.0
_STATE = "GPUSPAWNER_STATE_DIR"
_states: WeakKeyDictionary[subprocess.Popen[bytes], str] = WeakKeyDictionary()
"""The state folder of each hub that was started here."""


def free_ports(count: int = 4) -> int:
    """The first of `count` ports of the loopback in a row on which nobody listens: a hub takes four."""
    for _ in range(100):
        first = 20_000 + secrets.randbelow(12_000)  # below the range that the kernel gives out
        with ExitStack() as probes, suppress(OSError):
            for port in range(first, first + count):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise RuntimeError(f"no {count} free ports in a row between 20000 and 32000")


def own_subnet() -> str:
    """A subnet that another run beside this one hardly has."""
    return f"10.{220 + secrets.randbelow(30)}.{secrets.randbelow(256)}.0/24"


def own_settings(folder: Path) -> dict[str, str]:
    """What `jupyterhub_config.py` reads, for a hub that clashes with no other on this machine."""
    return {
        "GPUSPAWNER_PORT": str(free_ports()),
        "GPUSPAWNER_STATE_DIR": str(folder),
        "GPUSPAWNER_PASSWORD": secrets.token_hex(16),
        "GPUSPAWNER_ADMIN_PASSWORD": secrets.token_hex(24),
        "GPUSPAWNER_NAME": f"gpuspawner-t{secrets.token_hex(3)}",
        "GPUSPAWNER_SUBNET": own_subnet(),
    }


def start_hub(
    config: Path, folder: Path, environment: Mapping[str, str], log: Path, open_files: int = 0
) -> subprocess.Popen[bytes]:
    """`jupyterhub -f config` in `folder`, the leader of a process group of its own, writing to `log`.

    It starts with the soft limit `open_files`; 0: this process's own.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, hard))

    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterhub", "-f", str(config)],
            cwd=folder,
            env={**os.environ, **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=limit if open_files else None,
        )
    _states[process] = environment.get(_STATE, "")
    return process


def end_hub(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, as Ctrl-C or systemd would; then SIGKILL for what is left of all that it started.

    Proxy and services are in sessions of their own. Those of a hub that was killed before were left to init:
    they are those with its state folder in their environment.
    """
    started: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(5)
    folder = _states.pop(process, "")
    for _ in range(5):  # the keeper may just be starting another broker
        for left in (*started, *_with_state(folder)):
            with suppress(psutil.NoSuchProcess):
                left.kill()


def _with_state(folder: str) -> list[psutil.Process]:
    """The processes of this state folder, but for our own and those above it."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter() if folder else ():
        with suppress(psutil.Error, OSError):
            if process.pid not in own and process.environ().get(_STATE) == folder:
                found.append(process)
    return found
