"""The labs' network is repaired when it is gone, and what can't be repaired is said once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.core.errors import EngineFault
from gpuspawner.hub.metadata import MetadataWall
from gpuspawner.hub.network import network_settings
from gpuspawner.tools.keep_network import (
    ASK_SECONDS,
    LOOK_SECONDS,
    RETRY_SECONDS,
    NetworkKeeper,
    SwarmShield,
    hub_has_ended,
    sweep_rules,
)

from tests.unit.hub.test_metadata import Firewall

NAME, SUBNET, ADDRESS = "labs", "10.213.0.0/20", "10.213.0.1"


class Machine:
    """Docker's networks and the machine's addresses: the address is there as long as the network is."""

    def __init__(self) -> None:
        self.network: dict[str, Any] | None = None
        self.down = False
        self.bridge = True
        """Whether a network's address reaches this machine."""
        self.calls: list[str] = []

    def __call__(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(method)
        if self.down:
            raise EngineFault("Docker doesn't answer")
        if method == "create_network":
            self.network = {"IPAM": kwargs["ipam"]}
            return None
        if self.network is None:
            raise EngineFault("no such network", status=404)
        return self.network

    def has_address(self, address: str) -> bool:
        return self.bridge and self.network is not None and address == ADDRESS

    def keeper(self) -> NetworkKeeper:
        return NetworkKeeper(self, NAME, SUBNET, self.has_address)


def present() -> dict[str, Any]:
    return {"IPAM": network_settings(NAME, SUBNET)["ipam"]}


def test_a_network_that_was_removed_is_created_again_and_said(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    machine.network = present()
    keeper = machine.keeper()
    assert keeper.look(0.0) == LOOK_SECONDS
    machine.calls.clear()
    assert keeper.look(0.25) == LOOK_SECONDS
    assert machine.calls == []  # the kernel was asked, not Docker
    machine.network = None
    assert keeper.look(0.5) == LOOK_SECONDS
    assert machine.network == present()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "The labs' network labs was removed (docker network rm, or a prune), and with it the hub's address "
        "10.213.0.1: both are back. 'docker system prune' and 'docker network prune' keep it with "
        '--filter "label!=gpuspawner.network"'
    )


def test_docker_is_asked_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    machine.network = present()
    keeper = machine.keeper()
    keeper.look(0.0)
    machine.calls.clear()
    keeper.look(ASK_SECONDS)
    assert machine.calls != []
    assert caplog.records == []


def test_what_cant_be_repaired_is_said_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    machine.down = True
    keeper = machine.keeper()
    assert [keeper.look(number) for number in (0.0, 2.0)] == [RETRY_SECONDS] * 2
    machine.down, machine.network = False, {"IPAM": {"Config": [{"Subnet": "10.9.0.0/24"}]}}
    assert [keeper.look(number) for number in (4.0, 6.0)] == [RETRY_SECONDS] * 2
    machine.network, machine.bridge = present(), False
    assert [keeper.look(number) for number in (8.0, 10.0)] == [RETRY_SECONDS] * 2
    machine.bridge = True
    assert keeper.look(12.0) == LOOK_SECONDS
    assert [(record.levelname, record.getMessage().partition(":")[0]) for record in caplog.records] == [
        ("WARNING", "Docker doesn't say whether the network exists, retrying"),
        ("ERROR", "Servers can't start, and may not reach the hub"),
        (
            "ERROR",
            "Docker has the network 'labs', but its address 10.213.0.1 isn't on this machine, so nobody "
            "reaches a hub that listens there",
        ),
    ]


class Wall:
    """The firewall as the keeper uses it."""

    def __init__(self, *added: int | EngineFault) -> None:
        self.added = list(added)
        self.removed = 0

    def remove(self) -> None:
        self.removed += 1

    def build(self) -> int:
        added = self.added.pop(0)
        if isinstance(added, EngineFault):
            raise added
        return added


def test_rules_that_somebody_removed_are_added_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    machine, wall = Machine(), Wall(6, 0, 6, EngineFault("no"))
    machine.network = present()
    keeper = NetworkKeeper(machine, NAME, SUBNET, machine.has_address, wall=wall)  # type: ignore[arg-type]
    for number in range(5):
        keeper.look(number * ASK_SECONDS)
    assert wall.added == []  # and it is not asked again after it has failed
    told = "Labs of 10.213.0.0/20 don't reach the cloud's metadata service: 6 rules added"
    assert caplog.messages == [
        told,
        told,
        "Labs may reach the cloud's metadata service; 'gpuspawner doctor' says more: no",
    ]


@pytest.mark.parametrize(
    ("network", "down", "removed"),
    [
        (None, False, 1),
        ({}, False, 1),
        ({"Containers": {"1": {"Name": "lab-ada"}}}, False, 0),  # it goes on without the hub
        ({}, True, 0),  # a lab may run
    ],
)
def test_the_rules_go_with_the_hub_unless_a_lab_runs(
    network: dict[str, Any] | None, down: bool, removed: int
) -> None:
    machine, wall = Machine(), Wall()
    machine.network = None if network is None else {**present(), **network}
    machine.down = down
    NetworkKeeper(machine, NAME, SUBNET, machine.has_address, wall=wall).end()  # type: ignore[arg-type]
    assert wall.removed == removed
    NetworkKeeper(machine, NAME, SUBNET, machine.has_address).end()


def test_rules_of_networks_that_are_gone_are_removed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    firewall = Firewall("DOCKER-USER")
    for subnet in (SUBNET, "10.8.0.0/24", "10.9.0.0/24"):
        MetadataWall(subnet, firewall).build()

    def call(method: str) -> list[dict[str, Any]]:
        assert method == "networks"
        return [present(), {"IPAM": {"Config": None}}, {}]

    def down(method: str) -> None:
        raise EngineFault("Docker doesn't answer")

    before = list(firewall.lines)
    sweep_rules(down, lambda address: False, firewall)
    assert firewall.lines == before
    sweep_rules(call, lambda address: address == "10.9.0.1", firewall)  # of another Engine
    assert firewall.lines == [line for line in before if "10.8.0.0" not in line]
    assert caplog.messages == [
        "Removed the firewall's rules for networks that don't exist any more: 10.8.0.0/24"
    ]


@pytest.mark.parametrize(
    ("parent", "by_a_hub", "init", "ended"),
    [
        (1, True, b"/sbin/init\0", True),
        (1, True, b"python\0-m\0jupyterhub\0", False),  # the hub of a container
        (1, False, b"/sbin/init\0", False),  # a unit of systemd
        (42, True, b"/sbin/init\0", False),
    ],
)
def test_a_hub_that_ended_while_this_began(
    tmp_path: Path, parent: int, by_a_hub: bool, init: bytes, ended: bool
) -> None:
    (tmp_path / "cmdline").write_bytes(init)
    environment = {"JUPYTERHUB_SERVICE_NAME": "network"} if by_a_hub else {}
    assert hub_has_ended(parent, environment, tmp_path / "cmdline") is ended


def test_labs_of_a_swarm_are_shielded_now_and_then_and_a_failure_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    built: list[str] = []

    class Wall:
        subnet = "172.18.0.0/16"

        def build(self) -> int:
            built.append(self.subnet)
            if len(built) in (2, 3):
                raise EngineFault("iptables did not add a rule")
            return 6 if len(built) == 1 else 0

    monkeypatch.setattr("gpuspawner.tools.keep_network.wall_of", lambda call: Wall())
    shield = SwarmShield(lambda *words: None)
    with caplog.at_level("INFO"):
        for now in (100.0, 101.0, 800.0, 1500.0, 2200.0):
            shield.look(now)
    assert len(built) == 4
    assert [record.getMessage() for record in caplog.records] == [
        "Labs of 172.18.0.0/16 don't reach the cloud's metadata service: 6 rules added",
        "Labs of the Swarm may reach the cloud's metadata service: iptables did not add a rule",
    ]
    monkeypatch.setattr("gpuspawner.tools.keep_network.wall_of", lambda call: None)
    SwarmShield(lambda *words: None).look(0.0)  # it is not in the Swarm yet
