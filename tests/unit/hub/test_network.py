"""The labs' own network: how it is made, and that an address comes back late."""

from __future__ import annotations

from typing import Any

import pytest
from gpuspawner.core.errors import ConfigError, EngineFault
from gpuspawner.hub.network import (
    Addresses,
    LabNetwork,
    NetworkSeen,
    ensure_network,
    free_address,
    gateway_of,
    has_address,
    look_at,
    network_settings,
)
from hypothesis import given
from hypothesis import strategies as st


def test_the_labs_network() -> None:
    assert network_settings("labs", "10.213.0.0/20") == {
        "name": "labs",
        "driver": "bridge",
        "options": {
            "com.docker.network.bridge.enable_icc": "false",
            "com.docker.network.bridge.enable_ip_masquerade": "true",
        },
        "ipam": {"Driver": "default", "Config": [{"Subnet": "10.213.0.0/20", "Gateway": "10.213.0.1"}]},
        "labels": {"gpuspawner.network": "labs"},
    }


@pytest.mark.parametrize("subnet", ["", "10.213.0.0/33", "10.213.0.1/20", "10.213.0.0/31", "labs"])
def test_a_subnet_that_cant_be_used_is_refused_with_an_example(subnet: str) -> None:
    with pytest.raises(ConfigError, match=r'write it like "10\.213\.0\.0/20"'):
        gateway_of(subnet)


class Networks:
    """Docker's part for networks: called with the name of a method."""

    def __init__(self, present: dict[str, Any] | None, refusal: Exception | None = None) -> None:
        self.present, self.refusal = present, refusal
        self.created: list[dict[str, Any]] = []
        self.calls: list[tuple[str, ...]] = []
        self.connected: list[str | None] = []

    def __call__(self, method: str, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((method, *args))
        return getattr(self, method)(*args, **kwargs)

    def disconnect_container_from_network(self, container: str, name: str) -> None:
        pass

    def connect_container_to_network(self, container: str, name: str, *, ipv4_address: str | None) -> None:
        self.connected.append(ipv4_address)

    def inspect_network(self, name: str) -> dict[str, Any]:
        if self.present is None:
            raise EngineFault("none", 404)
        return self.present

    def create_network(self, **wanted: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.created.append(wanted)
        self.present = {"IPAM": wanted["ipam"], "Containers": {}}


def test_the_network_is_made_once_and_then_left_alone() -> None:
    client: Any = Networks(None)
    assert [ensure_network(client, "labs", "10.213.0.0/20") for _ in range(2)] == ["10.213.0.1"] * 2
    assert client.created == [{**network_settings("labs", "10.213.0.0/20"), "check_duplicate": True}]


def test_what_docker_has_of_the_network() -> None:
    document = {
        "IPAM": {"Config": [{"Subnet": "10.9.0.0/24"}]},
        "Options": {"com.docker.network.bridge.enable_icc": "false"},
        "Containers": {"2": {"Name": "lab-ben"}, "1": {"Name": "lab-ada"}},
    }
    assert look_at(Networks(document), "labs") == NetworkSeen(("10.9.0.0/24",), True, ("lab-ada", "lab-ben"))
    assert look_at(Networks({"Containers": None}), "labs") == NetworkSeen((), False, ())
    assert look_at(Networks(None), "labs") is None


@pytest.mark.parametrize(
    ("client", "sentence"),
    [
        (
            Networks({"IPAM": {"Config": [{"Subnet": "10.9.0.0/24"}]}}),
            "has the addresses 10.9.0.0/24, not 10.213.0.0/20: set GPUSPAWNER_SUBNET to them, or run "
            "'docker network rm labs'",
        ),
        (
            Networks(
                {
                    "IPAM": {"Config": [{"Subnet": "10.9.0.0/24"}]},
                    "Containers": {"1": {"Name": "lab-ada"}, "2": {"Name": "lab-ben"}},
                }
            ),
            r"or stop its containers \(lab-ada, lab-ben\), then run 'docker network rm labs'",
        ),
        (
            Networks(None, EngineFault("Pool overlaps with other one", 403)),
            "Pool overlaps with other one. Set another",
        ),
    ],
)
def test_a_network_that_cant_be_had_names_the_remedy(client: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ensure_network(client, "labs", "10.213.0.0/20")


# ---- addresses

ALL = {f"10.9.0.{number}" for number in range(2, 15)}


@given(st.lists(st.sets(st.sampled_from(sorted(ALL))), min_size=14, max_size=60))
def test_an_address_comes_back_after_all_the_others(looks: list[set[str]]) -> None:
    """13 addresses, some of them in use at each look."""
    turns = Addresses("10.9.0.0/28")
    given_out = [turns.next(used) for used in looks]
    for now, (address, used) in enumerate(zip(given_out, looks, strict=True)):
        if address is None:
            assert used == ALL
            continue
        assert address in ALL - used
        before = [look for look in range(now) if given_out[look] == address]
        if before:
            since = range(before[-1] + 1, now)
            passed = {given_out[look] for look in since}.union(*(looks[look] for look in since), used)
            assert passed >= ALL - {address}


def network(subnet: str, *addresses: str) -> Networks:
    """One with that many containers."""
    containers = {str(number): {"IPv4Address": f"{each}/28"} for number, each in enumerate(addresses)}
    return Networks({"IPAM": {"Config": [{"Subnet": subnet}]}, "Containers": containers})


def test_a_server_s_address_is_neither_in_use_nor_the_last_one_s() -> None:
    client: Any = network("10.9.1.0/29", "10.9.1.3", "10.9.1.5")
    found = [free_address(client, "labs", "10.9.1.0/29") for _ in range(6)]
    assert set(found[:3]) == {"10.9.1.2", "10.9.1.4", "10.9.1.6"}
    assert found[3:] == found[:3]
    assert free_address(client, "labs", "10.9.1.0/255.255.255.248") in found
    assert LabNetwork("labs", "10.9.1.0/29", 8888).endpoint(client) == {
        "EndpointsConfig": {"labs": {"IPAMConfig": {"IPv4Address": found[0]}}}
    }


@pytest.mark.parametrize(
    ("name", "client"),
    [
        ("bridge", network("10.9.2.0/29")),
        ("labs", Networks(None)),
        ("labs", network("10.8.0.0/16")),
        (
            "labs",
            Networks(
                {"IPAM": {"Config": [{"Subnet": "10.9.2.0/29", "IPRange": "10.9.2.4/30"}]}, "Containers": {}}
            ),
        ),
        ("labs", network("10.9.2.0/29", *(f"10.9.2.{each}" for each in range(2, 7)))),
    ],
)
def test_where_docker_has_to_find_an_address(name: str, client: Any) -> None:
    assert LabNetwork(name, "10.9.2.0/29", 8888).endpoint(client) is None


# ---- repairs

LABS = LabNetwork("labs", "10.9.3.0/29", 8888)


def test_a_network_that_was_pruned_is_created_and_a_taken_address_changed() -> None:
    pruned = Networks(None)
    assert LABS.repair(pruned, EngineFault("network labs not found", 404), "c1")
    assert [network["name"] for network in pruned.created] == ["labs"]
    busy = network("10.9.3.0/29", "10.9.3.2")
    assert LABS.repair(busy, EngineFault("Address already in use", 403), "c1")
    assert len(busy.connected) == 1
    assert busy.connected[0] in {f"10.9.3.{number}" for number in range(3, 7)}
    assert busy.calls[-2] == ("disconnect_container_from_network", "c1", "labs")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("labs", EngineFault("network other not found", 404)),
        ("labs", EngineFault("port is already allocated", 500)),
        ("labs", EngineFault("no answer")),
        ("bridge", EngineFault("network bridge not found", 404)),
    ],
)
def test_another_fault_is_left_alone(name: str, fault: EngineFault) -> None:
    client = Networks(None)
    assert not LabNetwork(name, "10.9.3.0/29", 8888).repair(client, fault, "c1")
    assert client.calls == []


@pytest.mark.parametrize(
    ("address", "here"), [("127.0.0.1", True), ("192.0.2.77", False), ("::1:2:3", False)]
)
def test_whether_this_machine_has_an_address(address: str, here: bool) -> None:
    assert has_address(address) is here
