"""Quotas hold again after the broker was killed: the new process looks before it does anything else.

How long that takes from its start is measured in bench/guard_restart.py.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import docker
import pytest

from tests.docker.test_guard import alive
from tests.docker.test_slices import GIB, Site, slice_site
from tests.soon import until

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(os.geteuid() != 0, reason="MPS and the guard serve containers only as root"),
]

START_SECONDS = 60.0
"""Far over what a broker's start takes on a busy machine."""


@dataclass
class Brokers:
    """Brokers as processes of their own on the site's state folder, each killed with SIGKILL."""

    site: Site
    tools: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        return {
            **self.site.script.environment(),
            "PATH": f"{self.tools}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }

    def start(self, **more: str) -> None:
        """`more` are variables of its environment."""
        environment = {**self.environment(), **more}
        command = [sys.executable, "-m", "gpuspawner.broker", "--config", str(self.site.config())]
        with (self.site.folder / "broker.log").open("ab") as log:
            self.running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    def kill(self) -> None:
        self.running[-1].kill()
        self.running[-1].wait(5)


@contextmanager
def brokers_of(site: Site, tools: Path) -> Iterator[Brokers]:
    """The classic way into a container: it counts as there if NVIDIA's hook is on the PATH."""
    tools.mkdir()
    hook = tools / "nvidia-container-runtime-hook"
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o755)
    brokers = Brokers(site, tools)
    try:
        yield brokers
    finally:
        for process in brokers.running:
            process.kill()
            process.wait(5)
        print((site.folder / "broker.log").read_text()[-5000:])


@pytest.fixture
async def brokers(
    engine: docker.APIClient, tiny_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Brokers]:
    async with slice_site(engine, tiny_image, tmp_path, monkeypatch) as site:
        with brokers_of(site, tmp_path / "tools") as brokers:
            yield brokers


@contextmanager
def silent_docker(path: Path) -> Iterator[str]:
    """The DOCKER_HOST of an engine that accepts every connection and never answers."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)
        yield f"unix://{path}"


async def test_a_killed_broker_s_successor_guards_before_it_does_anything_else(brokers: Brokers) -> None:
    """Docker never answers the successor: it waits there, and the quotas hold all the same."""
    site = brokers.site
    address = site.folder / "broker.sock"
    brokers.start()
    await until(address.exists, START_SECONDS)
    anna, box = await site.start("anna")
    kernel = box.sleeper("kernel")
    brokers.kill()
    before = len((site.folder / "broker.log").read_text())
    site.script.process(kernel, 20 * GIB, mps=1)
    with silent_docker(site.folder / "silent.sock") as docker_host:
        brokers.start(DOCKER_HOST=docker_host)
        await until(lambda: not alive(kernel), START_SECONDS)
        await until(lambda: "'kernel'" in site.notice(anna), START_SECONDS)
        log = (site.folder / "broker.log").read_text()[before:]
    events = re.findall(r"'kernel' was ended|The broker answers", log)
    assert events[0] == "'kernel' was ended"
