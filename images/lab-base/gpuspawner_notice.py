"""Tells the person at the notebook what happened to their GPU and to their lab's memory.

The broker writes a sentence to `/run/gpuspawner/notice` when a lease's device is lost, withdrawn or
back. The kernel of Linux counts in the lab's own cgroup what it ended for lack of memory, and how often no
further process could be started. After each cell this IPython extension looks at both and shows what is new.
And it looks at the home: in one that is full nothing can be saved, which JupyterLab says only when it tries.
A notice goes when its cause is gone, and its reader can dismiss it.

Where GPUs are used in turns, the broker writes to `/run/gpuspawner/turn` what a cell waits for. While a cell
runs, a thread of the kernel shows that below it: who waits in the driver for the GPU (PyTorch and CuPy) has
released Python's lock. A library that keeps it shows the line when it goes on, or not at all.
"""

from __future__ import annotations

import contextvars
import html
import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

NOTICE_PATH = Path("/run/gpuspawner/notice")
TURN_PATH = Path("/run/gpuspawner/turn")
TURN_SECONDS = 0.5
CGROUP = Path("/sys/fs/cgroup")
MAX_BYTES = 4096
OOM_SCORE = Path("/proc/self/oom_score_adj")
MORE_OOM_SCORE = 400
"""Thousandths of the lab's memory that the kernel counts for more than it has."""
FULL_BYTES = 8 << 20
"""A home with less room is full, or one with less than a fiftieth: a notebook can no longer be saved."""
_STYLE = "border-left:4px solid #d9822b;padding:.5em .8em;margin:.4em 0"
_DISMISS = (
    '<button type="button" style="float:right;border:0;background:none;cursor:pointer" title="Dismiss" '
    'aria-label="Dismiss" onclick="this.parentNode.remove()">&#10005;</button>'
)


class Notice:
    """Shows the notice once for each time that it changed; an empty one takes the last one away."""

    def __init__(self, path: Path = NOTICE_PATH) -> None:
        self._path = path
        self._shown: tuple[int, int, int] | None = None
        self._on_screen = 0
        self._count = 0

    def unseen(self) -> str | None:
        """The notice if it changed since it was last asked for, else None; empty if it is gone."""
        try:
            stat = os.stat(self._path)
        except OSError:
            had, self._shown = self._shown, None
            return None if had is None else ""
        version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if version == self._shown:
            return None
        try:
            with self._path.open("rb") as file:
                text = file.read(MAX_BYTES).decode("utf-8", "replace").strip()
        except OSError:
            return None
        first, self._shown = self._shown is None, version
        return None if first and not text else text

    def after_cell(self, result: object = None) -> None:
        """Publishes an unseen notice below the cell that just ran; takes away one whose cause is gone."""
        text = self.unseen()
        if text is None:
            return
        if self._on_screen:
            _publish("Server", "", self._on_screen, update=True)
            self._on_screen = 0
        if text:
            self._count += 1
            self._on_screen = self._count
            _publish("Server", text, self._on_screen)


class Turn:
    """One line below a cell while it waits for a GPU; it goes when the cell goes on or ends."""

    def __init__(self, path: Path = TURN_PATH, seconds: float = TURN_SECONDS) -> None:
        self._path, self._seconds = path, seconds
        self._end: threading.Event | None = None
        self._count = 0

    def before_cell(self, info: object = None) -> None:
        """Begins to look, if GPUs are used in turns here."""
        self.after_cell()
        if not self._path.exists():
            return
        self._count += 1
        self._end = threading.Event()
        # In a context like this one, the line belongs to this cell.
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(self._look, self._end, self._count), daemon=True).start()

    def after_cell(self, result: object = None) -> None:
        """The cell has ended."""
        if self._end is not None:
            self._end.set()
            self._end = None

    def _look(self, end: threading.Event, number: int) -> None:
        shown = ""
        while not end.wait(self._seconds):
            line = self._read()
            if line != shown:
                _publish_line(line, number, update=bool(shown))
                shown = line
        if shown:
            _publish_line("", number, update=True)

    def _read(self) -> str:
        try:
            with self._path.open("rb") as file:
                return file.read(MAX_BYTES).decode("utf-8", "replace").strip()
        except OSError:
            return ""


class Cgroup:
    """What the lab's own control group counts: version 2 (files in its root) or 1 (in folders)."""

    def __init__(self, root: Path = CGROUP) -> None:
        self._root = root

    def ended(self) -> int:
        """How many processes were ended as the memory was full; 0 where it isn't counted."""
        files = ("memory.events", "memory/memory.oom_control")
        return max(self._counter(file, "oom_kill") for file in files)

    def refused(self) -> int:
        """How often a further process was refused."""
        return self._counter("pids.events", "max") or self._counter("pids/pids.events", "max")

    def memory_limit(self) -> int | None:
        """Bytes; None without a limit (version 1 then says a number near 2^63)."""
        limit = self._number("memory.max") or self._number("memory/memory.limit_in_bytes")
        return limit if limit and limit < 1 << 60 else None

    def process_limit(self) -> int | None:
        """The most processes and threads; None without a limit."""
        return self._number("pids.max") or self._number("pids/pids.max")

    def _counter(self, name: str, key: str) -> int:
        for line in self._read(name).splitlines():
            word, _, number = line.partition(" ")
            if word == key and number.isdecimal():
                return int(number)
        return 0

    def _number(self, name: str) -> int | None:
        text = self._read(name).strip()
        return int(text) if text.isdecimal() else None

    def _read(self, name: str) -> str:
        try:
            return (self._root / name).read_text(encoding="ascii", errors="replace")
        except OSError:
            return ""


class Limits:
    """Tells when the lab's limits ended something or refused it.

    `state` outlasts a kernel that was ended: the one that is started in its place finds there what its
    predecessor had seen, and says why it had to begin anew.
    """

    def __init__(self, cgroup: Cgroup, state: Path) -> None:
        self._cgroup = cgroup
        self._state = state
        self._seen = self._load()
        self._restarted = self._seen is not None
        if self._seen is None:
            self._seen = self._now()
            self._save()

    def unseen(self) -> list[str]:
        """A sentence for each limit that was met since the last look."""
        now, seen = self._now(), self._seen or [0, 0]
        if now == seen:
            self._restarted = False
            return []
        found = []
        if now[0] > seen[0]:
            found.append(self._memory(self._restarted))
        if now[1] > seen[1]:
            most = self._cgroup.process_limit()
            of = "" if most is None else f" of {most}"
            found.append(
                f"A program could not be started: the limit{of} processes and threads is reached. Until some "
                "of them end, nothing can be opened or saved here. Restart the kernel that started them; if "
                "that doesn't help, stop your server on the page My GPU."
            )
        self._seen, self._restarted = now, False
        self._save()
        return found

    def after_cell(self, result: object = None) -> None:
        """Publishes what is new below the cell that just ran."""
        for text in self.unseen():
            _publish("Lab", text)

    def _memory(self, restarted: bool) -> str:
        what = "Your kernel was ended" if restarted else "A program of your lab was ended"
        limit = self._cgroup.memory_limit()
        if limit is None:
            return f"{what}: the machine had no memory left."
        size = f"{limit / (1 << 30):.1f}"
        return (
            f"{what}: the lab used {size} of {size} GiB of memory. Load less at a time, or shut down "
            "notebooks that you don't need."
        )

    def _now(self) -> list[int]:
        return [self._cgroup.ended(), self._cgroup.refused()]

    def _load(self) -> list[int] | None:
        try:
            seen = json.loads(self._state.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None
        known = isinstance(seen, list) and len(seen) == 2 and all(isinstance(each, int) for each in seen)
        return seen if known else None

    def _save(self) -> None:
        with suppress(OSError):  # a full disk: then it is told once more
            self._state.write_text(json.dumps(self._seen), encoding="ascii")


class Home:
    """Says that the home is full, once, and takes that away when there is room again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._on_screen = 0
        self._count = 0

    def problem(self) -> str:
        """The sentence; empty while there is room, and where it can't be told."""
        try:
            found = os.statvfs(self._folder)
        except OSError:
            return ""
        total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
        files = bool(found.f_files) and not found.f_favail
        if not total or not (free < min(FULL_BYTES, total // 50) or files):
            return ""
        of = "" if files else f" ({free / (1 << 20):.1f} of {total / (1 << 20):.0f} MiB are free)"
        return (
            f"Your home is full{of}: nothing more can be saved. Delete files that you don't need (what you "
            "delete in JupyterLab may be in ~/.local/share/Trash), or ask your admin for more room."
        )

    def after_cell(self, result: object = None) -> None:
        """Publishes it below the cell that just ran, or takes it away."""
        text = self.problem()
        if bool(text) == bool(self._on_screen):
            return
        if text:
            self._count += 1
            self._on_screen = self._count
            _publish("Home", text, self._on_screen, kind="home")
        else:
            _publish("Home", "", self._on_screen, kind="home", update=True)
            self._on_screen = 0


def _publish(title: str, text: str, number: int = 0, *, kind: str = "notice", update: bool = False) -> None:
    """Shows a notice that can be dismissed; one with a number can be taken away (an empty text)."""
    from IPython.display import publish_display_data

    body = f'<div role="alert" style="{_STYLE}">{_DISMISS}<b>{title}</b> {html.escape(text)}</div>'
    publish_display_data(
        {"text/plain": f"[{title}] {text}" if text else "", "text/html": body if text else ""},
        transient={"display_id": f"gpuspawner-{kind}-{os.getpid()}-{number}"} if number else None,
        update=update,
    )


def _publish_line(text: str, number: int, *, update: bool) -> None:
    """Shows a line without a frame, or takes it away (an empty text)."""
    from IPython.display import publish_display_data

    body = f'<div role="status" style="color:#8a6d3b">{html.escape(text)}</div>'
    publish_display_data(
        {"text/plain": text, "text/html": body if text else ""},
        transient={"display_id": f"gpuspawner-turn-{os.getpid()}-{number}"},
        update=update,
    )


def state_of(shell: Any) -> Path:
    """Where a kernel remembers what it told: its connection file keeps its name when it is restarted."""
    config = getattr(shell, "config", {})
    file = str((config.get("IPKernelApp") or {}).get("connection_file") or f"pid-{os.getpid()}")
    return Path("/tmp") / f"gpuspawner-told-{Path(file).stem}.json"


def end_before_the_server(path: Path = OOM_SCORE) -> None:
    """If the lab's memory is full, Linux ends this kernel, or what it has started, and not the lab's server.

    Linux ends what has the most memory, and a fork bomb's many small processes leave the server as that.
    Every process may raise its own number, and its children inherit it (proc(5), `oom_score_adj`).
    """
    with suppress(OSError, ValueError):
        path.write_text(str(min(1000, int(path.read_text()) + MORE_OOM_SCORE)))


def load_ipython_extension(shell: Any) -> None:
    """Called by IPython at the kernel's start: notices are looked for after each cell."""
    end_before_the_server()
    limits, turn = Limits(Cgroup(), state_of(shell)), Turn()
    shell.events.register("pre_run_cell", turn.before_cell)
    shell.events.register("post_run_cell", turn.after_cell)
    home = Home(Path(os.environ.get("HOME", "/home/jovyan")))
    looks: tuple[Callable[..., None], ...] = (Notice().after_cell, limits.after_cell, home.after_cell)
    for look in looks:
        shell.events.register("post_run_cell", look)
