"""Which machine has whose home: written down once, and never another one."""

from __future__ import annotations

from typing import Any

import pytest
from gpuspawner.core.errors import EngineFault, StartConflict, StartFault
from gpuspawner.protocol.home_places import HomePlaces, check_free, held, hold, release, used_volumes

VOLUME = "gpuspawner-home-ada"
HOMES = HomePlaces("a")


class Docker:
    """Configs by name, and the volumes of the hub's machine."""

    def __init__(self, *volumes: str) -> None:
        self.configs: dict[str, dict[str, Any]] = {}
        self.volumes = volumes

    def __call__(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, {"configs": "get_configs"}.get(method, method))(*args, **kwargs)

    def inspect_config(self, name: str) -> dict[str, Any]:
        if name not in self.configs:
            raise EngineFault("no such config", 404)
        return self.configs[name]

    def create_config(self, name: str, data: bytes, labels: dict[str, str]) -> None:
        if name in self.configs:
            raise EngineFault("it exists", 409)
        self.configs[name] = {"Spec": {"Labels": labels}}

    def remove_config(self, name: str) -> None:
        if self.configs.pop(name, None) is None:
            raise EngineFault("no such config", 404)

    def get_configs(self, filters: dict[str, str]) -> list[dict[str, Any]]:
        wanted = filters["label"] if isinstance(filters["label"], list) else [filters["label"]]
        return [each for each in self.configs.values() if all(_has(each, label) for label in wanted)]

    def inspect_volume(self, name: str) -> dict[str, Any]:
        if name not in self.volumes:
            raise EngineFault("no such volume", 404)
        return {"Name": name}


def _has(config: dict[str, Any], wanted: str) -> bool:
    """Docker's filter by label: "key" or "key=value"."""
    key, _, value = wanted.partition("=")
    labels = config["Spec"]["Labels"]
    return key in labels and value in ("", labels[key])


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


def test_a_home_is_moved_and_listed() -> None:
    docker = Docker()
    HOMES.claim(docker, VOLUME, "b")
    HOMES.claim(docker, "gpuspawner-home-ben", "a")
    HOMES.move(docker, VOLUME, "c")
    assert HOMES.all(docker) == {VOLUME: "c", "gpuspawner-home-ben": "a"}
    assert len(docker.configs) == 2
    HOMES.claim(docker, VOLUME, "c")
    with pytest.raises(StartFault, match="Your files are on the machine c"):
        HOMES.claim(docker, VOLUME, "b")


@pytest.mark.parametrize("calls", range(7))
def test_whatever_ends_a_move_the_home_is_on_one_of_the_two(calls: int) -> None:
    """Docker stops answering after so many calls that change something; then the move is made again."""

    class Dying(Docker):
        left = 99

        def __call__(self, method: str, *args: Any, **kwargs: Any) -> Any:
            if method in ("create_config", "remove_config"):
                if not self.left:
                    raise EngineFault("Docker doesn't answer", None)
                self.left -= 1
            return super().__call__(method, *args, **kwargs)

    docker = Dying()
    HOMES.claim(docker, VOLUME, "b")
    docker.volumes = (VOLUME,)  # an old copy on the hub's machine
    docker.left = calls
    if calls < 5:  # the fifth, which removes the second config, is the last
        with pytest.raises(EngineFault):
            HOMES.move(docker, VOLUME, "c")
    else:
        HOMES.move(docker, VOLUME, "c")
    assert HOMES.machine_of(docker, VOLUME) in ("b", "c")  # never a
    docker.left = 99
    HOMES.move(docker, VOLUME, "c")
    assert (HOMES.machine_of(docker, VOLUME), len(docker.configs)) == ("c", 1)


def test_a_home_that_is_held_can_t_be_claimed() -> None:
    docker = Docker()
    HOMES.claim(docker, VOLUME, "b")
    check_free(docker, VOLUME)
    hold(docker, VOLUME, "c", "/state")
    hold(docker, VOLUME, "c", "/state")  # as by a broker that was killed in between
    hold(docker, "gpuspawner-home-ben", "a", "/other")
    for attempt in (lambda: check_free(docker, VOLUME), lambda: HOMES.claim(docker, VOLUME, "b")):
        with pytest.raises(StartConflict) as moved:
            attempt()
        assert moved.value.message == (
            "Your files are being moved to the machine c. Start your server again in some minutes."
        )
    assert held(docker, "/state") == {VOLUME: "c"}
    assert held(docker) == {VOLUME: "c", "gpuspawner-home-ben": "a"}
    assert HOMES.all(docker) == {VOLUME: "b"}
    release(docker, VOLUME)
    release(docker, VOLUME)
    HOMES.claim(docker, VOLUME, "b")
    assert held(docker, "/state") == {}


def test_the_volumes_that_services_mount() -> None:
    mounts = [{"Source": VOLUME, "Target": "/home"}, {"Source": "/srv", "Target": "/srv"}]
    specs: list[dict[str, Any]] = [{"ContainerSpec": {"Mounts": mounts}}, {"ContainerSpec": {}}, {}]

    def docker(method: str) -> list[dict[str, Any]]:
        assert method == "services"
        return [{"Spec": {"TaskTemplate": each}} for each in specs]

    assert used_volumes(docker) == {VOLUME, "/srv"}
