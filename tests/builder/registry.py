"""A real container registry on 127.0.0.1: Debian's docker-registry, unpacked and not installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from setup.steps import ROOT
from tests.hubstart import free_ports

FOLDER = ROOT / ".cache" / "registry"
START_SECONDS = 20.0


def program() -> str:
    """The registry's program, fetched by apt if it isn't there. Skips the test where that can't be."""
    own = shutil.which("docker-registry")
    fetched = FOLDER / "usr" / "bin" / "docker-registry"
    if own is None and not fetched.exists():
        if shutil.which("apt-get") is None:
            pytest.skip("no docker-registry here, and no apt to fetch it")
        FOLDER.mkdir(parents=True, exist_ok=True)
        command = ["apt-get", "-o", f"APT::Sandbox::User={_user()}", "download", "-q", "docker-registry"]
        done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True)
        debs = list(FOLDER.glob("docker-registry_*.deb"))
        if not debs:
            pytest.skip(f"docker-registry can't be fetched: {done.stderr.strip()[-200:]}")
        subprocess.run(["dpkg", "-x", str(debs[0]), str(FOLDER)], check=True)
    return own or str(fetched)


def _user() -> str:
    return "root" if os.geteuid() == 0 else os.environ.get("USER", "nobody")


@contextlib.contextmanager
def running_registry(folder: Path) -> Iterator[str]:
    """Runs the registry while the block runs; yields its address, "127.0.0.1:port"."""
    address = f"127.0.0.1:{free_ports(1)}"
    config = folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {folder}/data\nhttp:\n  addr: {address}\n"
    )
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen([program(), "serve", str(config)], stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _listens(address):
                assert process.poll() is None, (folder / "registry.log").read_text()[-1000:]
                assert time.monotonic() < deadline, "the registry does not answer"
                time.sleep(0.1)
            yield address
        finally:
            process.terminate()
            process.wait()


def _listens(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0
