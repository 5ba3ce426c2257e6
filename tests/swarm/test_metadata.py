"""A cloud's metadata service can't be reached by labs of a Swarm: nor on their own machine, nor elsewhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.swarm.cluster import Machine, ip
from tests.swarm.site import Site, site
from tests.swarm.swarm_hub import until
from tests.swarm.test_services import container_of

__all__ = ["site"]

pytestmark = [pytest.mark.docker, pytest.mark.slow]
KEYS = "169.254.169.254"
PORT = 80


@pytest.fixture(scope="module")
def service(site: Site) -> Iterator[None]:
    """A metadata service on machine c, to which a and b have a route; it also answers at c's own address."""
    c = site.machines["c"]
    ip("-n", c.space, "addr", "add", f"{KEYS}/32", "dev", "lo")
    for name in ("a", "b"):
        ip("-n", site.machines[name].space, "route", "add", f"{KEYS}/32", "via", c.address)
    folder = c.folder / "metadata"
    folder.mkdir()
    log = (c.folder / "metadata.log").open("wb")
    serve = c.inside(sys.executable, "-m", "http.server", str(PORT), "--directory", str(folder))
    process = subprocess.Popen(serve, stdout=log, stderr=log)
    try:
        until(lambda: fetch(c.inside(), KEYS) == "200", lambda: (c.folder / "metadata.log").read_text())
        yield
    finally:
        process.kill()
        process.wait()
        log.close()


def fetch(inside: list[str], address: str) -> str:
    """HTTP's status of a request from there; "000" if nobody answers, or the connection is refused."""
    command = [
        *inside,
        "curl",
        "--noproxy",
        "*",
        "-s",
        "-m",
        "5",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        f"http://{address}:{PORT}/",
    ]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout


def in_lab(site: Site, machine: str, user: str) -> list[str]:
    """What runs a command in the network of the user's lab."""
    pid = container_of(site.machines, machine, user)["State"]["Pid"]
    return ["nsenter", f"--net=/proc/{pid}/ns/net"]


def rules_of(machine: Machine) -> str:
    """The firewall's rules on a machine."""
    return subprocess.run(
        machine.inside("iptables", "-w", "-S"), stdout=subprocess.PIPE, text=True, check=True
    ).stdout


@pytest.mark.parametrize("machine", ["b", "c", "a"])
def test_a_lab_does_not_reach_the_metadata_service(site: Site, service: None, machine: str) -> None:
    hub, engine = site.hub, site.machines[machine]
    hub.spawn(f"ada-{machine}", f"on-{machine}")
    lab = in_lab(site, machine, f"ada-{machine}")
    assert fetch(engine.inside(), KEYS) == "200"  # the machine itself reaches it
    assert fetch(lab, site.machines["c"].address) == "200"  # and the lab reaches that machine
    hub.until(lambda: "-d 169.254.0.0/16" in rules_of(engine))
    assert fetch(lab, KEYS) == "000"
    hub.stop(f"ada-{machine}")


def test_the_rules_are_what_keeps_it_away_and_they_outlive_the_engine(site: Site, service: None) -> None:
    hub, b = site.hub, site.machines["b"]
    b.kill()
    b.start()
    hub.until(lambda: hub.serving() == site.all, 120)
    hub.spawn("ben", "on-b")
    lab = in_lab(site, "b", "ben")
    assert fetch(lab, KEYS) == "000"
    (rule,) = [
        line
        for line in rules_of(b).splitlines()
        if line.startswith("-A DOCKER-USER") and "169.254.0.0" in line
    ]
    subprocess.run(b.inside("iptables", "-w", "-D", *rule.split()[1:]), check=True)
    assert fetch(lab, KEYS) == "200"
    site.agents["b"].kill()  # an agent that starts adds them again
    site.agents["b"].start()
    hub.until(lambda: fetch(lab, KEYS) == "000")
    hub.until(lambda: hub.serving() == site.all)
    hub.stop("ben")
