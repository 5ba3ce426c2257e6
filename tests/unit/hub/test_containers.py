"""A home with a limit of its size: what Docker is asked, and what is said where it can't."""

from __future__ import annotations

from typing import Any

import pytest
from gpuspawner.config.lab import GpuLab
from gpuspawner.core.errors import EngineFault
from gpuspawner.core.limits import LabRules
from gpuspawner.hub.container import ContainerPlan
from gpuspawner.hub.containers import limit_home
from gpuspawner.hub.home import Home, Volume
from traitlets.config import Config

GIB = 1 << 30
HOME = Home(Volume("{prefix}-home-{username}", "gpuspawner-home-ada", "/home/jovyan"), unknown=False)
SIZED = LabRules(home_size_bytes=GIB).volume_of_home("gpuspawner-home-ada")
LABELS = {"gpuspawner.home-size-bytes": "1073741824"}
FOLDER = Home(Volume("/srv/{username}", "/srv/ada", "/home/jovyan"), unknown=False)


class Docker:
    """Remembers what was asked, and answers once."""

    def __init__(self, answer: Any = None) -> None:
        self.answer, self.calls = answer, []  # type: tuple[Any, list[Any]]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((args, kwargs))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize("driver", [None, "nfs"])
def test_the_volume_driver_is_asked_for_the_size(driver: str | None) -> None:
    docker = Docker()
    assert limit_home(docker, ContainerPlan({}, {"volume_driver": driver}, (), HOME, home_volume=SIZED)) == ""
    named = {"driver": driver, "driver_opts": {"size": "1073741824"}, "labels": LABELS}
    assert docker.calls == [(("create_volume", "gpuspawner-home-ada"), named)]


def test_a_driver_with_other_words_has_them_from_the_settings() -> None:
    options = {"type": "ext4", "device": "/srv/{home}.img", "o": "loop,size={size}"}
    lab = GpuLab(config=Config({"GpuLab": {"home_size": "1G", "home_options": options}}))
    docker = Docker()
    wanted = lab.rules().volume_of_home(HOME.volume.source)
    assert limit_home(docker, ContainerPlan({}, {}, (), HOME, home_volume=wanted)) == ""
    told = {"type": "ext4", "device": "/srv/gpuspawner-home-ada.img", "o": "loop,size=1073741824"}
    assert docker.calls == [
        (("create_volume", HOME.volume.source), {"driver": None, "driver_opts": told, "labels": LABELS})
    ]


@pytest.mark.parametrize(("home", "size"), [(HOME, None), (FOLDER, GIB), (None, GIB)])
def test_nothing_is_asked_without_a_size_or_a_volume(home: Home | None, size: int | None) -> None:
    docker = Docker()
    assert (
        limit_home(
            docker,
            ContainerPlan({}, {}, (), home, home_volume=LabRules(home_size_bytes=size).volume_of_home("")),
        )
        == ""
    )
    assert docker.calls == []


def test_a_driver_that_can_not_is_said_and_docker_that_is_silent_is_a_fault() -> None:
    plan = ContainerPlan({}, {}, (), HOME, home_volume=SIZED)
    refused = EngineFault("quota size requested but no quota support", status=500)
    assert limit_home(Docker(refused), plan) == (
        "The home gpuspawner-home-ada has no limit of its size: quota size requested but no quota support"
    )
    with pytest.raises(EngineFault):
        limit_home(Docker(EngineFault("Docker does not answer")), plan)
