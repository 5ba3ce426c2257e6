"""The firewall's rules against the metadata service, on a firewall that is a list."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import pytest
from gpuspawner.core.errors import EngineFault
from gpuspawner.hub.metadata import ADDRESSES, MetadataWall, sweep

SUBNET = "10.213.0.0/20"


class Firewall:
    """`iptables -S` and `-I`, printed as iptables 1.8 prints them."""

    def __init__(self, *chains: str) -> None:
        self.lines = [*(f"-N {chain}" for chain in chains), "-A INPUT -j ACCEPT"]
        self.error: Exception | None = None

    def __call__(self, command: Sequence[str]) -> str:
        if self.error is not None:
            raise self.error
        assert command[:2] == ("iptables", "-w")
        if command[2] == "-S":
            return "\n".join(self.lines)
        _, _, verb, chain, *rest = command
        text = " ".join(rest).replace("-p tcp", "-p tcp -m tcp")
        line = f"-A {chain} {text} --reject-with icmp-port-unreachable"
        if verb == "-I":
            self.lines.insert(0, line)
        else:
            assert verb == "-D"
            self.lines.remove(line)
        return ""


@pytest.mark.parametrize(("chains", "forward"), [(("DOCKER-USER",), "DOCKER-USER"), ((), "FORWARD")])
def test_each_address_is_refused_elsewhere_and_here(chains: tuple[str, ...], forward: str) -> None:
    firewall = Firewall(*chains)
    wall = MetadataWall(SUBNET, firewall)
    assert wall.build() == 6
    assert set(firewall.lines[:6]) == {
        f"-A {chain} -s {SUBNET} -d {address} -p tcp -m tcp ! --dport 53 "
        "-m comment --comment gpuspawner -j REJECT --reject-with icmp-port-unreachable"
        for chain in (forward, "INPUT")
        for address in ADDRESSES
    }
    assert (wall.missing(), wall.build()) == ((), 0)
    del firewall.lines[2]
    assert wall.build() == 1


@pytest.mark.parametrize("chains", [("DOCKER-USER",), ()])
def test_the_rules_are_taken_back_and_those_of_others_stay(chains: tuple[str, ...]) -> None:
    firewall = Firewall(*chains)
    MetadataWall("10.9.0.0/24", firewall).build()
    others = list(firewall.lines)
    wall = MetadataWall(SUBNET, firewall)
    wall.build()
    for _ in range(2):
        wall.remove()
        assert firewall.lines == others
    firewall.error = OSError("no iptables")
    wall.remove()


@pytest.mark.parametrize("chains", [("DOCKER-USER",), ()])
def test_the_rules_of_networks_that_are_gone_are_taken_back_and_no_others(chains: tuple[str, ...]) -> None:
    firewall = Firewall(*chains)
    unmarked = "-A INPUT -s 10.8.0.0/24 -d 169.254.0.0/16 -p tcp -m tcp ! --dport 53 -j REJECT"
    commented = unmarked.replace("-j", "-m comment --comment site -j")
    firewall.lines += [unmarked, commented]
    MetadataWall(SUBNET, firewall).build()
    kept = list(firewall.lines)
    for gone in ("10.9.0.0/24", "10.10.0.0/24"):
        MetadataWall(gone, firewall).build()
    assert sorted(sweep(lambda subnet: subnet == SUBNET, firewall)) == ["10.10.0.0/24", "10.9.0.0/24"]
    assert firewall.lines == kept
    assert sweep(lambda subnet: subnet == SUBNET, firewall) == ()
    firewall.error = OSError("no iptables")
    assert sweep(lambda subnet: False, firewall) == ()


def test_another_network_s_rules_are_not_ours() -> None:
    firewall = Firewall()
    MetadataWall("10.9.0.0/24", firewall).build()
    assert len(MetadataWall(SUBNET, firewall).missing() or ()) == 6


@pytest.mark.parametrize("error", [OSError("no iptables"), subprocess.CalledProcessError(4, "iptables")])
def test_who_may_not_change_it(error: Exception) -> None:
    firewall = Firewall()
    firewall.error = error
    wall = MetadataWall(SUBNET, firewall)
    assert wall.missing() is None
    with pytest.raises(EngineFault, match="iptables can't be used by this user"):
        wall.build()
