"""The places of homes, as a real manager keeps them: written down, listed, moved."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import docker
import pytest
from gpuspawner.core.errors import ConfigError
from gpuspawner.hub.docker import DockerEngine
from gpuspawner.hub.swarm.homes import Homes
from gpuspawner.tools.homes import HomeVolume, move, own_name, patterns_of, placed
from traitlets.config import Config

from tests.swarm.cluster import Cluster

pytestmark = pytest.mark.docker
VOLUME = "gpuspawner-home-moving"


@pytest.fixture
def call(machines: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Asks the Swarm's manager."""
    monkeypatch.setenv("DOCKER_HOST", machines.manager.docker_host)
    engine = DockerEngine({}, {})
    yield engine.call_here
    engine.close()


def test_a_home_is_listed_and_moved(machines: Cluster, call: Any) -> None:
    find = partial(placed, call, (), patterns_of(Config()), "a")
    assert own_name(call) == "a"
    Homes("a").claim(call, VOLUME, "b")
    home = HomeVolume(VOLUME, "moving", None, False, machine="b")
    assert home in find()
    with pytest.raises(ConfigError, match="The Swarm has no machine 'z': it has a, b, c"):
        move(call, home, "z", "a")
    mount = docker.types.Mount("/home", VOLUME, type="volume")
    task = docker.types.TaskTemplate(docker.types.ContainerSpec("none", mounts=[mount]))
    mode = docker.types.ServiceMode("replicated", replicas=0)
    service = call("create_service", task, name="uses-a-home", mode=mode)["ID"]
    try:
        (used,) = [each for each in find() if each.name == VOLUME]
        with pytest.raises(ConfigError, match="is in use: stop the user's servers first"):
            move(call, used, "c", "a")
    finally:
        call("remove_service", service)
    move(call, home, "c", "a")
    assert HomeVolume(VOLUME, "moving", None, False, machine="c") in find()
    assert len(call("configs", filters={"label": f"gpuspawner.home={VOLUME}"})) == 1
