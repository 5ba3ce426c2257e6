"""Each lab's own network: numbers, addresses, and what is said when there is none left."""

from __future__ import annotations

from typing import Any

import pytest
from gpuspawner.core.errors import EngineFault, StartFault
from gpuspawner.hub.swarm.lanes import Lane, Lanes


class Docker:
    """Networks by name."""

    def __init__(self) -> None:
        self.networks: dict[str, dict[str, Any]] = {}

    def __call__(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, method)(*args, **kwargs)

    def create_network(self, **wanted: Any) -> dict[str, str]:
        if wanted["name"] in self.networks:
            raise EngineFault("network exists", 409)
        self.networks[wanted["name"]] = wanted
        return {"Id": f"id-{wanted['name']}"}

    def remove_network(self, network_id: str) -> None:
        if self.networks.pop(network_id.removeprefix("id-"), None) is None:
            raise EngineFault("not found", 404)


def lanes(encrypted: bool = True, subnet: str = "10.214.0.0/26") -> Lanes:
    return Lanes("hub", "labs", subnet, encrypted=encrypted)


def test_the_whole_network() -> None:
    docker = Docker()
    lane = lanes().create(docker, "labs-ada")
    assert lane == Lane(lane.number, f"id-labs-lane-{lane.number}", "labs-ada")
    assert docker.networks[f"labs-lane-{lane.number}"] == {
        "name": f"labs-lane-{lane.number}",
        "driver": "overlay",
        "scope": "swarm",
        "attachable": True,
        "options": {"encrypted": ""},
        "ipam": {"Driver": "default", "Config": [{"Subnet": f"10.214.0.{lane.number * 16}/28"}]},
        "labels": {
            "gpuspawner.hub": "hub",
            "gpuspawner.lane": str(lane.number),
            "gpuspawner.lab": "labs-ada",
        },
    }


def test_each_has_its_own_and_a_freed_one_is_used_last() -> None:
    docker, all_lanes = Docker(), lanes(encrypted=False)
    assert all_lanes.count == 4
    made = [all_lanes.create(docker, name) for name in "abcd"]
    assert sorted(lane.number for lane in made) == [0, 1, 2, 3]
    assert {str(each["options"]) for each in docker.networks.values()} == {"{}"}
    with pytest.raises(StartFault, match=r"set a larger c\.GpuSwarm\.subnet"):
        all_lanes.create(docker, "e")
    all_lanes.remove(docker, made[2].network_id)
    all_lanes.remove(docker, made[2].network_id)  # it is gone already
    assert all_lanes.create(docker, "e").number == made[2].number
    for lane in (made[0], made[1]):
        all_lanes.remove(docker, lane.network_id)
    assert all_lanes.create(docker, "f").number != made[2].number


def test_there_are_no_more_lanes_than_ports_of_the_gateway() -> None:
    assert lanes(subnet="10.0.0.0/8").count == 4096
