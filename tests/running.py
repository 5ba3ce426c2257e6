"""A running hub for tests: the repository's own settings, on free ports, with names of its own in Docker."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import docker
import docker.errors
import pytest
from gpuspawner.hub.metadata import MetadataWall

from images.table import read_table
from tests.hubstart import end_hub, own_settings, own_subnet, start_hub

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "jupyterhub_config.py"
START_SECONDS = 90
REQUIRED = "GPUSPAWNER_REQUIRE_GPU"
"""Set by `make test-gpu`: there, what is missing is a failure and not a skip."""
IMAGE = next(image.reference for image in read_table().images if image.name == "lab-base")
"""The smaller of the lab images: it has NumPy, and starts sooner."""


def missing(what: str) -> NoReturn:
    """Ends the test: skipped, or failed in a run that is there to measure a GPU."""
    if REQUIRED in os.environ:
        pytest.fail(f"this run needs all of its parts: {what}")
    pytest.skip(what)


def _answers(url: str) -> bool:
    """Asked on the loopback, whatever the host: only browsers know names below localhost."""
    where = urlsplit(url)
    local = where._replace(netloc=f"127.0.0.1:{where.port}").geturl()
    try:
        asked = urllib.request.Request(local, headers={"Host": where.netloc})
        with urllib.request.urlopen(asked, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def running_hub(config: Path, service_url: str, folder: Path, environment: dict[str, str]) -> Iterator[Path]:
    """Runs `jupyterhub -f config` in `folder` until the block ends; gives the log's path.

    Ready when the GPU service answers at `service_url`. The log is shown if that doesn't happen, or if the
    test fails.
    """
    if shutil.which("configurable-http-proxy") is None and "GPUSPAWNER_PROXY" not in os.environ:
        missing("configurable-http-proxy is not on the PATH: run `make test`")
    log_path = folder / "hub.log"
    process = start_hub(config, folder, environment, log_path)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(f"{service_url}health"):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the hub did not start:\n{log_path.read_text()[-5000:]}")
            time.sleep(0.2)
        yield log_path
    finally:
        end_hub(process)
        print(log_path.read_text()[-20_000:])


@dataclass(frozen=True)
class System:
    """Hub, proxy, broker and Docker as `make hub` runs them. `url` and `service_url` end with a slash."""

    url: str
    service_url: str
    name: str
    folder: Path
    user_password: str = field(repr=False)
    admin_password: str = field(repr=False)

    def password(self, user: str) -> str:
        """What `user` logs in with."""
        return self.admin_password if user == "admin" else self.user_password

    def broker_pid(self) -> int | None:
        """The broker's process; None while there is none."""
        text = (self.folder / "broker.lock").read_text().strip()
        return int(text) if text else None


@contextmanager
def running_system(
    folder: Path, *, config: Path = CONFIG, base_url: str = "/", domain: str = "", **environment: str
) -> Iterator[System]:
    """Runs the repository's own `jupyterhub_config.py`, and removes what it left in Docker at the end.

    `config` is another file that loads it and adds to it, `base_url` the one that it sets, and `domain` the
    host of its `subdomain_host`.
    """
    parts = restartable_system(folder, config=config, base_url=base_url, domain=domain, **environment)
    with parts as (system, running), running():
        yield system


@contextmanager
def system_with(folder: Path, settings: str, **environment: str) -> Iterator[System]:
    """The same with these settings of a site below the repository's own, for hub and broker."""
    config = folder / "site.py"
    config.write_text(f"load_subconfig({str(CONFIG)!r})\n{settings}")
    with running_system(folder, config=config, GPUSPAWNER_CONFIG=str(config), **environment) as system:
        yield system


@contextmanager
def restartable_system(
    folder: Path, *, config: Path = CONFIG, base_url: str = "/", domain: str = "", **environment: str
) -> Iterator[tuple[System, Callable[[], AbstractContextManager[Path]]]]:
    """The same, for a test that runs the hub several times: the second value runs it until its block ends."""
    image = environment.get("GPUSPAWNER_IMAGE", IMAGE)
    try:
        engine = docker.from_env(timeout=60)
    except docker.errors.DockerException as error:
        missing(f"no Docker Engine answers here: {error}")
    with closing(engine):
        if not engine.api.images(image):
            missing(f"the image {image} is not built: run `make test`")
        with _network_of(
            engine, {**own_settings(folder), "GPUSPAWNER_IMAGE": image, **environment}
        ) as settings:
            port, name = settings["GPUSPAWNER_PORT"], settings["GPUSPAWNER_NAME"]
            url = f"http://{domain or '127.0.0.1'}:{port}{base_url}"
            # The name of JupyterHub's subdomain_hook_idna for a service.
            service = f"http://gpu--service.{domain}:{port}{base_url}services/gpu/"
            service_url = service if domain else f"{url}services/gpu/"
            passwords = settings["GPUSPAWNER_PASSWORD"], settings["GPUSPAWNER_ADMIN_PASSWORD"]
            system = System(url, service_url, name, folder, *passwords)
            yield system, lambda: running_hub(config, service_url, folder, settings)


def _make_network(settings: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gpuspawner.tools.make_network", "--config", str(CONFIG)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=60,
    )


@contextmanager
def _network_of(engine: docker.DockerClient, settings: dict[str, str]) -> Iterator[dict[str, str]]:
    """The settings, with their network made; cleans up after all that carries their name."""
    name = settings["GPUSPAWNER_NAME"]
    try:
        made = _make_network(settings)
        if "Pool overlaps" in made.stderr:  # another run has just taken these addresses
            settings = {**settings, "GPUSPAWNER_SUBNET": own_subnet()}
            made = _make_network(settings)
        assert made.returncode == 0, made.stderr
        yield settings
    finally:
        of_hub = {"label": f"gpuspawner.hub={name}"}
        for container in engine.containers.list(all=True, filters=of_hub, ignore_removed=True):
            with suppress(docker.errors.NotFound):
                container.remove(force=True)
        for volume in engine.volumes.list(filters={"name": f"{name}-home-"}):
            volume.remove(force=True)
        for network in engine.networks.list(names=[name]):
            network.remove()
        MetadataWall(settings["GPUSPAWNER_SUBNET"]).remove()
