"""The image of a start: which policy pulls when; the real engine's part is in tests/docker/test_pull.py."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from gpuspawner.core.errors import EngineFault, StartFault
from gpuspawner.hub.images import Images
from gpuspawner.hub.pulls import SILENT, Pulls

from tests.unit.fake_docker import ScriptedDocker

GONE = EngineFault("no such image", 404)


class Docker(ScriptedDocker):
    """Remembers what was pulled; `fault` makes a pull fail."""

    def __init__(self, *seen: Any, fault: EngineFault | None = None) -> None:
        super().__init__({"inspect_image": list(seen)})
        self.fault, self.pulled = fault, []

    def pull_here(self, image: str, feed: Any, cancel: Any, silence_seconds: float) -> None:
        self.pulled.append((image, silence_seconds))
        if self.fault is not None:
            raise self.fault


def images(docker: Docker, policy: str) -> Images:
    return Images(docker, Pulls(logging.getLogger("test")), policy, 300.0, "ada")


@pytest.mark.parametrize(
    ("policy", "here", "pulls", "found"),
    [
        ("ifnotpresent", True, 0, {"Id": "i"}),
        ("ifnotpresent", False, 1, {"Id": "i"}),
        ("always", True, 1, {"Id": "i"}),
        ("always", False, 1, {"Id": "i"}),
        ("never", True, 0, {"Id": "i"}),
        ("skip", True, 0, {"Id": "i"}),
        ("skip", False, 0, {}),
    ],
)
async def test_which_policy_pulls_when(policy: str, here: bool, pulls: int, found: dict[str, str]) -> None:
    docker = Docker({"Id": "i"}) if here else Docker(GONE, {"Id": "i"})
    assert await images(docker, policy).fetch("lab:1", lambda news: None) == found
    assert docker.pulled == [("lab:1", 300.0)] * pulls


@pytest.mark.parametrize(
    ("docker", "policy", "reason"),
    [
        (Docker(GONE), "never", "image_missing"),
        (Docker(GONE, fault=EngineFault("manifest unknown", 404)), "ifnotpresent", "image_missing"),
        (Docker(GONE, fault=EngineFault("quiet", SILENT)), "always", "pull_stalled"),
    ],
)
async def test_an_image_that_cant_be_had_is_a_sentence(docker: Docker, policy: str, reason: str) -> None:
    with pytest.raises(StartFault) as fault:
        await images(docker, policy).fetch("lab:1", lambda news: None)
    assert fault.value.reason == reason


@pytest.mark.parametrize(
    "docker",
    [Docker(EngineFault("down")), Docker(EngineFault("odd", 500)), Docker(GONE, fault=EngineFault("down"))],
)
async def test_a_docker_that_doesnt_work_is_a_fault(docker: Docker) -> None:
    with pytest.raises(EngineFault):
        await images(docker, "ifnotpresent").fetch("lab:1", lambda news: None)
