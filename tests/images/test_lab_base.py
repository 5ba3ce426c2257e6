"""What every lab must be; each image that stands on lab-base runs this too."""

from __future__ import annotations

import hashlib
import json
import re
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from docker.models.containers import Container

from images.table import Image

from .conftest import WAIT_SECONDS, Start, output, wait_for

pytestmark = pytest.mark.docker

NO_BYTECODE = """
import pathlib
root = pathlib.Path("/opt/lab/lib")
own_tests = ("/tests/", "/torch/testing/")
sources = [path for path in root.rglob("*.py") if not any(part in str(path) for part in own_tests)]
compiled = {(path.parent.parent, path.name.split(".cpython-")[0]) for path in root.rglob("*.pyc")}
bare = [str(path) for path in sources if (path.parent, path.stem) not in compiled]
print(len(sources) > 1000, bare[:5])
"""

MAKE_WHEEL = """
import zipfile
with zipfile.ZipFile("/tmp/mine-1-py3-none-any.whl", "w") as wheel:
    wheel.writestr("mine.py", "")
    info = "mine-1.dist-info/"
    wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: mine\\nVersion: 1\\n")
    tags = "Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
    wheel.writestr(info + "WHEEL", tags)
    wheel.writestr(info + "RECORD", "mine.py,,\\n")
"""

RUN_TWO_CELLS = """
import json, nbformat
from nbclient import NotebookClient
cells = ["open('/run/gpuspawner/notice', 'w').write('GPU lost <b>&</b> withdrawn'); None", "1 + 1"]
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
NotebookClient(notebook, timeout=180, kernel_name="python3").execute()
print(json.dumps([[output.get("data") for output in cell.outputs] for cell in notebook.cells]))
"""

OF_A_HUB = {
    "JUPYTERHUB_API_TOKEN": "token",
    "JUPYTERHUB_API_URL": "http://127.0.0.1:8081/hub/api",
    "JUPYTERHUB_CLIENT_ID": "jupyterhub-user-ada",
    "JUPYTERHUB_OAUTH_ACCESS_SCOPES": '["access:servers!user=ada"]',
    "JUPYTERHUB_SERVICE_PREFIX": "/user/ada/",
    "JUPYTERHUB_SERVICE_URL": "http://0.0.0.0:8888/user/ada/",
    "JUPYTERHUB_USER": "ada",
}

HUB = """
import http.server, json
class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        user = {"name": "ada", "kind": "user", "groups": [], "scopes": ["access:servers!user=ada"]}
        self.wfile.write(json.dumps(user if self.path == "/hub/api/user" else {"version": "6"}).encode())
    do_POST = do_GET
    def log_message(self, *words): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8081), Hub).serve_forever()
"""

ASK_FOR_THE_PAGE = """
import urllib.request
address = "http://127.0.0.1:8888/user/ada/"
for path, said in (("lab", b"jupyter-config-data"), ("api/contents", b'"content"'), ("api/me", b'"ada"')):
    asked = urllib.request.Request(address + path, headers={"Authorization": "token theirs"})
    assert said in urllib.request.urlopen(asked).read(), path
"""

USE_WHAT_IS_SPARED = """
import re
server = open("/usr/local/bin/lab-server").read()
exec(server.split("import jupyterlab.labapp")[0])
import jupyterhub.log
from jupyterhub import orm
import requests
from jupyterhub.handlers.pages import SpawnHandler
from jupyterhub.handlers import BaseHandler
hub = issubclass(SpawnHandler, BaseHandler)
logged = isinstance(jupyterhub.log.HealthCheckHandler, type)
import psutil
first = psutil
import psutil
assert "psutil._pslinux" not in __import__("sys").modules
try:
    psutil.Process(2**30)
except psutil.NoSuchProcess:
    assert first.virtual_memory().total > 0 and psutil.Process().children() == []
print(BaseHandler.__name__, SpawnHandler.__name__, hub, orm.User.__tablename__, logged, requests.get.__name__)
"""


def test_who_runs_what(start: Start) -> None:
    lab = start("sleep", "infinity")
    assert output(lab, "id") == "uid=1000(jovyan) gid=100(users) groups=100(users)\n"
    assert output(lab, "cat", "/proc/1/comm") == "tini\n"
    assert output(lab, "pwd") == "/home/jovyan\n"
    assert output(lab, "sh", "-c", "stat -c '%U:%G %a' $HOME") == "jovyan:users 755\n"


def test_git_is_there(start: Start) -> None:
    assert output(start("sleep", "infinity"), "git", "--version").startswith("git version ")


def test_a_terminal_has_the_notebooks_python_and_pip(start: Start) -> None:
    """JupyterLab starts a login shell, for which Debian sets PATH anew."""
    said = output(start("sleep", "infinity"), "bash", "-lc", "command -v python pip jupyter; echo $PATH")
    assert said.splitlines()[:3] == ["/opt/lab/bin/python", "/opt/lab/bin/pip", "/opt/lab/bin/jupyter"]
    assert said.splitlines()[3].startswith("/opt/lab/bin:/home/jovyan/.local/bin:")


def test_what_the_image_says_of_itself(image: Image, start: Start) -> None:
    lab = start("true")
    config = lab.image.attrs["Config"]
    labels = dict(lab.image.labels)
    cuda = labels["gpuspawner.cuda"]
    assert cuda in ("", image.cuda)  # the CPU build brings none
    assert labels["gpuspawner.min-driver"] == (image.min_driver if cuda else "")
    assert labels["gpuspawner.needs-gpu"] == str(int(image.needs_gpu))
    prefix = "org.opencontainers.image."
    assert {name: value for name, value in labels.items() if name.startswith(prefix)} == {
        f"{prefix}title": image.title,
        f"{prefix}version": image.tag,
        f"{prefix}licenses": "BSD-3-Clause",
        f"{prefix}description": f"gpuspawner {image.name}: {image.title}",
    }
    assert "NVIDIA_VISIBLE_DEVICES=void" in config["Env"]
    assert not [entry for entry in config["Env"] if entry.startswith("NVIDIA_DRIVER")]
    assert (config["User"], config["WorkingDir"]) == ("1000:100", "/home/jovyan")
    assert config["Cmd"] == ["lab-server"]


def test_the_single_user_server_is_the_hubs_own_version(start: Start) -> None:
    assert output(start("sleep", "infinity"), "jupyterhub-singleuser", "--version").split()[0] == version(
        "jupyterhub"
    )


def test_the_servers_start_imports_nothing_that_takes_a_second(start: Start) -> None:
    """The same server, without the extensions that nobody uses and without the slow import."""
    lab = start("sleep", "infinity")
    assert output(lab, "lab-server", "--version") == output(lab, "jupyterhub-singleuser", "--version")
    listed = lab.exec_run(["jupyter", "server", "extension", "list"]).output.decode()
    states = dict(re.findall(r"^\s*(\w+) \S*(enabled|disabled)", listed, re.M))
    assert states["jupyterlab"] == "enabled"
    assert states["jupyter_server_terminals"] == "enabled"
    assert (states["jupyter_lsp"], states["notebook_shim"]) == ("disabled", "disabled")


def test_the_server_imports_no_more_than_it_uses(start: Start) -> None:
    """Python's own word for every import, of a server that answered a request for its page."""
    serve = 'python -c "$HUB" & PYTHONPROFILEIMPORTTIME=1 exec lab-server'
    lab = start("sh", "-c", serve, environment={**OF_A_HUB, "HUB": HUB})
    page = ["python", "-c", ASK_FOR_THE_PAGE]
    wait_for(lambda: lab.exec_run(page).exit_code == 0)
    log = lab.logs().decode()
    imported = set(re.findall(r"^import time: .*\| +(\S+)$", log, re.M))
    assert {"jupyterlab.labapp", "terminado", "jupyterhub.singleuser.extension"} <= imported
    spared = {
        "alembic", "jupyterhub.handlers.base", "lark", "psutil._pslinux", "requests.api", "sqlalchemy.orm"
    }  # fmt: skip
    assert imported & spared == set()
    assert "Traceback" not in log


def test_what_the_server_spares_comes_when_it_is_used(start: Start) -> None:
    done = output(start("sleep", "infinity"), "python", "-s", "-W", "ignore", "-c", USE_WHAT_IS_SPARED)
    assert done == "BaseHandler SpawnHandler True users True get\n"


def test_pip_installs_into_the_home_and_kernels_see_it(start: Start) -> None:
    """A student's own package outlasts the container; the server doesn't look there, so it can't break."""
    lab = start("sleep", "infinity")
    assert output(lab, "python", "-c", MAKE_WHEEL) == ""
    output(lab, "pip", "install", "-q", "--no-index", "/tmp/mine-1-py3-none-any.whl")
    where = output(lab, "python", "-c", "import mine; print(mine.__file__)")
    assert where.startswith("/home/jovyan/.local/lib/python3")
    server = lab.exec_run(["/opt/lab/bin/python", "-s", "-c", "import mine"])
    assert server.exit_code == 1
    assert b"No module named 'mine'" in server.output


def test_packages_are_the_locked_ones_and_fit_together(image: Image, start: Start) -> None:
    lab = start("sleep", "infinity")
    lock = image.lock if lab.image.labels["gpuspawner.cuda"] or not image.cpu_lock else image.cpu_lock
    locked = {
        (pin := re.split("={2,3}", line))[0]: pin[1]
        for line in (image.folder / lock).read_text().splitlines()
        if not line.startswith("#")
    }
    listed = json.loads(output(lab, "pip", "list", "--format=json", "--disable-pip-version-check"))
    present = {item["name"].lower().replace("_", "-").replace(".", "-"): item["version"] for item in listed}
    wanted = {name.replace(".", "-"): number for name, number in locked.items()} | {
        "jupyterhub": version("jupyterhub")
    }
    assert {name: present.get(name) for name in wanted} == wanted
    assert output(lab, "pip", "check") == "No broken requirements found.\n"


def test_the_debian_packages_are_written_down(start: Start) -> None:
    lab = start("sleep", "infinity")
    form = "${binary:Package}=${Version} ${Architecture}\n"
    listed = output(lab, "dpkg-query", "--show", "--showformat", form)
    assert output(lab, "cat", "/etc/gpuspawner/debian-packages") == listed
    assert lab.image.labels["gpuspawner.packages"] == hashlib.sha256(listed.encode()).hexdigest()
    assert lab.image.labels["gpuspawner.base"]  # what was pulled, or that it was bootstrapped


def test_nothing_is_compiled_at_start(start: Start) -> None:
    assert output(start("sleep", "infinity"), "python", "-c", NO_BYTECODE) == "True []\n"


def test_starters_arrive_and_never_overwrite(home: str, start: Start) -> None:
    volumes = {home: {"bind": "/home/jovyan", "mode": "rw"}}
    first = start("sleep", "infinity", volumes=volumes)
    sources = sorted(output(first, "find", "/opt/starters", "-type", "f", "-printf", "%P\n").splitlines())
    assert sources
    find = ["find", "/home/jovyan/starters", "-type", "f", "-user", "jovyan", "-printf", "%P\n"]

    def copied(lab: Container) -> bool:
        """The folder isn't there yet when the first copy hasn't begun: then find fails."""
        return sorted(lab.exec_run(find).output.decode().splitlines()) == sources

    wait_for(lambda: copied(first))
    name = f"/home/jovyan/starters/{sources[0]}"
    output(first, "sh", "-c", f"echo mine > '{name}'; rm -f '/home/jovyan/starters/{sources[-1]}'")
    second = start("sleep", "infinity", volumes=volumes)
    wait_for(lambda: copied(second))
    assert output(second, "cat", name) == "mine\n"


CP_THAT_COMES_SECOND = """
mkdir /tmp/first && printf '#!/bin/sh\nmkdir -p "$HOME/starters"\nexec /bin/cp "$@"\n' >/tmp/first/cp
chmod +x /tmp/first/cp && HOME=/tmp/home && export HOME && mkdir $HOME && PATH=/tmp/first:$PATH start-lab true
diff -r /opt/starters $HOME/starters && echo the same
"""


def test_two_servers_that_start_at_once_in_one_home_share_the_starters(start: Start) -> None:
    """The other one has made the folder between this one's look and its copy."""
    assert output(start("sleep", "infinity"), "sh", "-ec", CP_THAT_COMES_SECOND) == "the same\n"


def test_a_home_without_room_starts_all_the_same(start: Start) -> None:
    lab = start("echo", "started", read_only=True, tmpfs={"/tmp": ""})
    assert lab.wait(timeout=WAIT_SECONDS)["StatusCode"] == 0
    assert lab.logs(stderr=False) == b"started\n"
    said = lab.logs(stdout=False).decode().splitlines()  # two streams: Docker may mix their lines in the log
    assert said[-1] == (
        "start-lab: nothing can be written to /home/jovyan: it is full, or not yours. "
        "Delete what you don't need"
    )


def test_the_server_answers_and_is_healthy(start: Start) -> None:
    lab = start("jupyter", "lab", "--ServerApp.ip=0.0.0.0", "--no-browser")
    wait_for(lambda: lab.exec_run(["check-lab"]).exit_code == 0)
    log = lab.logs().decode()
    assert not re.findall(r"^\[[EC] .*(?:Traceback|Error)", log, re.M)


def test_docker_calls_a_server_that_answers_healthy(start: Start) -> None:
    """The image's own check, asked every second instead of every half minute."""
    lab = start("jupyter", "lab", "--ServerApp.ip=0.0.0.0", "--no-browser", healthcheck={"interval": 10**9})
    assert lab.image.attrs["Config"]["Healthcheck"]["Test"] == ["CMD", "check-lab"]

    def healthy() -> bool:
        lab.reload()
        return str(lab.attrs["State"]["Health"]["Status"]) == "healthy"

    wait_for(healthy)


def test_a_server_that_is_gone_is_not_healthy(start: Start) -> None:
    done = start("sleep", "infinity").exec_run(["check-lab"])
    assert (done.exit_code, done.output) == (
        1,
        b"the server does not answer: [Errno 111] Connection refused\n",
    )


def test_a_notice_is_shown_once_below_the_cell_that_ran(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o777)
    lab = start("sleep", "infinity", volumes={str(folder): {"bind": "/run/gpuspawner", "mode": "rw"}})
    first, second = json.loads(output(lab, "python", "-c", RUN_TWO_CELLS).splitlines()[-1])
    assert [data["text/plain"] for data in first] == ["[Server] GPU lost <b>&</b> withdrawn"]
    assert "GPU lost &lt;b&gt;&amp;&lt;/b&gt; withdrawn" in first[0]["text/html"]
    assert second == [{"text/plain": "2"}]


def test_programs_that_people_expect(start: Start) -> None:
    expected = ["ps", "top", "curl", "wget", "unzip", "less", "git"]
    look = f"for name in {' '.join(expected)}; do command -v $name; done; true"
    found = output(start("sleep", "infinity"), "sh", "-c", look)
    assert [line.rpartition("/")[2] for line in found.split()] == expected


def test_a_home_that_is_full_starts_and_says_so(start: Start) -> None:
    container = start(
        "sh", "-c", "echo $JUPYTER_RUNTIME_DIR; sleep 60", tmpfs={"/home/jovyan": "size=4k,uid=1000"}
    )
    deadline = time.monotonic() + WAIT_SECONDS
    while "/tmp/jupyter-runtime" not in (said := container.logs().decode()):
        assert time.monotonic() < deadline, said
        time.sleep(0.2)
    assert "nothing can be written to /home/jovyan: it is full, or not yours" in said


START_KERNEL = """
import asyncio, logging
from jupyter_client.manager import AsyncKernelManager

logging.disable(logging.WARNING)

async def start_kernel():
    manager = AsyncKernelManager(kernel_name="python3")
    await manager.start_kernel(stderr=-3)
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=60)
    return manager, client
"""
KERNEL_THAT_IS_ENDED = (
    START_KERNEL
    + """
async def main():
    manager, client = await start_kernel()
    client.execute("x = b'1' * (800 << 20)")
    while await manager.is_alive():
        await asyncio.sleep(0.2)
    await manager.restart_kernel(now=True, stderr=-3)
    await client.wait_for_ready(timeout=60)
    shown = []
    def show(message):
        if message["msg_type"] == "display_data":
            shown.append(message["content"]["data"]["text/plain"])
    await client.execute_interactive("1", output_hook=show, timeout=60)
    print(shown)
    await manager.shutdown_kernel(now=True)

asyncio.run(main())
"""
)


def test_a_kernel_that_was_ended_for_lack_of_memory_says_so(start: Start) -> None:
    container = start("sleep", "infinity", mem_limit="400m", memswap_limit="400m")
    assert output(container, "python", "-W", "ignore", "-c", KERNEL_THAT_IS_ENDED).splitlines()[-1] == (
        '["[Lab] Your kernel was ended: the lab used 0.4 of 0.4 GiB of memory. Load less at a time, or shut '
        "down notebooks that you don't need.\"]"
    )


KERNEL_S_SCORE = (
    START_KERNEL
    + """
async def main():
    manager, client = await start_kernel()
    shown = []
    def show(message):
        if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
            shown.append(message["content"]["text"])
    cell = "print(open('/proc/self/oom_score_adj').read().strip())"
    await client.execute_interactive(cell, output_hook=show, timeout=60)
    print("".join(shown).strip(), open("/proc/self/oom_score_adj").read().strip())
    await manager.shutdown_kernel(now=True)

asyncio.run(main())
"""
)


def test_without_memory_a_kernel_is_ended_and_not_the_server_that_started_it(start: Start) -> None:
    """Also where a fork bomb's processes are smaller than the server."""
    said = output(start("sleep", "infinity"), "python", "-W", "ignore", "-c", KERNEL_S_SCORE).splitlines()[-1]
    kernel, server = map(int, said.split())
    assert kernel == min(1000, server + 400)


KERNEL_IN_A_FULL_HOME = (
    START_KERNEL
    + """FILL = '''
from pathlib import Path
big = Path.home() / "big"
try:
    with big.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
except OSError as error:
    print(error.strerror)
'''

async def main():
    manager, client = await start_kernel()
    shown = []
    def show(message):
        content = message["content"]
        if message["msg_type"] in ("display_data", "update_display_data"):
            shown.append(content["data"]["text/plain"])
        elif message["msg_type"] == "stream" and "history" not in content["text"]:  # IPython's own trouble
            shown.extend(filter(str.strip, [content["text"]]))  # its line's end may come by itself
    for cell in ("1", FILL, "1", "big.unlink()"):
        await client.execute_interactive(cell, output_hook=show, timeout=60)
    print(shown)
    await manager.shutdown_kernel(now=True)

asyncio.run(main())
"""
)


def test_a_notebook_says_that_its_home_is_full_and_takes_it_back(start: Start) -> None:
    container = start("sleep", "infinity", tmpfs={"/home/jovyan": "size=10m,uid=1000"})
    assert output(container, "python", "-W", "ignore", "-c", KERNEL_IN_A_FULL_HOME).splitlines()[-1] == str(
        [
            "No space left on device\n",
            "[Home] Your home is full (0.0 of 10 MiB are free): nothing more can be saved. Delete files "
            "that you don't need (what you delete in JupyterLab may be in ~/.local/share/Trash), or ask your "
            "admin for more room.",
            "",
        ]
    )
