"""How many files the running hub and broker may have open, and how many waiting users that is enough for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...config.open_files import waiting_users
from ...core.finding import Finding, Level

FEW_USERS = 1000
"""Fewer than this are named: a limit that nobody chose."""


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """A running process: "hub" or "broker", its pid, and its soft limit of open files."""

    name: str
    pid: int
    limit: int


def read_open_files(state_dir: Path, proc: Path = Path("/proc")) -> tuple[OpenFiles, ...]:
    """The broker of this state folder, and the hub above it, if they run and may be read.

    The broker's pid is in its lock file; the hub is one of its ancestors where the hub started it.
    """
    try:
        pid = int((state_dir / "broker.lock").read_text().strip())
    except (OSError, ValueError):
        return ()
    found = []
    with suppress(OSError, ValueError, IndexError):  # it ends meanwhile, or belongs to somebody else
        found.append(OpenFiles("broker", pid, _limit(proc / str(pid))))
        while (pid := _parent(proc / str(pid))) > 1:
            if b"jupyterhub" in (proc / str(pid) / "cmdline").read_bytes():
                found.append(OpenFiles("hub", pid, _limit(proc / str(pid))))
                break
    return tuple(found)


def open_files_findings(processes: tuple[OpenFiles, ...]) -> Iterator[Finding]:
    """One finding for each process whose limit is enough for few waiting users only."""
    for each in processes:
        users = waiting_users(each.limit)
        if users < FEW_USERS:
            yield Finding(
                Level.NOTE,
                "Open files",
                f"the {each.name} (process {each.pid}) may have {each.limit} files open: enough for about "
                f"{users} users who wait at the same time",
                "Raise the hard limit where it is started: LimitNOFILE=65536 in its systemd unit, or "
                "`ulimit -n 65536`; then restart it",
            )


def _limit(folder: Path) -> int:
    for line in (folder / "limits").read_text().splitlines():
        if line.startswith("Max open files"):
            soft = line.split()[3]
            return int(soft) if soft != "unlimited" else 1 << 30
    raise ValueError(f"no limit of open files in {folder}/limits")


def _parent(folder: Path) -> int:
    # proc_pid_stat(5): the name is in brackets and may hold anything; state and parent follow it.
    return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
