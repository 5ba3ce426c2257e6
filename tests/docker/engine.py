"""A second Docker Engine of a test's own: newer than the system's, with CDI, on its own socket and data.

`setup/engine-cdi.sh` fetches it. It touches neither the system's engine nor its network: containers there
run with network mode "none" or "host".

    with second_engine(cdi_spec_dirs=[tmp_path / "cdi"]) as engine:
        engine.copy_image(docker.from_env(), "gpuspawner/base:0.1.0")
        engine.client.containers.run("gpuspawner/base:0.1.0", ...)
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
from docker.errors import DockerException, ImageNotFound

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60.0
STOP_SECONDS = 20.0


@dataclass(frozen=True)
class SecondEngine:
    """A running engine: the path of its socket, a client connected to it, and where its log lies."""

    address: Path
    client: docker.DockerClient
    log: Path

    @property
    def url(self) -> str:
        """What DOCKER_HOST must be for it."""
        return f"unix://{self.address}"

    def copy_image(self, source: docker.DockerClient, reference: str) -> None:
        """Brings an image of another engine here, under its own name, unless it is here already."""
        try:
            self.client.images.get(reference)
        except ImageNotFound:
            stream: Any = source.images.get(reference).save(named=True)  # chunks: sent on as they come
            self.client.images.load(stream)


def engine_folder() -> Path:
    """Where the programs of the newer engine lie: `$GPUSPAWNER_CDI_ENGINE_DIR` or `.cache/engine-cdi`."""
    return Path(os.environ.get("GPUSPAWNER_CDI_ENGINE_DIR") or ROOT / ".cache" / "engine-cdi")


def missing() -> str | None:
    """Why no second engine can run here (a reason to skip), or None if one can."""
    if os.geteuid() != 0:
        return "a second Docker Engine needs root"
    if not (engine_folder() / "bin" / "dockerd").exists():
        return "no newer Docker Engine in .cache/engine-cdi: run setup/engine-cdi.sh"
    if shutil.which("runc") is None:
        return "no runc on this machine"
    return None


@contextlib.contextmanager
def second_engine(cdi_spec_dirs: Sequence[Path] = (), programs: Path | None = None) -> Iterator[SecondEngine]:
    """Runs the engine while the block runs; afterwards its containers, data and processes are gone.

    `cdi_spec_dirs` is where it looks for CDI specs. `programs` is a folder put in front of its PATH (for a
    stand-in of `nvidia-container-runtime-hook`, say). Raises RuntimeError with the log's end if it does
    not start.
    """
    work = Path(tempfile.mkdtemp(prefix="gpuspawner-engine-"))
    log = work / "engine.log"
    path = [str(engine_folder() / "bin"), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]
    environment = {**os.environ, "PATH": ":".join([*([str(programs)] if programs else []), *path])}
    processes: list[subprocess.Popen[bytes]] = []
    engine: SecondEngine | None = None
    try:
        with log.open("wb") as out:
            for command in _commands(work, cdi_spec_dirs):
                processes.append(
                    subprocess.Popen(
                        command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                        start_new_session=True,
                    )
                )  # fmt: skip
        engine = SecondEngine(work / "docker.sock", _connect(work / "docker.sock", processes, log), log)
        yield engine
    finally:
        if engine is not None:
            _remove_containers(engine.client)
            engine.client.close()
        for process in reversed(processes):
            _stop(process)
        _unmount_below(work)
        shutil.rmtree(work, ignore_errors=True)


def _commands(work: Path, cdi_spec_dirs: Sequence[Path]) -> list[list[str]]:
    """The command lines of containerd and dockerd; both keep everything below `work`."""
    programs = engine_folder() / "bin"
    containerd = work / "containerd.toml"
    containerd.write_text(
        f'version = 2\nroot = "{work}/containerd"\nstate = "{work}/containerd-state"\n'
        f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{work}/containerd.sock"\n'
    )
    dockerd = work / "daemon.json"
    settings = {"features": {"cdi": True}, "cdi-spec-dirs": [str(folder) for folder in cdi_spec_dirs]}
    dockerd.write_text(json.dumps(settings))
    return [
        [str(programs / "containerd"), "--config", str(containerd)],
        [
            # A network of its own: with --bridge=none an engine removes docker0, the machine's own bridge.
            "unshare",
            "--net",
            str(programs / "dockerd"),
            f"--config-file={dockerd}",
            f"--containerd={work}/containerd.sock",
            f"--host=unix://{work}/docker.sock",
            f"--data-root={work}/data",
            f"--exec-root={work}/exec",
            f"--pidfile={work}/dockerd.pid",
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
        ],
    ]


def _connect(address: Path, processes: Sequence[subprocess.Popen[bytes]], log: Path) -> docker.DockerClient:
    deadline = time.monotonic() + START_SECONDS
    while not answers(address):
        if any(process.poll() is not None for process in processes) or time.monotonic() > deadline:
            raise RuntimeError(f"the engine did not start: {log.read_text()[-2000:]}")
        time.sleep(0.1)
    return docker.DockerClient(base_url=f"unix://{address}", version="auto")


def answers(address: Path) -> bool:
    """Whether an engine answers there; on a bare socket, since a client that fails leaves its own open."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        try:
            connection.connect(str(address))
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return connection.recv(64).startswith((b"HTTP/1.0 200", b"HTTP/1.1 200"))
        except OSError:
            return False


def _remove_containers(client: docker.DockerClient) -> None:
    with contextlib.suppress(DockerException):
        for container in client.containers.list(all=True, ignore_removed=True):
            container.remove(force=True, v=True)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _unmount_below(folder: Path) -> None:
    """A killed engine leaves mounts behind, and they would keep its folder."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "-l", mount], check=False)
