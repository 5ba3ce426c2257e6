"""Memory cgroups in both versions, as folders with the kernel's files."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpuspawner.core.errors import DeviceFault
from gpuspawner.node.checkpoint.cgroup import Limit, MemoryCgroup, cgroup_of

GIB = 1 << 30
NONE_V1 = 9223372036854771712
"""What v1 shows where there is no limit."""


def v2(top: Path, name: str, limit: int | None, used: int) -> MemoryCgroup:
    folder = top / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text("max" if limit is None else f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    return MemoryCgroup(folder, 2, top)


def v1(top: Path, name: str, limit: int, with_swap: int | None, used: int) -> MemoryCgroup:
    folder = top / name
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    if with_swap is not None:
        (folder / "memory.memsw.limit_in_bytes").write_text(f"{with_swap}\n")
    return MemoryCgroup(folder, 1, top)


def test_v2_is_raised_and_put_back(tmp_path: Path) -> None:
    cgroup = v2(tmp_path, "docker/c", 8 * GIB, GIB)
    own = cgroup.limit()
    cgroup.raise_limit(own, 12 * GIB)
    assert cgroup.limit() == Limit(20 * GIB)
    cgroup.raise_limit(own, 3 * GIB)
    assert cgroup.limit() == Limit(20 * GIB)  # never lowered: that would kill who sleeps
    assert cgroup.put_back(own)
    assert cgroup.limit() == Limit(8 * GIB)


def test_more_in_use_than_the_limit_is_not_put_back(tmp_path: Path) -> None:
    cgroup = v2(tmp_path, "docker/c", 20 * GIB, 9 * GIB)
    assert not cgroup.put_back(Limit(8 * GIB))
    assert cgroup.limit() == Limit(20 * GIB)


def test_v1_raises_the_limit_with_swap_too(tmp_path: Path) -> None:
    cgroup = v1(tmp_path, "docker/c", 8 * GIB, 16 * GIB, GIB)
    own = cgroup.limit()
    assert own == Limit(8 * GIB, 16 * GIB)
    cgroup.raise_limit(own, 4 * GIB)
    assert cgroup.limit() == Limit(12 * GIB, 20 * GIB)
    assert cgroup.put_back(own)
    assert cgroup.limit() == own


@pytest.mark.parametrize("version", [1, 2])
def test_without_a_limit_nothing_is_written(tmp_path: Path, version: int) -> None:
    cgroup = v2(tmp_path, "c", None, GIB) if version == 2 else v1(tmp_path, "c", NONE_V1, NONE_V1, GIB)
    assert cgroup.limit().memory_bytes is None
    before = {path: path.read_text() for path in cgroup.folder.iterdir()}
    cgroup.raise_limit(cgroup.limit(), GIB)
    assert cgroup.put_back(cgroup.limit())
    assert {path: path.read_text() for path in cgroup.folder.iterdir()} == before


def test_the_room_is_the_least_of_the_host_and_the_cgroups_above(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {100 * GIB >> 10} kB\n")
    top = tmp_path / "cgroup"
    inner = v2(top, "class.slice/docker/c", 8 * GIB, GIB)
    v2(top, "class.slice", None, GIB)
    v2(top, "class.slice/docker", None, GIB)
    assert inner.room_bytes(proc) == 100 * GIB
    v2(top, "class.slice", 64 * GIB, 24 * GIB)
    assert inner.room_bytes(proc) == 40 * GIB


def test_pids_are_those_of_all_groups_below(tmp_path: Path) -> None:
    cgroup = v2(tmp_path, "c", None, 0)
    (cgroup.folder / "cgroup.procs").write_text("12\n11\n")
    (cgroup.folder / "inner").mkdir()
    (cgroup.folder / "inner" / "cgroup.procs").write_text("13\n")
    assert cgroup.pids() == (11, 12, 13)


def test_a_cgroup_that_is_gone_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(DeviceFault, match=r"memory\.max can't be read"):
        MemoryCgroup(tmp_path / "gone", 2, tmp_path).limit()


@pytest.mark.parametrize(
    ("text", "folder", "version"),
    [
        ("0::/docker/c\n", "docker/c", 2),
        ("9:name=systemd:/\n4:memory:/docker/c\n0::/\n", "memory/docker/c", 1),
        ("4:cpu,memory:/docker/c\n", "memory/docker/c", 1),
    ],
)
def test_the_cgroup_of_a_process(tmp_path: Path, text: str, folder: str, version: int) -> None:
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "7").mkdir(parents=True)
    (proc / "7" / "cgroup").write_text(text)
    assert cgroup_of(7, proc, root) is None  # no such folder
    (root / folder).mkdir(parents=True)
    (root / folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).write_text("1")
    found = cgroup_of(7, proc, root)
    assert found is not None
    assert (found.folder, found.version) == (root / folder, version)
    assert cgroup_of(8, proc, root) is None
