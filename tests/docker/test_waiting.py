"""A real notebook kernel in a real container: whether it waits is told from outside by its main thread.

The driver's wait is stood in for by what it is to the kernel of Linux: a thread in an untimed futex.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from gpuspawner.node.waiting import ThreadWait, WaitWatch, read_wait
from jupyter_client.blocking import BlockingKernelClient

from images.table import read_table
from tests.docker.life import remove

pytestmark = [pytest.mark.docker, pytest.mark.filterwarnings("default::DeprecationWarning")]

PORTS = {"shell_port": 5001, "iopub_port": 5002, "stdin_port": 5003, "control_port": 5004, "hb_port": 5005}
CONNECTION = {**PORTS, "ip": "0.0.0.0", "key": "k", "transport": "tcp", "signature_scheme": "hmac-sha256"}
FUTEX = """
import ctypes, os, threading
libc, word = ctypes.CDLL(None), ctypes.c_int(0)
number = {"x86_64": 202, "aarch64": 98}[os.uname().machine]
def wake():
    word.value = 1
    libc.syscall(number, ctypes.byref(word), 1, 1, None, None, 0)
threading.Timer(SECONDS, wake).start()
libc.syscall(number, ctypes.byref(word), 0, 0, None, None, 0)
"""


class Notebook:
    """A kernel in a container, its client, and its main process on the host."""

    def __init__(self, engine: docker.APIClient, folder: Path) -> None:
        (folder / "kernel.json").write_text(json.dumps(CONNECTION))
        os.chmod(folder, 0o755)
        image = next(each.reference for each in read_table().images if "lab-base" in each.reference)
        if not engine.images(image):
            pytest.skip(f"the image {image} is not built here: make images")
        made = engine.create_container(
            image,
            ["python3", "-m", "ipykernel_launcher", "-f", "/connection/kernel.json"],
            entrypoint=[],
            labels={"gpuspawner-test": "waiting"},
            host_config=engine.create_host_config(binds=[f"{folder}:/connection:ro"]),
        )
        self.engine, self.id = engine, made["Id"]
        engine.start(self.id)
        state = engine.inspect_container(self.id)
        self.pid = int(state["State"]["Pid"])
        self.client = BlockingKernelClient()
        self.client.load_connection_info(
            {**CONNECTION, "ip": state["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]}
        )
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        self.run("1")  # what the first cell loads is there

    def run(self, code: str) -> None:
        """Runs a cell and waits for its end."""
        self.client.execute_interactive(code, timeout=60, output_hook=lambda message: None)

    def alarms(self, seconds: float, code: str = "") -> tuple[int, float | None]:
        """Of the samples in that time: how many said that it waits, and after how long the first did."""
        watch, count, first = WaitWatch(), 0, None
        watch.see(read_wait(self.pid) or ThreadWait(), time.monotonic())
        began = time.monotonic()
        if code:
            self.client.execute(code)
        while time.monotonic() - began < seconds:
            if watch.see(read_wait(self.pid) or ThreadWait(), time.monotonic()):
                count += 1
                first = first if first is not None else time.monotonic() - began
            time.sleep(0.025)
        if code:
            self.run("1")  # the cell has ended
        return count, first

    def prompts(self, seconds: float, code: str = "") -> set[bool]:
        """Whether its main thread waited for input, in samples of that time, the first 0.2 s left out."""
        if code:
            self.client.execute(code)
        time.sleep(0.2)
        end, seen = time.monotonic() + seconds, set()
        while time.monotonic() < end:
            wait = read_wait(self.pid)
            assert wait is not None
            seen.add(wait.for_input)
            time.sleep(0.01)
        if code:
            self.run("1")
        return seen

    def close(self) -> None:
        """Ends it."""
        self.client.stop_channels()
        remove(self.engine, self.id)


@pytest.fixture(scope="module")
def notebook(engine: docker.APIClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    if os.geteuid() != 0:
        pytest.skip("reading another user's system calls takes root")
    notebook = Notebook(engine, tmp_path_factory.mktemp("connection"))
    yield notebook
    notebook.close()


@pytest.mark.parametrize(
    "code",
    [
        "",
        "sum(n * n for n in range(20_000_000))",
        "import time; time.sleep(2)",
        "import hashlib\nfor _ in range(20): hashlib.sha256(bytes(50_000_000)).hexdigest()",
        "import numpy; a = numpy.random.rand(1500, 1500)\nfor _ in range(5): a @ a",
        "import subprocess; subprocess.run(['sleep', '2'])",
        "open('/tmp/x', 'wb').write(bytes(200_000_000))",
    ],
    ids=["idle", "python", "sleep", "hash", "numpy", "subprocess", "disk"],
)
def test_no_false_alarm(notebook: Notebook, code: str) -> None:
    if "numpy" in code:
        notebook.run("import importlib.util; assert importlib.util.find_spec('numpy')")
    assert notebook.alarms(2.5, code) == (0, None)


def test_a_cell_that_waits_is_noticed_at_once(notebook: Notebook) -> None:
    count, first = notebook.alarms(3.0, FUTEX.replace("SECONDS", "2.5"))
    assert count > 20
    assert first is not None
    assert first < 1.0


def test_between_two_cells_it_waits_for_input(notebook: Notebook) -> None:
    assert notebook.prompts(2.0) == {True}


@pytest.mark.parametrize(
    "code",
    [
        "sum(n * n for n in range(40_000_000))",
        "import time; time.sleep(2)",
        "import subprocess; subprocess.run(['sleep', '2'], capture_output=True)",
        "import socket; a, b = socket.socketpair(); a.settimeout(2)\ntry: a.recv(1)\nexcept OSError: pass",
        "import multiprocessing; multiprocessing.Pool(1).apply(__import__('time').sleep, (2,))",
        "import queue\ntry: queue.Queue().get(timeout=2)\nexcept queue.Empty: pass",
        FUTEX.replace("SECONDS", "2"),
    ],
    ids=["python", "sleep", "subprocess", "socket", "workers", "queue", "futex"],
)
def test_in_a_cell_it_does_not(notebook: Notebook, code: str) -> None:
    """Also while the cell waits for something else: its turn must not end as if it were over."""
    assert notebook.prompts(1.0, code) == {False}
