"""A running hub for tests: the repository's own settings, on free ports, with names of its own in Docker."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import docker
import docker.errors
import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "jupyterhub_config.py"
START_SECONDS = 90
IMAGE = "gpuspawner/lab-base:0.1.0"
"""The smaller of the lab images: it has NumPy, and starts sooner."""


def free_ports(count: int) -> int:
    """The first of `count` ports in a row on which nobody listens."""
    for _ in range(100):
        first = 20_000 + secrets.randbelow(12_000)  # below the range that the kernel gives out
        probes = [socket.socket() for _ in range(count)]
        try:
            for number, probe in enumerate(probes):
                probe.bind(("127.0.0.1", first + number))
            return first
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
    raise RuntimeError(f"no {count} free ports in a row")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def running_hub(config: Path, url: str, folder: Path, environment: dict[str, str]) -> Iterator[Path]:
    """Runs `jupyterhub -f config` in `folder` until the block ends; gives the log's path.

    Ready when the GPU service answers. The log is shown if that doesn't happen, or if the test fails.
    """
    if shutil.which("configurable-http-proxy") is None and "GPUSPAWNER_PROXY" not in os.environ:
        pytest.skip("configurable-http-proxy is not on the PATH: run `make test`")
    log_path = folder / "hub.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterhub", "-f", str(config)],
            cwd=folder,
            env={**os.environ, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(f"{url}services/gpu/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the hub did not start:\n{log_path.read_text()[-5000:]}")
            time.sleep(0.2)
        yield log_path
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)
        print(log_path.read_text()[-20_000:])


@dataclass(frozen=True)
class System:
    """Hub, proxy, broker and Docker as `make hub` runs them. `url` ends with a slash."""

    url: str
    name: str
    folder: Path
    user_password: str = field(repr=False)
    admin_password: str = field(repr=False)

    def password(self, user: str) -> str:
        """What `user` logs in with."""
        return self.admin_password if user == "admin" else self.user_password


@contextmanager
def running_system(folder: Path, *, config: Path = CONFIG, **environment: str) -> Iterator[System]:
    """Runs the repository's own `jupyterhub_config.py`, and removes what it left in Docker at the end.

    `config` is another file that loads it and adds to it.
    """
    image = environment.get("GPUSPAWNER_IMAGE", IMAGE)
    try:
        engine = docker.from_env(timeout=60)
    except docker.errors.DockerException as error:
        pytest.skip(f"no Docker Engine answers here: {error}")
    with closing(engine):
        if not engine.images.list(image):
            pytest.skip(f"the image {image} is not built: run `make test`")
        with _network_of(engine, f"gpuspawner-t{secrets.token_hex(3)}", folder, environment) as settings:
            port, name = settings["GPUSPAWNER_PORT"], settings["GPUSPAWNER_NAME"]
            url = f"http://127.0.0.1:{port}/"
            passwords = settings["GPUSPAWNER_PASSWORD"], settings["GPUSPAWNER_ADMIN_PASSWORD"]
            with running_hub(config, url, folder, settings):
                yield System(url, name, folder, *passwords)


@contextmanager
def _network_of(
    engine: docker.DockerClient, name: str, folder: Path, environment: dict[str, str]
) -> Iterator[dict[str, str]]:
    """Settings for a system of its own, with its network made; cleans up after all that carries `name`."""
    settings = {
        "GPUSPAWNER_PORT": str(free_ports(4)),
        "GPUSPAWNER_STATE_DIR": str(folder),
        "GPUSPAWNER_PASSWORD": secrets.token_hex(16),
        "GPUSPAWNER_ADMIN_PASSWORD": secrets.token_hex(24),
        "GPUSPAWNER_IMAGE": IMAGE,
        "GPUSPAWNER_NAME": name,
        "GPUSPAWNER_SUBNET": f"10.{220 + secrets.randbelow(30)}.{secrets.randbelow(256)}.0/24",
        **environment,
    }
    try:
        made = subprocess.run(
            [sys.executable, "-m", "gpuspawner.network", "--config", str(CONFIG)],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert made.returncode == 0, made.stderr
        yield settings
    finally:
        for container in engine.containers.list(all=True, filters={"label": f"gpuspawner.hub={name}"}):
            with suppress(docker.errors.NotFound):
                container.remove(force=True)
        for volume in engine.volumes.list(filters={"name": f"{name}-home-"}):
            volume.remove(force=True)
        for network in engine.networks.list(names=[name]):
            network.remove()
