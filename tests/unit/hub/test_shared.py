"""What all spawners of a hub share is made once."""

from __future__ import annotations

import asyncio
import gc
import logging
from types import SimpleNamespace

import pytest
from gpuspawner.hub.pulls import PullLimits
from gpuspawner.hub.shared import SharedSettings, engine_of, shared_by_all
from gpuspawner.hub.spawner import GpuDockerSpawner
from jupyterhub.app import JupyterHub
from traitlets.config import Config


def settings(socket_path: str = "/run/a.sock", starts_at_once: int = 2) -> SharedSettings:
    return SharedSettings(socket_path, {}, {}, starts_at_once, PullLimits())


async def test_it_is_one_for_a_hub_and_one_for_each_broker() -> None:
    log = logging.getLogger("test")
    first = shared_by_all(settings(), log)
    assert shared_by_all(settings(starts_at_once=9), log) is first
    other = shared_by_all(settings("/run/b.sock"), log)
    assert (other is first, other.docker is first.docker) == (False, True)
    async with first.slots.one(), first.slots.one():
        assert first.slots.taken
        assert not other.slots.taken


@pytest.mark.parametrize("of_a_hub", [True, False])
async def test_what_a_hub_has_loaded_is_no_work_for_its_garbage_collection(of_a_hub: bool) -> None:
    gc.unfreeze()
    callbacks = list(gc.callbacks)
    if of_a_hub:
        JupyterHub.instance()
    try:
        shared_by_all(settings(f"/run/{of_a_hub}.sock"), logging.getLogger("test"))
        found = (gc.get_freeze_count() > 10_000, len(gc.callbacks) > len(callbacks))
        assert found == (of_a_hub, of_a_hub)
    finally:
        JupyterHub.clear_instance()
        gc.callbacks[:] = callbacks
        gc.unfreeze()


def test_each_loop_has_its_own() -> None:
    async def make() -> object:
        return shared_by_all(settings(), logging.getLogger("test"))

    assert asyncio.run(make()) is not asyncio.run(make())


def test_engines_of_other_settings_are_others() -> None:
    local = engine_of({}, {})
    assert engine_of({}, {}) is local
    assert engine_of({"base_url": "tcp://10.0.0.1:2375"}, {}) is not local


@pytest.mark.parametrize("user", ["ada", "bob"])
async def test_spawners_have_it_from_their_settings(user: str) -> None:
    config = Config()
    config.GpuSite.socket_path = "/run/c.sock"
    config.GpuDockerSpawner.client_kwargs = {"base_url": "tcp://10.0.0.2:2375"}
    spawners = [
        GpuDockerSpawner(config=config, user=SimpleNamespace(name=name)) for name in (user, "somebody")
    ]
    assert spawners[0].shared is spawners[1].shared
    assert spawners[0].shared.broker.socket_path == "/run/c.sock"
    assert spawners[0].shared.docker is engine_of({"base_url": "tcp://10.0.0.2:2375"}, {})
