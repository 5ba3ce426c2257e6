"""A bundle, with the network cut off for real: a namespace without one, an engine without one, no .venv.

The checkout is a fresh copy, as on a machine where nobody has built anything yet.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from images.build import Task, choose_stock, has_driver
from images.bundle import MANIFEST
from images.debs import add_packages, packages_of
from images.engine import run
from images.pack import pack
from images.table import read_table
from setup.steps import ROOT, step
from tests.docker.engine import SecondEngine, missing, second_engine

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare on this machine"),
]
NAMES = os.environ.get("GPUSPAWNER_BUNDLE_NAMES", "lab-base").split()
"""What is built without network. lab-torch takes minutes more, so all of it is built only if asked for."""


@pytest.fixture(scope="module")
def bundle(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of this checkout."""
    folder = tmp_path_factory.mktemp("bundle") / "made"
    pack(engine, read_table(), ["lab-torch"], folder)
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout's own files, and nothing that was made in it."""
    folder = tmp_path_factory.mktemp("checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def other() -> Iterator[SecondEngine]:
    """An empty engine without network."""
    with second_engine() as engine:
        yield engine


def make_images(checkout: Path, bundle: Path, engine: SecondEngine) -> tuple[int, str]:
    """`make images` in a namespace that has no network: exit status, and all that it said."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PIP_", "PYTHON", "VIRTUAL_ENV", "GPUSPAWNER_", "MAKE"))
    }
    environment |= {
        "DOCKER_HOST": engine.url,
        "PIP_CONFIG_FILE": "/dev/null",
        "CPU": "0" if has_driver() else "1",
    }
    command = ["unshare", "--net", "make", "images", f"BUNDLE={bundle}", f"NAMES={' '.join(NAMES)}"]
    done = subprocess.run(
        command, cwd=checkout, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def test_built_and_started_without_any_network(
    engine: docker.DockerClient, checkout: Path, bundle: Path, other: SecondEngine
) -> None:
    reached = subprocess.run(
        [
            "unshare",
            "--net",
            "python3",
            "-c",
            "import socket; socket.create_connection(('192.0.2.1', 80), 3)",
        ],
        capture_output=True,
        text=True,
    )
    assert "Network is unreachable" in reached.stderr  # the namespace is what it is meant to be
    status, said = make_images(checkout, bundle, other)
    assert status == 0, said
    assert "from the bundle" in said
    table = read_table()
    for image in table.with_parents(NAMES):
        there = other.client.images.get(image.reference)
        here = engine.images.get(image.reference)
        labels = ("gpuspawner.packages", "gpuspawner.inputs", "gpuspawner.base", "gpuspawner.cuda")
        assert {name: there.labels[name] for name in labels} == {name: here.labels[name] for name in labels}
    server = ["jupyter", "lab", "--no-browser", "--ServerApp.ip=127.0.0.1"]
    newest = table.with_parents(NAMES)[-1].reference
    lab = other.client.containers.run(newest, server, detach=True, network_mode="none")
    deadline = time.monotonic() + 120
    while lab.exec_run(["check-lab"]).exit_code != 0:
        assert time.monotonic() < deadline, lab.logs().decode()
        time.sleep(0.5)

    status, said = make_images(checkout, bundle, other)  # and nothing is done twice
    assert status == 0, said
    assert said.count("is up to date") == len(table.with_parents(NAMES))


def test_debian_packages_are_installed_without_any_network(
    bundle: Path, other: SecondEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lab-torch's own, on the lab-base that was built above."""
    monkeypatch.setenv("BUNDLE", str(bundle))
    table = read_table()
    base, torch = table.with_parents(["lab-torch"])
    task = Task(other.client, torch, base.core, choose_stock(table))
    with step("Debian packages") as current:
        debs = packages_of(other.client, task.layer, task.stock, current)
        add_packages(other.client, task.layer, ("gpuspawner/debs:test", {}), debs, current)
    options = {"entrypoint": [], "network_mode": "none"}
    assert run(other.client, "gpuspawner/debs:test", ["g++", "--version"], **options).startswith("g++ (")
    config = other.client.images.get("gpuspawner/debs:test").attrs["Config"]
    parent = other.client.images.get(base.core).attrs["Config"]
    for key in ("User", "Entrypoint", "Cmd", "Env", "WorkingDir", "Healthcheck", "ExposedPorts"):
        assert config.get(key) == parent.get(key)


def test_a_damaged_bundle_builds_nothing(
    checkout: Path, bundle: Path, other: SecondEngine, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    (copy / "base.tar").write_bytes(b"cut off")
    other.client.images.remove(read_table().base.reference, force=True)
    status, said = make_images(checkout, copy, other)
    assert status != 0
    assert f"✗ in the bundle {copy}, base.tar is damaged\n  → copy it again, or make it again" in said
    (copy / MANIFEST).unlink()
    status, said = make_images(checkout, copy, other)
    assert status != 0
    assert f"✗ there is no bundle in {copy} (it has no {MANIFEST})" in said
