"""The places of homes, as a real manager keeps them: written down, listed, held, moved."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import docker
import pytest
from gpuspawner.hub.docker import DockerEngine
from gpuspawner.node.docker_engine import DockerEngine as BrokersEngine
from gpuspawner.node.docker_home_book import DockerHomeBook
from gpuspawner.protocol.home_places import HomePlaces
from gpuspawner.tools.homes import HomeVolume, own_name, patterns_of, placed
from traitlets.config import Config

from tests.swarm.cluster import Cluster

pytestmark = pytest.mark.docker
VOLUME = "gpuspawner-home-moving"


@pytest.fixture
async def book(machines: Cluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DockerHomeBook]:
    """What the broker asks the Swarm's manager."""
    monkeypatch.setenv("DOCKER_HOST", machines.manager.docker_host)
    engine = BrokersEngine()
    yield DockerHomeBook(engine, "a", "/state")
    await engine.close()


async def test_a_home_is_listed_held_and_placed(machines: Cluster, book: DockerHomeBook) -> None:
    engine = DockerEngine({"base_url": machines.manager.docker_host})
    call: Any = engine.call_here
    find = partial(placed, call, (), patterns_of(Config()), "a")
    assert own_name(call) == "a"
    HomePlaces("a").claim(call, VOLUME, "b")
    home = HomeVolume(VOLUME, "moving", None, False, machine="b")
    assert home in find()
    mount = docker.types.Mount("/home", VOLUME, type="volume")
    task = docker.types.TaskTemplate(docker.types.ContainerSpec("none", mounts=[mount]))
    mode = docker.types.ServiceMode("replicated", replicas=0)
    assert VOLUME not in await book.used()
    service = call("create_service", task, name="uses-a-home", mode=mode)["ID"]
    try:
        assert [each.in_use for each in find() if each.name == VOLUME] == [True]
        assert VOLUME in await book.used()
    finally:
        call("remove_service", service)
    await book.hold(VOLUME, "c")
    assert await book.held() == {VOLUME: "c"}
    assert [each.moving_to for each in find() if each.name == VOLUME] == ["c"]
    await book.place(VOLUME, "c")
    await book.release(VOLUME)
    assert await book.machine_of(VOLUME) == "c"
    assert await book.held() == {}
    assert HomeVolume(VOLUME, "moving", None, False, machine="c") in find()
    assert len(call("configs", filters={"label": f"gpuspawner.home={VOLUME}"})) == 1
    engine.close()
