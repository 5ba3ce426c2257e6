"""images/lab-base/gpuspawner_notice.py: a notice is shown each time it changed, and only then."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from setup.steps import ROOT
from tests.soon import SOON_SECONDS


@pytest.fixture
def module() -> Any:
    """The extension as a module; it is no part of the package."""
    path = ROOT / "images" / "lab-base" / "gpuspawner_notice.py"
    spec = importlib.util.spec_from_file_location("gpuspawner_notice", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_each_change_is_shown_once(module: Any, tmp_path: Path) -> None:
    path = tmp_path / "notice"
    notice = module.Notice(path)
    seen = [notice.unseen()]
    for text in ("lost", None, "back", "  \n", None, "lost"):
        if text is not None:
            other = tmp_path / "new"  # replaced as a whole, as the broker does
            other.write_text(text)
            other.rename(path)
        seen.append(notice.unseen())
    assert seen == [None, "lost", None, "back", "", None, "lost"]


def test_a_notice_that_goes_and_comes_back_is_shown_again(module: Any, tmp_path: Path) -> None:
    path = tmp_path / "notice"
    notice = module.Notice(path)
    path.write_text("lost")
    first = notice.unseen()
    path.unlink()
    between = notice.unseen()
    path.write_text("lost")
    assert (first, between, notice.unseen()) == ("lost", "", "lost")


def test_one_that_was_empty_all_along_shows_nothing(module: Any, tmp_path: Path) -> None:
    path = tmp_path / "notice"
    path.write_text("")
    notice = module.Notice(path)
    assert [notice.unseen(), notice.unseen()] == [None, None]


def test_a_huge_or_strange_notice_disturbs_no_cell(module: Any, tmp_path: Path) -> None:
    path = tmp_path / "notice"
    path.write_bytes(b"\xff" * 100_000)
    assert module.Notice(path).unseen() == "�" * 4096
    assert module.Notice(tmp_path).unseen() is None  # a folder, where a file is expected


@pytest.mark.parametrize(("before", "after"), [("500\n", "900"), ("0\n", "400"), ("800\n", "1000")])
def test_a_kernel_is_ended_before_the_lab_s_server(
    module: Any, tmp_path: Path, before: str, after: str
) -> None:
    score = tmp_path / "oom_score_adj"
    score.write_text(before)
    module.end_before_the_server(score)
    assert score.read_text() == after
    module.end_before_the_server(tmp_path / "none" / "here")  # a system without it disturbs no kernel


def test_it_is_looked_for_after_each_cell(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "end_before_the_server", lambda: None)
    registered: list[tuple[str, str]] = []

    class Events:
        def register(self, event: str, callback: Any) -> None:
            registered.append((event, callback.__name__))

    class Shell:
        events = Events()

    module.load_ipython_extension(Shell())
    assert registered == [("pre_run_cell", "before_cell"), *[("post_run_cell", "after_cell")] * 4]


@pytest.fixture
def published(module: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is shown: title, text, number, and whether it replaces what has that number."""
    shown: list[tuple[Any, ...]] = []

    def publish(
        title: str, text: str, number: int = 0, *, kind: str = "notice", update: bool = False
    ) -> None:
        shown.append((title, text, number, update))

    monkeypatch.setattr(module, "_publish", publish)
    return shown


def test_a_notice_goes_when_its_cause_is_gone(
    module: Any, published: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    path = tmp_path / "notice"
    notice = module.Notice(path)
    for text in ("lost", "", "lost again", "back"):
        path.unlink(missing_ok=True)
        path.write_text(text)
        notice.after_cell()
    assert published == [
        ("Server", "lost", 1, False),
        ("Server", "", 1, True),
        ("Server", "lost again", 2, False),
        ("Server", "", 2, True),
        ("Server", "back", 3, False),
    ]


@dataclass
class Disk:
    """What the system says of the home's file system, in blocks of 4 KiB."""

    f_blocks: int
    f_bavail: int
    f_files: int = 1000
    f_favail: int = 1000
    f_frsize: int = 4096


@pytest.mark.parametrize(
    ("disk", "start"),
    [
        (Disk(2560, 52), ""),
        (Disk(2560, 51), "Your home is full (0.2 of 10 MiB are free): nothing more can be saved."),
        (Disk(1 << 20, 2048), ""),
        (Disk(1 << 20, 2047), "Your home is full (8.0 of 4096 MiB are free): nothing"),
        (Disk(1 << 20, 1 << 19, f_favail=0), "Your home is full: nothing more"),
        (Disk(1 << 20, 1 << 19, f_files=0, f_favail=0), ""),  # a file system that counts none
        (Disk(0, 0), ""),
    ],
)
def test_a_home_that_is_full(module: Any, monkeypatch: pytest.MonkeyPatch, disk: Disk, start: str) -> None:
    monkeypatch.setattr(module.os, "statvfs", lambda folder: disk)
    said = module.Home(Path("/home/jovyan")).problem()
    assert said.startswith(start)
    assert bool(said) is bool(start)


def test_it_is_said_once_and_goes_when_there_is_room(
    module: Any, published: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home, free = module.Home(tmp_path), []
    monkeypatch.setattr(module.os, "statvfs", lambda folder: Disk(2560, free[-1]))
    for blocks in (1000, 0, 1, 1000, 1000, 0):
        free.append(blocks)
        home.after_cell()
    assert [(text[:9], number, update) for _, text, number, update in published] == [
        ("Your home", 1, False),
        ("", 1, True),
        ("Your home", 2, False),
    ]
    monkeypatch.undo()
    assert module.Home(tmp_path / "gone").problem() == ""


GIB = 1 << 30
FULL = (
    "the lab used 8.0 of 8.0 GiB of memory. Load less at a time, or shut down notebooks that you don't need."
)


def write(root: Path, version: int, ended: int, refused: int) -> None:
    """The files of a lab's control group as Linux 6.1 has them."""
    files = {
        2: {
            "memory.events": f"low 0\nhigh 0\nmax 9\noom {ended}\noom_kill {ended}\n",
            "memory.max": f"{8 * GIB}\n",
            "pids.events": f"max {refused}\n",
            "pids.max": "4096\n",
        },
        1: {
            "memory/memory.oom_control": f"oom_kill_disable 0\nunder_oom 0\noom_kill {ended}\n",
            "memory/memory.limit_in_bytes": f"{8 * GIB}\n",
            "pids/pids.events": f"max {refused}\n",
            "pids/pids.max": "4096\n",
        },
    }[version]
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize("version", [1, 2])
def test_a_kernel_that_was_ended_says_so_when_it_is_back(module: Any, tmp_path: Path, version: int) -> None:
    state = tmp_path / "told.json"
    write(tmp_path, version, 3, 0)
    assert module.Limits(module.Cgroup(tmp_path), state).unseen() == []  # what was before this kernel
    write(tmp_path, version, 4, 0)
    back = module.Limits(module.Cgroup(tmp_path), state)
    assert [back.unseen(), back.unseen()] == [[f"Your kernel was ended: {FULL}"], []]


@pytest.mark.parametrize("version", [1, 2])
def test_what_happened_beside_a_kernel_is_told_too(module: Any, tmp_path: Path, version: int) -> None:
    write(tmp_path, version, 0, 0)
    limits = module.Limits(module.Cgroup(tmp_path), tmp_path / "told.json")
    seen = [limits.unseen()]
    write(tmp_path, version, 1, 7)
    seen += [limits.unseen(), limits.unseen()]
    assert seen == [
        [],
        [
            f"A program of your lab was ended: {FULL}",
            "A program could not be started: the limit of 4096 processes and threads is reached. Until some "
            "of them end, nothing can be opened or saved here. Restart the kernel that started them; if "
            "that doesn't help, stop your server on the page My GPU.",
        ],
        [],
    ]


@pytest.mark.parametrize("limit", ["max", "9223372036854771712", ""])
def test_without_a_limit_the_machine_was_full(module: Any, tmp_path: Path, limit: str) -> None:
    write(tmp_path, 2, 0, 0)
    (tmp_path / "memory.max").write_text(limit)
    limits = module.Limits(module.Cgroup(tmp_path), tmp_path / "told.json")
    (tmp_path / "memory.events").write_text("oom_kill 1\n")
    assert limits.unseen() == ["A program of your lab was ended: the machine had no memory left."]


def test_no_control_group_and_a_broken_memory_disturb_no_cell(module: Any, tmp_path: Path) -> None:
    state = tmp_path / "told.json"
    state.write_text('{"a": 1}')
    limits = module.Limits(module.Cgroup(tmp_path / "none"), state)
    assert limits.unseen() == []
    assert module.Limits(module.Cgroup(tmp_path / "none"), tmp_path / "no" / "folder").unseen() == []


def test_each_kernel_remembers_by_its_connection_file(module: Any) -> None:
    class Shell:
        config = {"IPKernelApp": {"connection_file": "/run/user/kernel-ab12.json"}}  # noqa: RUF012

    assert module.state_of(Shell()) == Path("/tmp/gpuspawner-told-kernel-ab12.json")


def test_a_cell_that_waits_for_a_gpu_shows_one_line_until_it_goes_on(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lines = tmp_path / "turn", []
    monkeypatch.setattr(
        module, "_publish_line", lambda text, number, *, update: lines.append((text, number, update))
    )
    turn = module.Turn(path, 0.01)

    def until(count: int) -> None:
        end = time.monotonic() + SOON_SECONDS
        while len(lines) < count:
            assert time.monotonic() < end, lines
            time.sleep(0.01)

    def write(text: str) -> None:
        fresh = tmp_path / "fresh"  # as the broker writes it: never half a file
        fresh.write_text(text)
        fresh.replace(path)

    turn.before_cell()  # no turns here
    write("")
    turn.before_cell()
    time.sleep(0.05)
    assert lines == []
    write("Waiting for a GPU: 2nd in line.")
    until(1)
    write("Waiting for a GPU: 1st in line.")
    until(2)
    write("")
    until(3)
    turn.after_cell()
    assert lines == [
        ("Waiting for a GPU: 2nd in line.", 1, False), ("Waiting for a GPU: 1st in line.", 1, True),
        ("", 1, True),
    ]  # fmt: skip
    write("Waiting for a GPU: 3rd in line.")
    turn.before_cell()
    until(4)
    turn.after_cell()  # the cell was interrupted
    until(5)
    assert lines[3:] == [("Waiting for a GPU: 3rd in line.", 2, False), ("", 2, True)]
