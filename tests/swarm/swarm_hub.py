"""A real hub on machine a of the Swarm, with its broker; and agents on other machines, with scripted GPUs."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import APIError
from gpuspawner.hub.docker import calls_of
from gpuspawner.hub.network import ensure_network

from tests.hubstart import end_hub
from tests.nvml.scripted import Gpu, Script
from tests.running import IMAGE
from tests.swarm.cluster import Cluster, Machine
from tests.swarm.test_services import GATEWAY_IMAGE

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "tests" / "swarm" / "hub_config.py"
NAME = f"swarmhub-{secrets.token_hex(3)}"
SUBNET = "10.213.32.0/24"
PORT = 8000
DOOR = 8098
GPUSPAWNER = (sys.executable, "-m", "gpuspawner.tools.cli")
"""The command line, of this Python."""
SOON_SECONDS = 60.0
MODELS = {"a": "NVIDIA H100 80GB HBM3", "b": "NVIDIA A100 80GB PCIe", "c": "NVIDIA L40S"}
"""Each machine has one GPU of a model of its own, so that a tier chooses the machine."""


def uuid_of(machine: str) -> str:
    """The UUID of a machine's GPU."""
    return f"GPU-{ord(machine):08x}-0000-4000-8000-000000000000"


def lease_folder(machine: Machine) -> Path:
    """The state folder of a machine's agent."""
    return machine.folder / "state"


def until(condition: Callable[[], Any], told: Callable[[], str], seconds: float = SOON_SECONDS) -> None:
    """Waits until it is so; fails after that time with what is told."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.2)


def as_host(machine: Machine, *command: str) -> list[str]:
    """The command as it runs on this machine: in its network, and with its host name."""
    return machine.inside(
        "unshare", "--uts", "sh", "-c", f'hostname {machine.name}; exec "$@"', "sh", *command
    )


class Agent:
    """The agent of a machine that joins the hub's broker: a process with a scripted driver."""

    def __init__(self, machine: Machine, hub: SwarmHub) -> None:
        self.machine, self.hub = machine, hub
        self.folder = lease_folder(machine)
        self.log_path = machine.folder / "agent.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.environment = {
            **hub.driver_of(machine),
            "PYTHONPATH": hub.python_path,
            "DOCKER_HOST": machine.docker_host,
            "GPUSPAWNER_STATE_DIR": str(self.folder),
        }

    def join(self) -> None:
        """What an admin types: a token on the hub's machine, the line on this one."""
        line = self.hub.run("token").strip()
        self.folder.mkdir(exist_ok=True)
        command = self.hub.on(self.machine, *GPUSPAWNER, "node", "join", line)
        subprocess.run(command, env=self.environment, check=True)

    def enter(self) -> None:
        """Joins and starts it."""
        self.join()
        self.start()

    def start(self) -> None:
        """Starts it by hand, as `join` says where no systemd runs."""
        address = f"{self.hub.machines.manager.address}:{DOOR}"
        command = self.hub.on(self.machine, *GPUSPAWNER, "node", "agent", address)
        with self.log_path.open("ab") as out:
            self._process = subprocess.Popen(
                command, env=self.environment, stdout=out, stderr=out, start_new_session=True
            )

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def log(self) -> str:
        """What it has written."""
        return self.log_path.read_text() if self.log_path.exists() else ""


def script_of(machine: Machine) -> Script:
    """The driver of a machine, with its one GPU."""
    script = Script(machine.folder / "nvml", [Gpu(uuid_of(machine.name), MODELS[machine.name])])
    script.write()
    return script


class SwarmHub:
    """A hub that runs on machine a; what is asked of it is asked there."""

    config = CONFIG
    """The settings of hub and broker."""

    def __init__(self, machines: Cluster, folder: Path, gateway_image: str) -> None:
        self.machines, self.folder = machines, folder
        self.token = secrets.token_hex(16)
        self.log_path = folder / "hub.log"
        self.python_path = os.pathsep.join([str(ROOT / "spawner"), os.environ.get("PYTHONPATH", "")])
        self._process: subprocess.Popen[bytes] | None = None
        self.environment = {
            **os.environ,
            "PYTHONPATH": self.python_path,
            "DOCKER_HOST": machines.manager.docker_host,
            "GPUSPAWNER_ENGINE": "swarm",
            "GPUSPAWNER_PORT": str(PORT),
            "GPUSPAWNER_STATE_DIR": str(folder),
            "GPUSPAWNER_PASSWORD": secrets.token_hex(16),
            "GPUSPAWNER_ADMIN_PASSWORD": secrets.token_hex(24),
            "GPUSPAWNER_NAME": NAME,
            "GPUSPAWNER_SUBNET": SUBNET,
            "GPUSPAWNER_IMAGE": "gpuspawner-hubtest/lab",
            "GPUSPAWNER_CONFIG": str(self.config),
            "GPUSPAWNER_TEST_TOKEN": self.token,
            "GPUSPAWNER_TEST_GATEWAY": gateway_image,
            "GPUSPAWNER_TEST_LAB": IMAGE,
            "GPUSPAWNER_TEST_DOOR": f"{machines.manager.address}:{DOOR}",
        }

    def on(self, machine: Machine, *command: str) -> list[str]:
        """The command as it runs on that machine."""
        return as_host(machine, *command)

    def driver_of(self, machine: Machine) -> dict[str, str]:
        """The environment in which an agent finds the driver of its machine."""
        return script_of(machine).environment()

    def use_script(self, script: Script) -> None:
        """The broker's own machine has these GPUs, and no simulated ones."""
        scripted = script.environment()
        self.environment |= {
            "GPUSPAWNER_TEST_NVML": scripted["GPUSPAWNER_TEST_NVML"],
            "GPUSPAWNER_TEST_DRIVER": scripted["LD_LIBRARY_PATH"],
        }

    def start(self) -> None:
        """Starts it, and returns when its API answers."""
        manager = self.machines.manager
        command = self.on(manager, sys.executable, "-m", "jupyterhub", "-f", str(self.config))
        with self.log_path.open("ab") as out:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=out, stderr=out, start_new_session=True
            )
        self.until(lambda: self.call("GET", "/hub/api/info")[0] == 200)

    def close(self) -> None:
        """Ends hub, proxy and broker."""
        if self._process is not None:
            end_hub(self._process)
            self._process = None

    def run(self, *words: str) -> str:
        """`gpuspawner node WORDS` on the hub's machine."""
        command = self.on(self.machines.manager, *GPUSPAWNER, "node", *words, f"--config={self.config}")
        return subprocess.run(
            command, env=self.environment, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    def homes(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`gpuspawner homes WORDS` on the hub's machine."""
        command = self.on(self.machines.manager, *GPUSPAWNER, "homes", *words, f"--config={self.config}")
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """One request through the proxy, on machine a: status and text; 0 if nobody answers."""
        command = self.machines.manager.inside(
            "curl", "-s", "-m", "90", "-X", method, "-w", "\n%{http_code}",
            "-H", f"Authorization: token {self.token}",
            *(["-d", json.dumps(body)] if body is not None else []),
            f"http://127.0.0.1:{PORT}{path}",
        )  # fmt: skip
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout
        text, _, status = said.rpartition("\n")
        return int(status or 0), text

    def until(self, condition: Callable[[], Any], seconds: float = SOON_SECONDS) -> None:
        """Waits until it is so; fails with the hub's log."""
        until(condition, lambda: self.log_path.read_text()[-6000:], seconds)

    def server(self, user: str) -> dict[str, Any]:
        """The hub's model of the user's server; empty if there is none."""
        _, text = self.call("GET", f"/hub/api/users/{user}")
        found: dict[str, Any] = json.loads(text).get("servers", {}).get("", {})
        return found

    def status(self) -> dict[str, Any]:
        """The broker's status; empty while it doesn't answer."""
        command = ["curl", "-s", "--unix-socket", str(self.folder / "broker.sock"), "http://b/api/status"]
        said = subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout
        found: dict[str, Any] = json.loads(said) if said else {"leases": [], "devices": []}
        return found

    def leases(self) -> list[tuple[str, str]]:
        """User and state of the broker's leases."""
        return sorted((lease["user"], lease["state"]) for lease in self.status()["leases"])

    def serving(self) -> list[str]:
        """The machines whose GPUs are in service."""
        return sorted(each["uuid"] for each in self.status()["devices"] if each["healthy"])

    def spawn(self, user: str, tier: str) -> None:
        """Starts the user's server and returns when it is ready."""
        self.ask(user, tier)
        self.until(lambda: self.server(user).get("ready"))

    def ask(self, user: str, tier: str) -> None:
        """Asks for the user's server."""
        self.call("POST", f"/hub/api/users/{user}")
        status, text = self.call("POST", f"/hub/api/users/{user}/server", {"profile": tier})
        assert status in (201, 202), text

    def stop(self, user: str) -> None:
        """Stops the user's server, and returns when it is gone and its lease closed."""
        assert self.call("DELETE", f"/hub/api/users/{user}/server")[0] in (202, 204)
        self.until(lambda: not self.server(user))
        self.until(lambda: user not in dict(self.leases()))

    def news(self, user: str) -> str:
        """What the waiting page of the user's start says now."""
        path = f"/hub/api/users/{user}/server/progress"
        command = self.machines.manager.inside(
            "curl",
            "-s",
            "-m",
            "2",
            "-H",
            f"Authorization: token {self.token}",
            f"http://127.0.0.1:{PORT}{path}",
        )
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout

    def printed(self, user: str, code: str) -> str:
        """What the code prints in a kernel of the user's server, through the proxy."""
        command = self.machines.manager.inside(
            sys.executable, "-m", "tests.swarm.kernel", f"http://127.0.0.1:{PORT}/", self.token, user, code
        )
        return subprocess.run(
            command, env=self.environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    def refusal(self, user: str, tier: str) -> str:
        """The sentence with which a start is refused."""
        self.call("POST", f"/hub/api/users/{user}")
        status, text = self.call("POST", f"/hub/api/users/{user}/server", {"profile": tier})
        assert status >= 400, text
        return str(json.loads(text)["message"])

    def reason(self, uuid: str) -> str:
        """Why a GPU is out of service; "" if it isn't."""
        devices = {each["uuid"]: each for each in self.status()["devices"]}
        return str(devices.get(uuid, {}).get("reason") or "")

    def kill_broker(self) -> None:
        """kill -9 of the broker; its keeper starts it again."""
        (pid,) = [
            int(path.name)
            for path in Path("/proc").iterdir()
            if path.name.isdecimal() and _is_broker(path, self.folder)
        ]
        os.kill(pid, signal.SIGKILL)


def _is_broker(process: Path, state_dir: Path) -> bool:
    """Whether this process (its folder in /proc) is the broker with that state folder."""
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
        environment = (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"gpuspawner.broker" in words and f"GPUSPAWNER_STATE_DIR={state_dir}".encode() in environment


@contextmanager
def prepared_hub(machines: Cluster, engine: docker.APIClient) -> Iterator[SwarmHub]:
    """A hub that isn't started yet; its services, gateway and network are removed at the end."""
    if shutil.which("configurable-http-proxy") is None:
        pytest.skip("configurable-http-proxy is not on the PATH: run `make test`")
    client = machines.manager.client
    list(client.load_image(b"".join(engine.get_image(GATEWAY_IMAGE))))
    ensure_network(calls_of(client), NAME, SUBNET)
    folder = Path(tempfile.mkdtemp(prefix="gh-"))
    found = SwarmHub(machines, folder, GATEWAY_IMAGE)
    try:
        yield found
    finally:
        found.close()
        print(found.log_path.read_text()[-8000:])  # pytest shows it when a test fails
        client = machines.manager.client  # another one, if it was started again
        for service in client.services(filters={"label": f"gpuspawner.hub={NAME}"}):
            client.remove_service(service["ID"])
        with suppress(APIError):
            client.remove_container(f"{NAME}-gateway", force=True)
        shutil.rmtree(folder, ignore_errors=True)
