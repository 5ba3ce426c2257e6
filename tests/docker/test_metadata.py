"""A lab and a cloud's metadata service, tried from inside as a student would: elsewhere, and on this machine.

The service is a stand-in with the real address, in a network namespace of the test's own; then the address is
put on this machine for a moment. What the test adds to the machine, it removes.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_network

import docker
import docker.errors
import pytest
from gpuspawner.hub.docker import calls_of
from gpuspawner.hub.metadata import MetadataWall
from gpuspawner.hub.network import ensure_network

from tests.hubstart import own_subnet

ADDRESS, OUTSIDE = "169.254.169.254", "198.51.100.7"
NAME = f"gsmeta-{secrets.token_hex(2)}"

_SERVER = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
while True:
    server.accept()[0].close()
"""

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the firewall"),
    pytest.mark.skipif(not (shutil.which("iptables") and shutil.which("ip")), reason="no iptables, or no ip"),
]


def command(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@contextmanager
def elsewhere() -> Iterator[None]:
    """A machine beside this one, with the metadata service's address and one of the internet."""
    with ExitStack() as undo:
        try:
            command("ip", "netns", "add", NAME)
            undo.callback(command, "ip", "netns", "del", NAME)
            command("ip", "link", "add", f"{NAME}a", "type", "veth", "peer", "name", "eth0", "netns", NAME)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode()}")
        undo.callback(
            lambda: subprocess.run(["ip", "link", "del", f"{NAME}a"], capture_output=True, check=False)
        )
        command("ip", "addr", "add", "198.51.100.1/24", "dev", f"{NAME}a")
        command("ip", "link", "set", f"{NAME}a", "up")
        command("ip", "route", "add", f"{ADDRESS}/32", "dev", f"{NAME}a")
        inside = ("ip", "-n", NAME)
        for words in (
            ("addr", "add", f"{OUTSIDE}/24", "dev", "eth0"),
            ("addr", "add", f"{ADDRESS}/32", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", "198.51.100.1"),
        ):
            command(*inside, *words)
        for port in ("80", "53"):
            undo.enter_context(serving("ip", "netns", "exec", NAME, port=port))
        yield


@contextmanager
def on_this_machine() -> Iterator[None]:
    """The address is this machine's own, as that of an agent beside the labs."""
    command("ip", "addr", "add", f"{ADDRESS}/32", "dev", "lo")
    try:
        with serving(port="80", bind=ADDRESS):
            yield
    finally:
        command("ip", "addr", "del", f"{ADDRESS}/32", "dev", "lo")


@contextmanager
def serving(*prefix: str, port: str, bind: str = "0.0.0.0") -> Iterator[None]:
    """Something that accepts connections; it listens when this returns."""
    program = [sys.executable, "-c", _SERVER, bind, port]
    with subprocess.Popen([*prefix, *program], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "listening\n"
        try:
            yield
        finally:
            server.kill()


@pytest.fixture
def subnet() -> Iterator[str]:
    """Addresses of the test's own; the rules for them are taken back."""
    subnet = own_subnet()
    yield subnet
    listed = subprocess.run(["iptables", "-w", "-S"], check=True, capture_output=True, text=True).stdout
    for line in listed.splitlines():
        if line.startswith("-A ") and f"-s {ip_network(subnet)} -d " in line:
            command("iptables", "-w", "-D", *line.split()[1:])


@pytest.fixture
def reaches(engine: docker.APIClient, tiny_image: str, subnet: str) -> Iterator[Callable[[str, int], bool]]:
    """Whether a lab reaches an address, from inside."""
    ensure_network(calls_of(engine), NAME, subnet)
    host = engine.create_host_config(network_mode=NAME, cap_drop=["ALL"])
    container = engine.create_container(
        tiny_image, ["/bin/busybox", "sleep", "600"], user="1000:100", host_config=host
    )

    def connects(address: str, port: int) -> bool:
        words = ["/bin/busybox", "nc", "-w", "3", address, str(port), "-e", "/bin/busybox", "true"]
        exec_id = engine.exec_create(container["Id"], words)["Id"]
        engine.exec_start(exec_id)
        return bool(engine.exec_inspect(exec_id)["ExitCode"] == 0)

    try:
        engine.start(container["Id"])
        yield connects
    finally:
        engine.remove_container(container["Id"], force=True)
        with suppress(docker.errors.APIError):
            engine.remove_network(NAME)


def test_a_lab_reaches_the_outside_and_no_metadata_service(
    reaches: Callable[[str, int], bool], subnet: str
) -> None:
    with elsewhere():
        before = {place: reaches(place, 80) for place in (ADDRESS, OUTSIDE)}
        assert before == {ADDRESS: True, OUTSIDE: True}  # without the rules, so that the test can fail
        assert MetadataWall(subnet).build() == 6
        after = {place: reaches(place, 80) for place in (ADDRESS, OUTSIDE)}
        assert after == {ADDRESS: False, OUTSIDE: True}
        assert reaches(ADDRESS, 53)  # some clouds have their name server there
        assert MetadataWall(subnet).missing() == ()


def test_a_metadata_service_on_the_same_machine(reaches: Callable[[str, int], bool], subnet: str) -> None:
    with on_this_machine():
        assert reaches(ADDRESS, 80)
        MetadataWall(subnet).build()
        assert not reaches(ADDRESS, 80)
