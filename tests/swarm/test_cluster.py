"""The machines of these tests: joined, reachable and cut as meant, and nothing is left of them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.swarm.cluster import Cluster, remove_leftovers

pytestmark = pytest.mark.docker
_SPACES = Path("/run/netns")


_GOSSIP_PORT = 7946


def reaches(machines: Cluster, one: str, other: str) -> bool:
    """Whether a machine reaches the port by which the engine of another speaks with its like."""
    script = f"import socket; socket.create_connection(('{machines[other].address}', {_GOSSIP_PORT}), 1)"
    command = machines[one].inside(sys.executable, "-c", script)
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


def states(machines: Cluster) -> dict[str, tuple[str, str]]:
    return {
        node["Description"]["Hostname"]: (node["Status"]["State"], node["Spec"]["Role"])
        for node in machines.nodes()
    }


def test_three_machines_form_a_swarm(machines: Cluster) -> None:
    assert states(machines) == {
        "a": ("ready", "manager"),
        "b": ("ready", "worker"),
        "c": ("ready", "worker"),
    }
    ids = {each.client.inspect_image("gpuspawner-hubtest/lab")["Id"] for each in machines}
    assert len(ids) == 1


def test_a_cut_cable_and_its_repair(machines: Cluster) -> None:
    assert reaches(machines, "b", "c")
    machines["c"].cut()
    try:
        assert not reaches(machines, "b", "c")
        assert machines["c"].client.ping()
    finally:
        machines["c"].mend()
    assert reaches(machines, "b", "c")


def test_an_engine_that_is_killed_comes_back_to_the_swarm(machines: Cluster) -> None:
    machines["c"].kill()
    machines["c"].start()
    deadline = time.monotonic() + 30
    while machines["c"].client.info()["Swarm"]["LocalNodeState"] != "active":
        assert time.monotonic() < deadline
        time.sleep(0.2)


_KILLED = """
import os, signal, sys
sys.path[:0] = {path!r}
from tests.swarm.cluster import cluster
with cluster() as machines:
    print(machines.owner, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_test_left_is_removed_and_nothing_else(machines: Cluster) -> None:
    script = _KILLED.format(path=sys.path)
    child = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False)
    owner = child.stdout.strip()
    assert (_SPACES / f"{owner}-a").exists()
    assert remove_leftovers() == [owner]
    assert [space.name for space in _SPACES.glob(f"{owner}*")] == []
    assert not Path("/tmp", owner).exists()
    assert f"/tmp/{owner}/" not in Path("/proc/mounts").read_text()
    everything = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert [words for words in everything if owner.encode() in words] == []
    assert {name: state for name, (state, _) in states(machines).items() if name != "c"} == {
        "a": "ready",
        "b": "ready",
    }
