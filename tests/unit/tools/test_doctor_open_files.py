"""Doctor looks at the limit of open files of the broker, and of the hub above it."""

from __future__ import annotations

from pathlib import Path

from gpuspawner.core.finding import Finding, Level
from gpuspawner.tools.doctor.open_files import OpenFiles, open_files_findings, read_open_files


def put(proc: Path, pid: int, parent: int, command: str, limit: str) -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "stat").write_text(f"{pid} (odd ) name) S {parent} 1 1 0")
    (folder / "cmdline").write_bytes(command.replace(" ", "\0").encode())
    (folder / "limits").write_text(
        f"Limit   Soft Limit  Hard Limit  Units\nMax open files   {limit}   1048576   files\n"
    )


def test_the_broker_and_the_hub_that_started_it(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    put(proc, 30, 20, "python -m gpuspawner.broker", "65536")
    put(proc, 20, 10, "python -m gpuspawner.broker.keeper", "1024")
    put(proc, 10, 1, "python -m jupyterhub -f x.py", "unlimited")
    (tmp_path / "broker.lock").write_text("30\n")
    assert read_open_files(tmp_path, proc) == (
        OpenFiles("broker", 30, 65_536),
        OpenFiles("hub", 10, 1 << 30),
    )


def test_under_systemd_the_hub_is_not_above_the_broker(tmp_path: Path) -> None:
    put(tmp_path / "proc", 30, 1, "gpuspawner broker", "1024")
    (tmp_path / "broker.lock").write_text("30\n")
    assert read_open_files(tmp_path, tmp_path / "proc") == (OpenFiles("broker", 30, 1024),)


def test_no_broker_or_one_that_ended(tmp_path: Path) -> None:
    assert read_open_files(tmp_path) == ()
    (tmp_path / "broker.lock").write_text("30\n")
    assert read_open_files(tmp_path, tmp_path / "proc") == ()


def test_a_low_limit_is_said_with_what_to_do() -> None:
    low, high = OpenFiles("hub", 10, 1024), OpenFiles("broker", 30, 65_536)
    assert list(open_files_findings((low, high))) == [
        Finding(
            Level.NOTE,
            "Open files",
            "the hub (process 10) may have 1024 files open: enough for about 412 users who wait at the same "
            "time",
            "Raise the hard limit where it is started: LimitNOFILE=65536 in its systemd unit, or "
            "`ulimit -n 65536`; then restart it",
        )
    ]
