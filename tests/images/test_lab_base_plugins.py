"""What is plugged into JupyterLab, in every lab: use of memory, CPU and GPU, links to repositories."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from docker.models.containers import Container

from .conftest import Start, output, wait_for

pytestmark = pytest.mark.docker

SERVE = (
    "jupyter",
    "lab",
    "--no-browser",
    "--ServerApp.base_url=/user/ada/",
    "--IdentityProvider.token=secret",
)
ASK = """
import sys, urllib.request
asked = urllib.request.Request("http://127.0.0.1:8888/user/ada/" + sys.argv[1], method=sys.argv[2])
asked.add_header("Authorization", "token secret")
print(urllib.request.urlopen(asked, data=b"{}" if sys.argv[2] == "POST" else None).read().decode())
"""
LEFT = """
import os, signal, time
if os.fork() == 0:
    if os.fork() == 0:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        time.sleep(600)
    os._exit(0)
os.wait()
"""
"""A child that no longer belongs to the kernel, holds its ports, and ends for nobody who only asks."""
DAEMON = "import subprocess; subprocess.Popen(['sleep', '601'], start_new_session=True)"
RUN = """
import sys, jupyter_core.paths
from jupyter_client import BlockingKernelClient
file = f"{jupyter_core.paths.jupyter_runtime_dir()}/kernel-{sys.argv[1]}.json"
client = BlockingKernelClient(connection_file=file)
client.load_connection_file()
client.start_channels()
client.wait_for_ready(timeout=120)
client.execute_interactive(sys.argv[2], timeout=120)
"""
A_REPOSITORY = """
cd /tmp && git init -q -b main course && cd course && echo 1 > one.ipynb && git add . &&
git -c user.name=ines -c user.email=ines@example.org commit -q -m one
"""


def ask(lab: Container, path: str, method: str = "GET") -> str:
    """What the lab's own server answers."""
    return output(lab, "python", "-c", ASK, path, method)


def document(lab: Container, path: str, method: str = "GET") -> Any:
    """The same as JSON."""
    return json.loads(ask(lab, path, method))


def serve(start: Start, volumes: dict[str, Any] | None = None, **environment: str) -> Container:
    """A lab whose server answers."""
    lab = start(*SERVE, environment=environment, volumes=volumes or {})
    wait_for(lambda: lab.exec_run(["python", "-c", ASK, "api", "GET"]).exit_code == 0)
    return lab


def test_the_use_of_memory_and_cpu_is_the_labs_own(start: Start) -> None:
    """The limits are those that JupyterHub names, and not the machine's, which psutil sees."""
    lab = serve(start, MEM_LIMIT=str(4 << 30), CPU_LIMIT="1.5")
    document(lab, "api/kernels", "POST")
    found = document(lab, "api/metrics/v1")
    assert found["limits"] == {
        "memory": {"rss": 4 << 30, "pss": 4 << 30, "warn": False},
        "cpu": {"cpu": 1.5},
    }
    assert 20 << 20 < found["pss"] <= found["rss"] < 4 << 30
    assert found["cpu_percent"] >= 0


def test_the_machine_is_not_shown_beside_a_kernel(start: Start) -> None:
    lab = serve(start)
    kernel = document(lab, "api/kernels", "POST")["id"]
    found = document(lab, f"api/metrics/v1/kernel_usage/get_usage/{kernel}")
    assert found["content"]["host_usage_flag"] is False
    assert found["content"]["kernel_memory"] > 0


def test_nobody_looks_at_the_processes_every_second(start: Start) -> None:
    """Thirty labs whose pages are closed would do that, for metrics that nobody scrapes."""
    lab = serve(start)
    assert "Prometheus metrics reporting disabled in jupyter_resource_usage" in lab.logs().decode()


def test_a_link_brings_a_repository_and_opens_it_in_jupyterlab(start: Start) -> None:
    lab = serve(start)
    output(lab, "sh", "-ec", A_REPOSITORY)
    page = ask(lab, "git-pull?repo=/tmp/course&branch=main")
    assert '"lab/tree/course/.' in page.replace("'", '"').replace("&#34;", '"'), page
    events = [json.loads(line[6:]) for line in ask(lab, PULL).splitlines() if line.startswith("data: ")]
    assert events[-1] == {"phase": "finished"}, events
    assert output(lab, "cat", "/home/jovyan/course/one.ipynb") == "1\n"


PULL = "git-pull/api?repo=/tmp/course&branch=main&targetpath=course"


def test_a_link_again_keeps_what_the_student_wrote(start: Start) -> None:
    lab = serve(start)
    output(lab, "sh", "-ec", A_REPOSITORY)
    ask(lab, PULL)
    output(lab, "sh", "-c", "echo mine > course/one.ipynb; echo mine > course/mine.txt")
    output(lab, "sh", "-ec", "cd /tmp/course && echo 2 > two.ipynb && git add . && "
           "git -c user.name=i -c user.email=i@example.org commit -q -m two")  # fmt: skip
    events = [json.loads(line[6:]) for line in ask(lab, PULL).splitlines() if line.startswith("data: ")]
    assert events[-1] == {"phase": "finished"}, events
    assert output(lab, "sh", "-c", "cd course && cat one.ipynb two.ipynb mine.txt") == "mine\n2\nmine\n"


USE = "gpuspawner/use"
WITHOUT_A_TOKEN = """
import urllib.error, urllib.request
try:
    print(urllib.request.urlopen("http://127.0.0.1:8888/user/ada/gpuspawner/use").geturl())
except urllib.error.HTTPError as error:
    print(error.code)
"""


def test_the_status_bar_is_told_what_the_broker_wrote(start: Start, tmp_path: Path) -> None:
    """Only to whoever may use the server, and not once it is so old that the broker may be gone."""
    tmp_path.chmod(0o755)
    lab = serve(start, {str(tmp_path): {"bind": "/run/gpuspawner", "mode": "ro"}})
    assert document(lab, USE) == {}
    file = tmp_path / "use"
    file.write_text('{"memory": {"text": "3.0 GiB of 8.0 GiB"}}')
    file.chmod(0o644)
    assert document(lab, USE) == {"memory": {"text": "3.0 GiB of 8.0 GiB"}}
    os.utime(file, (file.stat().st_mtime - 200, file.stat().st_mtime - 200))
    assert document(lab, USE) == {}
    said = output(lab, "python", "-c", WITHOUT_A_TOKEN)
    assert "/login?" in said or said.strip() == "403", said


def test_without_a_gpu_the_status_bar_is_told_so(start: Start) -> None:
    lab = serve(start)
    assert document(lab, USE) is None
    assert "gpuspawner-status" in ask(lab, "lab")  # JupyterLab's page loads the extension
    assert "registerStatusItem" in ask(lab, "lab/extensions/gpuspawner-status/static/gpuspawner-status.js")


def test_a_restart_ends_all_that_the_kernel_started(start: Start) -> None:
    """Seen with a fork bomb: its processes kept the kernel's ports, and no restart helped any more."""
    lab = serve(start)
    kernel = document(lab, "api/kernels", "POST")["id"]
    assert output(lab, "python", "-c", RUN, kernel, f"{DAEMON}\nprint(6 * 7)") == "42\n"
    output(lab, "python", "-c", RUN, kernel, LEFT)
    document(lab, f"api/kernels/{kernel}/restart", "POST")
    assert output(lab, "python", "-c", RUN, kernel, "print(6 * 9)") == "54\n"
    running = output(lab, "ps", "-eo", "args").splitlines()
    assert len([line for line in running if "ipykernel_launcher" in line]) == 1
    assert "sleep 601" in running  # a daemon, which has a group of its own, stays
