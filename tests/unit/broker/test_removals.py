"""Ends of containers: one call in flight for each, and longer pauses after each failure."""

from __future__ import annotations

import asyncio
import logging

import pytest
from gpuspawner.broker.leases.removals import Removals
from gpuspawner.core.errors import EngineFault
from gpuspawner.core.labels import ContainerLabels
from gpuspawner.node.engine import Container

ONE = Container("c1", ContainerLabels(lease_id="a" * 32), "running")
OTHER = Container("c2", ContainerLabels(lease_id="b" * 32), "exited")


class Docker:
    """Ends containers when the test says so: `answers` is what the next call does."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails = False
        self.hangs = asyncio.Event()
        self.hangs.set()

    async def remove(self, container_id: str) -> None:
        self.calls.append(container_id)
        await self.hangs.wait()
        if self.fails:
            raise EngineFault("device or resource busy")


async def some_turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_call_in_flight_for_each_container() -> None:
    ended: list[Container] = []
    removals, docker = Removals(ended.append, logging.getLogger("test")), Docker()
    docker.hangs.clear()
    assert [removals.begin(each, docker.remove) for each in (ONE, ONE, OTHER)] == [True, False, True]
    await some_turns()
    assert (docker.calls, set(removals.busy()), ended) == (["c1", "c2"], {"c1", "c2"}, [])
    docker.hangs.set()
    await some_turns()
    assert (docker.calls, set(removals.busy()), ended) == (["c1", "c2"], set(), [ONE, OTHER])
    assert removals.begin(ONE, docker.remove)  # it is still there: once more
    await removals.close()


async def test_each_failure_doubles_the_pause(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[Container] = []
    now = [100.0]
    removals, docker = Removals(ended.append, logging.getLogger("test"), lambda: now[0]), Docker()
    docker.fails = True
    for pause in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        assert removals.begin(ONE, docker.remove)
        await some_turns()
        now[0] += pause - 0.1
        assert (set(removals.busy()), removals.begin(ONE, docker.remove)) == ({"c1"}, False)
        now[0] += 0.1
        assert set(removals.busy()) == set()
    assert (len(docker.calls), ended) == (8, [])
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "A container could not be ended, next attempt in 1 s: device or resource busy user=- server=-"
        f" lease={'a' * 32} devices=- container=c1"
    ]
    docker.fails = False
    assert removals.begin(ONE, docker.remove)
    await some_turns()
    docker.fails = True
    assert removals.begin(ONE, docker.remove)  # a success counts: the next pause is the first again
    await some_turns()
    now[0] += 1.0
    assert set(removals.busy()) == set()


async def test_a_failure_of_long_ago_is_forgotten() -> None:
    now = [100.0]
    removals, docker = Removals(lambda _: None, logging.getLogger("test"), lambda: now[0]), Docker()
    docker.fails = True
    for _ in range(3):
        assert removals.begin(ONE, docker.remove)
        await some_turns()
        now[0] += 700.0
    assert set(removals.busy()) == set()
    assert removals.begin(ONE, docker.remove)
    await some_turns()
    now[0] += 1.0
    assert set(removals.busy()) == set()


async def test_waiting_ends_with_the_call_or_with_the_time() -> None:
    removals, docker = Removals(lambda _: None, logging.getLogger("test")), Docker()
    await removals.wait(["c1"], 60.0)  # nothing is in flight
    docker.hangs.clear()
    removals.begin(ONE, docker.remove)
    began = asyncio.get_running_loop().time()
    await removals.wait(["c1"], 0.1)
    assert 0.05 < asyncio.get_running_loop().time() - began < 5
    assert set(removals.busy()) == {"c1"}
    docker.hangs.set()
    await removals.wait(["c1"], 60.0)
    assert set(removals.busy()) == set()
    docker.hangs.clear()
    removals.begin(OTHER, docker.remove)
    await removals.close()
    assert set(removals.busy()) == set()
