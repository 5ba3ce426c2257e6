"""How soon quotas hold again after the broker was killed, from the start of the new process on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import docker
import pytest

from tests.docker.place import until
from tests.docker.test_guard import alive
from tests.docker.test_slices import GIB, Site, slice_site
from tests.prompt import go_first, going_first

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(os.geteuid() != 0, reason="MPS and the guard serve containers only as root"),
]

RESUMES_SECONDS = 2.0
"""So soon after its start a broker must look."""
SECOND_LOOK_SECONDS = 0.25
"""Far over its quota, a process ends at the second look."""


@dataclass
class Brokers:
    """Brokers as processes of their own on the site's state folder, each killed with SIGKILL."""

    site: Site
    tools: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        environment = {
            **self.site.script.environment(),
            "PATH": f"{self.tools}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        command = [sys.executable, "-m", "gpuspawner.broker", "--config", str(self.site.config())]
        with (self.site.folder / "broker.log").open("ab") as log:
            self.running.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=log, preexec_fn=go_first)
            )

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


async def test_a_killed_broker_s_successor_guards_within_2_s_of_its_start(brokers: Brokers) -> None:
    """Not counted: how soon the hub or systemd starts it, and what else this machine does meanwhile.

    The broker and who measures wait for no other process; where that may not be, six tries help.
    """
    site = brokers.site
    brokers.start()
    await until((site.folder / "broker.sock").exists, 15)
    anna, box = await site.start("anna")
    took = [60.0]
    for number in range(6):
        if min(took) < RESUMES_SECONDS + SECOND_LOOK_SECONDS:
            break
        kernel = box.sleeper(f"kernel-{number}")
        brokers.kill()
        line = site.script.process(kernel, 20 * GIB, mps=1)
        with going_first():
            began = time.monotonic()
            brokers.start()
            await until(lambda kernel=kernel: not alive(kernel), 15)
            took.append(time.monotonic() - began)
        site.script.drop(line)
        await until(lambda number=number: f"'kernel-{number}'" in site.notice(anna), 5)
    print("from the start to the verdict:", took[1:])
    assert min(took) < RESUMES_SECONDS + SECOND_LOOK_SECONDS
