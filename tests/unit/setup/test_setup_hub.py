"""setup/hub.py and setup/children.py: the block, the farewell, and an end that leaves no process."""

from __future__ import annotations

import json
import os
import signal
import socketserver
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from setup.demo import Demo
from setup.hub import block, describe, farewell, gpus, waiting
from setup.steps import ROOT
from tests.soon import SOON_SECONDS

DEMO = Demo(
    port=8000, state_dir=Path("/s"), name="gpuspawner", subnet="10.213.0.0/20", image="i",
    password="user-pass", admin_password="admin-pass",
)  # fmt: skip


def device(model: str) -> dict[str, Any]:
    return {"model": model}


def test_the_block() -> None:
    line = "─" * 78
    assert (
        block(DEMO, "1 × H100, real")
        == f"""{line}
  Address  http://127.0.0.1:8000/
  Log in   any name (e.g. ada), password  user-pass
           admin,                password  admin-pass
  GPUs     1 × H100, real
  Log      /s/hub.log
  Stop     Ctrl-C; running notebooks keep running
{line}"""
    )


@pytest.mark.parametrize(
    ("models", "simulated", "said"),
    [
        (["H100", "H100"], True, "2 × H100, simulated: notebooks run on the CPU"),
        (["H100", "A100", "H100"], False, "2 × H100, 1 × A100, real"),
        ([], False, "none, real"),
    ],
)
def test_devices_in_words(models: list[str], simulated: bool, said: str) -> None:
    assert describe({"devices": [device(model) for model in models], "simulated": simulated}) == said


@pytest.mark.parametrize(
    ("running", "said"),
    [
        (None, "Docker does not answer, so it is unknown whether notebooks still run."),
        (0, "No notebook is running. Homes and settings are kept."),
        (1, "1 notebook keeps running: `make hub` finds it again, `make clean-demo` ends it."),
        (3, "3 notebooks keep running: `make hub` finds them again, `make clean-demo` ends them."),
    ],
)
def test_what_becomes_of_notebooks(running: int | None, said: str) -> None:
    assert farewell(running) == f"Hub, proxy and broker have stopped. {said}"


@pytest.mark.parametrize(
    ("waited", "said"),
    [
        (1, "1 server that waited for a GPU has lost its place in line."),
        (2, "2 servers that waited for a GPU have lost their places in line."),
    ],
)
def test_who_waited_is_told_of(waited: int, said: str) -> None:
    assert farewell(0, waited) == (
        f"Hub, proxy and broker have stopped. {said} No notebook is running. Homes and settings are kept."
    )


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Path]:
    """A socket that answers the two pages of a status document, as the broker does."""
    pages = {
        b"/api/status": {"devices": [device("H100")], "queue": [{}], "simulated": True, "next": "queue:1"},
        b"/api/status?cursor=queue%3A1": {"devices": [], "queue": [{}, {}], "simulated": True, "next": None},
    }

    class Answer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            body = json.dumps(pages[self.rfile.readline().split()[1]]).encode()
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    path = tmp_path / "b.sock"
    with socketserver.UnixStreamServer(str(path), Answer) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield path
        server.shutdown()
        thread.join()


def test_the_broker_is_asked_on_its_socket(broker: Path) -> None:
    assert gpus(broker) == "1 × H100, simulated: notebooks run on the CPU"
    assert waiting(broker) == 3


def test_a_broker_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert gpus(tmp_path / "b.sock") == ""
    assert waiting(tmp_path / "b.sock") == 0


STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(60)
"""
MIDDLE = """
import subprocess, sys
left = subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True, stdout=subprocess.PIPE)
print(int(left.stdout.readline()), flush=True)
"""
LAUNCHER = """
import subprocess, sys
from setup.children import adopt_orphans, end_children
adopt_orphans()
middle = subprocess.run([sys.executable, "-c", sys.argv[1], sys.argv[2]], stdout=subprocess.PIPE)
gentle = subprocess.Popen(["sleep", "60"])
print(int(middle.stdout), gentle.pid, end_children(0.3), flush=True)
"""
"""A child's own child, in a session of its own, is left behind and ignores SIGTERM."""


def test_orphans_end_too_and_who_does_not_listen_is_killed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, MIDDLE, STUBBORN],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    stubborn, gentle, killed = done.stdout.split(maxsplit=2)
    assert killed.strip() == f"[{stubborn}]"
    for pid in (int(stubborn), int(gentle)):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_killed_launcher_takes_its_child_with_it() -> None:
    script = (
        "import subprocess, time; from setup.children import end_with_parent\n"
        "print(subprocess.Popen(['sleep', '60'], preexec_fn=end_with_parent).pid, flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        child = int(launcher.stdout.readline())
        launcher.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + SOON_SECONDS
    while Path(f"/proc/{child}/stat").exists() and _state(child) != "Z":
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.02)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"
