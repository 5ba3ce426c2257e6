"""Whose a process is, in every form of cgroups; and that only that very process ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpuspawner.node.processes import (
    Outcome,
    Process,
    ProcessTable,
    container_ids,
    ending_obstacle,
    wait_ended,
)

A, B = "a1" * 32, "b2" * 32


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"0::/docker/{A}\n", (A,)),
        (f"0::/system.slice/docker-{A}.scope\n", (A,)),
        (f"0::/../docker-{A}.scope\n", (A,)),
        (f"0::/docker/{A}/user/app\n", (A,)),
        (f"0::/docker/{A}/docker/{B}\n", (A, B)),
        (f"0::/system.slice/docker-{A}.scope/init.scope\n", (A,)),
        (f"0::/machine.slice/libpod-{A}.scope\n", (A,)),
        (f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{A}.scope\n", (A,)),
        (f"12:memory:/docker/{A}\n11:cpuset:/docker/{A}\n1:name=systemd:/docker/{A}\n0::/\n", (A,)),
        (f"4:memory:/sandbox/{A}/docker/{B}\n3:cpu:/\n", (A, B)),
        (f"2:cpu,cpuacct:/docker/{A}\n1:memory:/docker/{B}\n", ()),
        ("0::/\n", ()),
        ("", ()),
        ("0::/user.slice/user-1000.slice/session-1.scope\n", ()),
        (f"0::/docker/{A[:-1]}\n", ()),
        (f"0::/docker/{A}0\n", ()),
        (f"0::/docker/x{A}\n", ()),
        (f"0::/docker/{A}.service\n", ()),
        (f"0::/docker/{A.upper()}\n", ()),
        (f"0::/a:b/docker/{A}\n", (A,)),
    ],
)
def test_the_containers_in_a_cgroup(text: str, found: tuple[str, ...]) -> None:
    assert container_ids(text) == found


def test_the_outermost_of_ours_else_the_innermost() -> None:
    process = Process(1, 1, "x", (A, B))
    assert [process.container(ours) for ours in ({A, B}, {B}, {A}, ())] == [A, B, A, B]
    assert Process(1, 1, "x").container({A}) is None


def write(proc: Path, pid: int, name: bytes, start: int, cgroup: str, state: str = "S") -> Path:
    folder = proc / str(pid)
    folder.mkdir(exist_ok=True)
    fields = [state, *(["0"] * 18), str(start), *(["0"] * 30)]
    (folder / "stat").write_bytes(b"%d (%s) %s\n" % (pid, name, " ".join(fields).encode()))
    (folder / "cgroup").write_text(cgroup)
    return folder


def test_a_process_as_proc_tells_it(tmp_path: Path) -> None:
    write(tmp_path, 7, b"a) S 1 2 (b\n\xff<i>", 4711, f"0::/docker/{A}\n")
    assert ProcessTable(tmp_path).look(7) == Process(7, 4711, "a) S 1 2 (b??<i>", (A,))
    assert ProcessTable(tmp_path).look(8) is None


def test_a_reused_pid_is_looked_up_anew_and_a_known_one_is_not(tmp_path: Path) -> None:
    table = ProcessTable(tmp_path)
    write(tmp_path, 7, b"one", 1, f"0::/docker/{A}\n")
    first = table.look(7)
    write(tmp_path, 7, b"one", 1, f"0::/docker/{B}\n")
    assert table.look(7) is first
    write(tmp_path, 7, b"two", 2, f"0::/docker/{B}\n")
    assert table.look(7) == Process(7, 2, "two", (B,))
    table.look_all([])
    write(tmp_path, 7, b"two", 2, f"0::/docker/{A}\n")
    assert table.look(7) == Process(7, 2, "two", (A,))


def test_one_on_its_way_into_a_container_is_looked_up_again(tmp_path: Path) -> None:
    table = ProcessTable(tmp_path)
    write(tmp_path, 7, b"runc", 1, "0::/system.slice/containerd.service\n")
    assert table.look(7) == Process(7, 1, "runc")
    write(tmp_path, 7, b"python3", 1, f"0::/docker/{A}\n")
    assert table.look(7) == Process(7, 1, "python3", (A,))


def test_a_process_whose_first_thread_has_ended(tmp_path: Path) -> None:
    folder = write(tmp_path, 7, b"hidden", 1, "4:memory:/\n0::/\n", state="Z")
    for thread, cgroup in ((7, "4:memory:/\n"), (8, f"4:memory:/docker/{A}\n0::/\n")):
        (folder / "task" / str(thread)).mkdir(parents=True)
        (folder / "task" / str(thread) / "cgroup").write_text(cgroup)
    assert ProcessTable(tmp_path).look(7) == Process(7, 1, "hidden", (A,))


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_exactly_this_process_ends(child: subprocess.Popen[bytes]) -> None:
    table = ProcessTable()
    process = table.look(child.pid)
    assert process is not None
    assert table.end(process) is Outcome.ENDED
    assert child.wait(5) == -signal.SIGKILL
    assert table.end(process) is Outcome.GONE


@pytest.mark.parametrize("change", ["start_ticks", "container_ids"])
def test_another_process_under_the_pid_lives(child: subprocess.Popen[bytes], change: str) -> None:
    table = ProcessTable()
    now = table.look(child.pid)
    assert now is not None
    other = {
        "start_ticks": Process(now.pid, now.start_ticks - 1, now.name, now.container_ids),
        "container_ids": Process(now.pid, now.start_ticks, now.name, (A,)),
    }[change]
    assert table.end(other) is Outcome.ANOTHER
    assert child.poll() is None


def test_who_may_not_end_it_is_told(child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    table = ProcessTable()
    process = table.look(child.pid)
    assert process is not None
    assert table.end(process) is Outcome.REFUSED
    assert child.poll() is None


def test_a_held_process_is_not_read_again_until_it_ends(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = ProcessTable()
    monkeypatch.setattr(table, "_cgroup", lambda *_: f"0::/docker/{A}\n")
    before = len(os.listdir("/proc/self/fd"))
    first = table.look_all([child.pid, 2**22 - 3])
    assert [(pid, each.container_ids) for pid, each in first.items()] == [(child.pid, (A,))]
    monkeypatch.setattr(table, "look", lambda pid: pytest.fail("read again"))
    assert table.look_all([child.pid])[child.pid] is first[child.pid]
    monkeypatch.undo()
    child.kill()
    child.wait()
    assert table.look_all([child.pid]) == {}
    assert len(os.listdir("/proc/self/fd")) == before


def test_held_processes_are_let_go(child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    table = ProcessTable()
    monkeypatch.setattr(table, "_cgroup", lambda *_: f"0::/docker/{A}\n")
    before = len(os.listdir("/proc/self/fd"))
    for let_go in (lambda: table.look_all([]), table.close):
        assert table.look_all([child.pid])
        assert len(os.listdir("/proc/self/fd")) == before + 1
        let_go()
        assert len(os.listdir("/proc/self/fd")) == before


def test_without_descriptors_it_is_read_each_time(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(_: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", exhausted)
    table = ProcessTable()
    assert table.look_all([child.pid]) == {child.pid: table.look(child.pid)}


def test_no_descriptor_is_left_open(child: subprocess.Popen[bytes]) -> None:
    table = ProcessTable()
    process = table.look(child.pid)
    assert process is not None
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        table.end(Process(process.pid, 1, "x"))
        table.look(process.pid)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_right_to_end_processes(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapEff:\t0000000000000020\n")
    assert ending_obstacle(status) == ""
    status.write_text("Name:\tx\nCapEff:\t00000000a80425db\n")
    refusal = (
        "The broker has no permission to end processes of containers: run it as root, or give it CAP_KILL"
    )
    assert ending_obstacle(status) == refusal
    assert ending_obstacle(tmp_path / "missing") == refusal


async def test_waiting_for_ends(child: subprocess.Popen[bytes]) -> None:
    process = ProcessTable().look(child.pid)
    assert process is not None
    before = len(os.listdir("/proc/self/fd"))
    assert not await wait_ended([process], 0.1)
    another = Process(process.pid, process.start_ticks - 1, "x")  # its pid belongs to somebody else by now
    assert await wait_ended([another], 5)
    asyncio.get_running_loop().call_later(0.1, child.kill)
    assert await wait_ended([process, another], 5)
    child.wait()
    assert await wait_ended([process], 5)
    assert len(os.listdir("/proc/self/fd")) == before
