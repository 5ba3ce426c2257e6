"""Three Docker Engines of a test's own on this machine, each in a network namespace, joined to one Swarm.

They share nothing with the system's engine but the kernel: own networks behind a switch in a namespace of
its own (no firewall rule of this machine is changed), own data, own cgroups, own host names. Everything has
the name `gsw-PID-START`, of the process that made it and of when that began: what a killed test left is
found by that name, and only what has no living owner is removed.

    with cluster() as machines:
        machines.manager.client.service_create(...)
        machines["b"].cut()

The engines' programs are those of `tests/docker/engine.py`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker

from tests.docker.engine import answers, engine_folder
from tests.hubstart import own_subnet

NAMES = ("a", "b", "c")
PREFIX = "gsw"
NODE_LABEL = "gpuspawner.node"
WITH_RUNTIME = {"runtimes": {"nvidia": {"path": "runc"}}, "default-runtime": "nvidia"}
"""As `nvidia-ctk runtime configure --set-as-default` leaves it; the runtime itself adds no device here."""
START_SECONDS = 60.0
STOP_SECONDS = 5.0
_SPACES = Path("/run/netns")
_TEMP = Path("/tmp")
_CGROUPS = Path("/sys/fs/cgroup")
_OWNED = re.compile(rf"{PREFIX}-(\d+)-(\d+)")


def ip(*arguments: str) -> None:
    """`ip ARGUMENTS`. Raises CalledProcessError, whose output the test shows."""
    subprocess.run(["ip", *arguments], check=True)


@dataclass
class Machine:
    """One engine in its namespace. `owner` is the name of the whole, `address` the machine's own."""

    name: str
    owner: str
    address: str
    folder: Path
    client: docker.APIClient = field(init=False)
    settings: dict[str, Any] = field(default_factory=lambda: dict(WITH_RUNTIME))
    """The engine's daemon.json, read at its start."""
    environment: dict[str, str] = field(default_factory=dict)
    """More of the engine's environment, which the runtimes that it starts have too."""
    _process: subprocess.Popen[bytes] | None = None

    @property
    def space(self) -> str:
        """Its network namespace, for `ip netns` and `nsenter --net=/run/netns/…`."""
        return f"{self.owner}-{self.name}"

    @property
    def docker_host(self) -> str:
        """What DOCKER_HOST is on this machine."""
        return f"unix://{self.folder}/docker.sock"

    @property
    def log(self) -> str:
        """What the engine has written."""
        path = self.folder / "engine.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def inside(self, *command: str) -> list[str]:
        """The command as it runs on this machine: in its network."""
        return ["nsenter", f"--net={_SPACES / self.space}", *command]

    def start(self) -> None:
        """Starts the engine, also after `kill` or `power_off`, and waits until it answers."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / "daemon.json").write_text(json.dumps(self.settings))
        programs = engine_folder() / "bin"
        command = self.inside(
            "unshare", "--uts", "sh", "-c", 'hostname "$1"; shift; exec "$@"', "sh", self.name,
            str(programs / "dockerd"),
            f"--config-file={self.folder}/daemon.json",
            f"--data-root={self.folder}/data",
            f"--exec-root={self.folder}/exec",
            f"--pidfile={self.folder}/dockerd.pid",
            f"--host={self.docker_host}",
            f"--cgroup-parent=/{self.space}",
        )  # fmt: skip
        path = ":".join([str(programs), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
        with (self.folder / "engine.log").open("ab") as out:
            self._process = subprocess.Popen(
                command, env={**os.environ, "PATH": path, **self.environment}, stdin=subprocess.DEVNULL,
                stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        self.client = self._connect()

    def _connect(self) -> docker.APIClient:
        deadline = time.monotonic() + START_SECONDS
        while not answers(self.folder / "docker.sock"):
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the engine of {self.name} did not start: {self.log[-2000:]}")
            time.sleep(0.1)
        return docker.APIClient(base_url=self.docker_host, version="auto", timeout=60)

    def kill(self) -> None:
        """SIGKILL for the engine alone; its containers live on until it is started again."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """The engine hangs: it takes connections and answers nothing, until `thaw`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """The engine goes on where it was."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def power_off(self) -> None:
        """Everything on the machine ends at once, as without power."""
        self._end(signal.SIGKILL)
        end_processes(self.folder, f"/{self.space}")

    def cut(self) -> None:
        """Its cable is pulled: it reaches nobody, and everything on it goes on."""
        ip("-n", f"{self.owner}-switch", "link", "set", f"to-{self.name}", "down")

    def mend(self) -> None:
        """Its cable is back."""
        ip("-n", f"{self.owner}-switch", "link", "set", f"to-{self.name}", "up")

    def _end(self, number: int) -> None:
        client: docker.APIClient | None = getattr(self, "client", None)
        if client is not None:
            client.close()
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.wait(STOP_SECONDS)
        self._process = None


class Cluster:
    """The machines, the first of which is the Swarm's manager; `subnet` is that of the cables."""

    def __init__(
        self,
        owner: str,
        subnet: str,
        names: Sequence[str] = NAMES,
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.owner, self.subnet = owner, subnet
        self.folder = _TEMP / owner
        self._net = subnet.rpartition(".")[0]
        self._all = {
            name: Machine(name, owner, f"{self._net}.{10 + number}", self.folder / name)
            for number, name in enumerate(names)
        }
        for machine in self:
            machine.settings |= settings or {}
            machine.environment |= environment or {}

    def __getitem__(self, name: str) -> Machine:
        return self._all[name]

    def __iter__(self) -> Iterator[Machine]:
        return iter(self._all.values())

    @property
    def manager(self) -> Machine:
        """The machine of the hub."""
        return next(iter(self))

    @property
    def tester(self) -> str:
        """The address of this process's side: where the machines find what a test itself serves."""
        return f"{self._net}.1"

    def start(self) -> None:
        """Lays the cables and starts the engines."""
        self.folder.mkdir()
        # In memory: on this disk, the files of one image took 39 s to remove.
        subprocess.run(["mount", "-t", "tmpfs", self.owner, str(self.folder)], check=True)
        self._lay_cables()
        self.each(Machine.start)

    def join(self) -> None:
        """Makes one Swarm of them, and gives each its name there."""
        manager = self.manager
        manager.client.init_swarm(**self._place_of(manager))
        token = manager.client.inspect_swarm()["JoinTokens"]["Worker"]
        self.each(lambda each: self._join(each, token) if each is not manager else None)
        self._label_nodes()

    def node_id(self, name: str) -> str:
        """Swarm's id of a machine."""
        return next(str(each["ID"]) for each in self.nodes() if each["Description"]["Hostname"] == name)

    def nodes(self) -> list[dict[str, Any]]:
        """The machines as the manager sees them."""
        found: list[dict[str, Any]] = self.manager.client.nodes()
        return found

    def create_service(self, machine: str, name: str, labels: dict[str, str], **more: Any) -> str:
        """A service of the test's lab with these labels, pinned to a machine; its id."""
        client: Any = self.manager.client
        task = {
            "ContainerSpec": {
                "Image": client.inspect_image("gpuspawner-hubtest/lab")["Id"],
                "Labels": labels,
                "Command": ["/lab"],
            },
            "RestartPolicy": {"Condition": "none"},
            "Placement": {"Constraints": [f"node.id=={self.node_id(machine)}"]},
        }
        endpoint = {"Mode": "dnsrr"}
        made = client.create_service(task, name=name, labels=labels, endpoint_spec=endpoint, **more)
        return str(made["ID"])

    def load(self, source: docker.APIClient, *images: str) -> None:
        """Brings images of another engine onto all machines, under their own names and with their own ids."""
        for image in images:
            data = b"".join(source.get_image(image))
            self.each(lambda each, data=data: list(each.client.load_image(data)))  # type: ignore[misc]

    def each(self, work: Callable[[Machine], Any]) -> None:
        """Does it on all machines at the same time."""
        with ThreadPoolExecutor(len(self._all)) as pool:
            list(pool.map(work, self))

    def _place_of(self, machine: Machine) -> dict[str, Any]:
        return {
            "advertise_addr": machine.address,
            "listen_addr": f"{machine.address}:2377",
            "data_path_addr": machine.address,
        }

    def join_one(self, name: str) -> None:
        """One that has left joins again; it has no name there yet."""
        self._join(self._all[name], self.manager.client.inspect_swarm()["JoinTokens"]["Worker"])

    def _join(self, machine: Machine, token: str) -> None:
        managers = [f"{self.manager.address}:2377"]
        machine.client.join_swarm(managers, token, **self._place_of(machine))

    def _label_nodes(self) -> None:
        """Gives each node its name as a label, as soon as the manager knows it."""
        deadline = time.monotonic() + START_SECONDS
        while any(each["Status"]["State"] != "ready" for each in self.nodes()):
            assert time.monotonic() < deadline, self.nodes()
            time.sleep(0.1)
        client: Any = self.manager.client
        for node in self.nodes():
            spec = {**node["Spec"], "Labels": {NODE_LABEL: node["Description"]["Hostname"]}}
            client.update_node(node["ID"], node["Version"]["Index"], spec)

    def _lay_cables(self) -> None:
        switch = f"{self.owner}-switch"
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "switch", "type", "bridge")
        ip("-n", switch, "link", "set", "switch", "up")
        for each in self:
            ip("netns", "add", each.space)
            ip("-n", each.space, "link", "set", "lo", "up")
            self._connect(["netns", each.space], "eth0", f"to-{each.name}")
            ip("-n", each.space, "addr", "add", f"{each.address}/24", "dev", "eth0")
            ip("-n", each.space, "link", "set", "eth0", "up")
        own = cable_of(self.owner)
        self._connect([], own, "to-tester")
        ip("addr", "add", f"{self.tester}/24", "dev", own)
        ip("link", "set", own, "up")

    def _connect(self, space: Sequence[str], name: str, port: str) -> None:
        switch = f"{self.owner}-switch"
        ip("link", "add", name, *space, "type", "veth", "peer", "name", port, "netns", switch)
        ip("-n", switch, "link", "set", port, "master", "switch", "up")


@contextmanager
def cluster(
    *,
    joined: bool = True,
    names: Sequence[str] = NAMES,
    settings: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Cluster]:
    """These machines while the block runs; afterwards nothing of them is left.

    They are one Swarm, or engines that know nothing of each other; `settings` are more of their daemon.json,
    `environment` more of their environment. First it removes what killed tests left behind.
    """
    remove_leftovers()
    pid = os.getpid()
    owner = f"{PREFIX}-{pid}-{_started(pid)}"
    machines = Cluster(owner, own_subnet(), names, settings, environment)
    try:
        machines.start()
        if joined:
            machines.join()
        yield machines
    finally:
        for each in machines:
            each.power_off()
        remove(owner)


def remove_leftovers() -> list[str]:
    """Removes clusters whose owner is gone; returns their names."""
    places = (_TEMP, _SPACES)
    names = {match[0] for place in places if place.exists() for each in place.iterdir()
             if (match := _OWNED.match(each.name))}  # fmt: skip
    left = [name for name in sorted(names) if not _has_owner(name)]
    for name in left:
        remove(name)
    return left


def remove(owner: str) -> None:
    """Ends and removes all that has this name: processes, mounts, cgroups, namespaces, files."""
    folder = _TEMP / owner
    end_processes(folder, f"/{owner}-")
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((each for each in mounts if f"{each}/".startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "-l", mount], check=False)
    for space in _SPACES.glob(f"{owner}-*"):
        subprocess.run(["ip", "netns", "del", space.name], check=False)
    subprocess.run(["ip", "link", "del", cable_of(owner)], check=False, stderr=subprocess.DEVNULL)
    for cgroup in [*_CGROUPS.glob(f"*/{owner}-*"), *_CGROUPS.glob(f"{owner}-*")]:
        for inner in sorted(cgroup.rglob("*/"), reverse=True):
            with suppress(OSError):
                inner.rmdir()
        with suppress(OSError):
            cgroup.rmdir()
    shutil.rmtree(folder, ignore_errors=True)


def cable_of(owner: str) -> str:
    """The name of this process's side of its cable; the kernel takes 15 characters at most."""
    return f"{PREFIX}{owner.split('-')[1]}"


def end_processes(folder: Path, cgroup: str) -> None:
    """SIGKILL for the programs that run out of `folder`, and for all in cgroups that begin with `cgroup`."""
    for _ in range(50):
        found = [
            pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_of(pid, folder, cgroup)
        ]
        if not found:
            return
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _is_of(pid: int, folder: Path, cgroup: str) -> bool:
    """Engine, containerd and shims name the folder; what runs in containers is in the cgroups."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        if f"{folder}/" in words and any(
            name in words.split("\0")[0] for name in ("dockerd", "containerd", "docker-proxy")
        ):
            return True
        groups = Path(f"/proc/{pid}/cgroup").read_text()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" and f":{cgroup}" in groups
    return False


def _has_owner(name: str) -> bool:
    match = _OWNED.match(name)
    assert match
    with suppress(OSError):
        return _started(int(match[1])) == match[2]
    return False


def _started(pid: int) -> str:
    """When a process began, in clock ticks since the machine did: with its pid, this names it for good."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
