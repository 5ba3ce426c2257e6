"""Which machine has whose home: written down once, and never another one."""

from __future__ import annotations

from typing import Any

import pytest
from gpuspawner.core.errors import EngineFault, StartFault
from gpuspawner.hub.swarm.homes import Homes

VOLUME = "gpuspawner-home-ada"
HOMES = Homes("a")


class Docker:
    """Configs by name, and the volumes of the hub's machine."""

    def __init__(self, *volumes: str) -> None:
        self.configs: dict[str, dict[str, Any]] = {}
        self.volumes = volumes

    def __call__(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, method)(*args, **kwargs)

    def inspect_config(self, name: str) -> dict[str, Any]:
        if name not in self.configs:
            raise EngineFault("no such config", 404)
        return self.configs[name]

    def create_config(self, name: str, data: bytes, labels: dict[str, str]) -> None:
        if name in self.configs:
            raise EngineFault("it exists", 409)
        self.configs[name] = {"Spec": {"Labels": labels}}

    def inspect_volume(self, name: str) -> dict[str, Any]:
        if name not in self.volumes:
            raise EngineFault("no such volume", 404)
        return {"Name": name}


def test_a_new_home_is_where_its_first_lab_starts_and_stays_there() -> None:
    docker = Docker()
    assert HOMES.machine_of(docker, VOLUME) == ""
    HOMES.claim(docker, VOLUME, "b")
    HOMES.claim(docker, VOLUME, "b")
    assert HOMES.machine_of(docker, VOLUME) == "b"
    assert [each["Spec"]["Labels"] for each in docker.configs.values()] == [
        {"gpuspawner.home": VOLUME, "gpuspawner.node": "b"}
    ]
    with pytest.raises(StartFault, match=r"Your files are on the machine b, and .* start on c"):
        HOMES.claim(docker, VOLUME, "c")


def test_a_home_from_before_the_swarm_is_on_the_hub_s_machine() -> None:
    docker = Docker(VOLUME)
    assert HOMES.machine_of(docker, VOLUME) == "a"
    with pytest.raises(StartFault, match="Your files are on the machine a"):
        HOMES.claim(docker, VOLUME, "b")
    assert docker.configs == {}
    HOMES.claim(docker, VOLUME, "a")
    assert HOMES.machine_of(Docker(), VOLUME) == ""
    assert HOMES.machine_of(docker, VOLUME) == "a"


def test_of_two_first_starts_one_wins() -> None:
    docker = Docker()

    class Late(Docker):
        """Somebody else writes between the look and the write."""

        def create_config(self, name: str, data: bytes, labels: dict[str, str]) -> None:
            if not self.configs:
                HOMES.claim(docker, VOLUME, "c")
                self.configs = docker.configs
            super().create_config(name, data, labels)

    with pytest.raises(StartFault, match="Your files are on the machine c: try again"):
        HOMES.claim(Late(), VOLUME, "b")
    assert HOMES.machine_of(docker, VOLUME) == "c"
