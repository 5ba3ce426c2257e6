"""What driver versions can do, the sleep book, and which processes may use CUDA."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpuspawner.core.errors import LedgerFault
from gpuspawner.node.checkpoint.book import SleepBook, Slept
from gpuspawner.node.checkpoint.census import Census
from gpuspawner.node.checkpoint.cgroup import Limit
from gpuspawner.node.checkpoint.outcome import Condition, Obstacle, Outcome
from gpuspawner.node.checkpoint.rules import Abilities, abilities


@pytest.mark.parametrize(
    ("version", "found"),
    [
        ("580.159.04", Abilities(can_move=True)),
        ("575.57.08", Abilities()),
        ("595.71.05", Abilities(can_move=True, checkpoint_before_kill=True)),
        ("610.57.04", Abilities(can_move=True, nccl=True)),
        ("615.10", Abilities(can_move=True, nccl=True, custom_storage=True)),
        ("565.57.01", Abilities("Driver 565.57.01 can't move a program's GPU memory: install 580 or newer")),
        (None, Abilities("The version of the NVIDIA driver is not available: install driver 580 or newer")),
        ("x", Abilities("The version of the NVIDIA driver is not available: install driver 580 or newer")),
    ],
)
def test_abilities(version: str | None, found: Abilities) -> None:
    assert abilities(version) == found


def test_mig_and_mps_and_several_gpus_before_575() -> None:
    assert "MIG" in abilities("580.1", mig=True).obstacle
    assert "MPS" in abilities("580.1", mps=True).obstacle
    assert abilities("570.86.15", gpu_count=1) == Abilities()
    assert "several GPUs" in abilities("570.86.15", gpu_count=2).obstacle


def test_the_book_outlives_its_process(tmp_path: Path) -> None:
    path = tmp_path / "state" / "asleep.json"
    book = SleepBook(path)
    book.note("c1", Limit(8), {(1, 10): Slept("GPU-a", 5), (2, 20): Slept("GPU-b", 6)})
    book.note(
        "c1", Limit(99), {(1, 10): Slept("GPU-b", 7)}
    )  # the limit that was raised already is not its own
    again = SleepBook(path)
    assert (again.slept((1, 10)), again.slept((2, 20))) == (Slept("GPU-b", 7), Slept("GPU-b", 6))
    assert again.limit("c1") == Limit(8)
    again.keep({(2, 20)}, {"c1"})
    again.clear_limit("c1")
    last = SleepBook(path)
    assert (last.slept((1, 10)), last.slept((2, 20)), last.limit("c1")) == (None, Slept("GPU-b", 6), None)


def test_a_damaged_book_is_said(tmp_path: Path) -> None:
    path = tmp_path / "asleep.json"
    path.write_text("{")
    with pytest.raises(LedgerFault, match="can't be read"):
        SleepBook(path)


def test_a_process_that_maps_the_library_is_found_and_remembered(tmp_path: Path) -> None:
    """A file by that name is mapped, as the driver's library is."""
    library = tmp_path / "libcuda.so.1"
    library.write_bytes(b"x" * 4096)
    code = (
        "import mmap, sys; file = open(sys.argv[1], 'rb'); "
        "shown = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ); print(1, flush=True); input(); "
        "shown.close(); print(2, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(library)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        census = Census()
        assert [each.pid for each in census.look([process.pid, os.getpid(), 1 << 22])] == [process.pid]
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        (known,) = census.look([process.pid])
        assert Census().look([process.pid]) == ()
        census.forget([])
        assert census.look([process.pid]) == ()
        assert known.pid == process.pid
        process.kill()


def test_outcomes_say_why() -> None:
    assert all(Outcome(Condition.AWAKE, obstacle).sentence.endswith(".") for obstacle in Obstacle)
    assert (
        Outcome(Condition.ASLEEP, seconds=1.5, moved_bytes=3 << 30).log_text()
        == "asleep after 1.500 s, 3.0 GiB"
    )
    busy = Outcome(Condition.AWAKE, Obstacle.BUSY, "lock: X pid 1", 0.5)
    assert busy.log_text() == "awake: busy (lock: X pid 1) after 0.500 s"
    assert (busy.done, Outcome(Condition.ASLEEP).sentence) == (False, "")
