"""What a lease uses, and its last hour: one sampler for all pages, from what the node has read already."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest
from gpuspawner.broker.observe import sampler as module
from gpuspawner.broker.observe.failures import LoopFailures
from gpuspawner.broker.observe.metrics import Metrics
from gpuspawner.broker.observe.sampler import Point, Sampler
from gpuspawner.broker.observe.use import Use, use_of
from gpuspawner.core.want import Mode, Want
from gpuspawner.node.api import Usage

from tests.unit.lease_examples import PAIR_RUNNING

GIB = 1 << 30
SLICE = replace(
    PAIR_RUNNING, want=Want(1, mode=Mode.SLICE, memory_bytes=8 * GIB), device_uuids=("GPU-a",), mps=True
)
LOG = logging.getLogger("sampler")


def test_of_devices_of_its_own_everything_counts() -> None:
    usage = {"GPU-a": Usage(5 * GIB, 80.0), "GPU-b": Usage(1 * GIB, 20.0)}
    assert use_of(PAIR_RUNNING, usage) == Use(6 * GIB, 50.0)
    assert use_of(PAIR_RUNNING, {"GPU-a": Usage(5 * GIB, 80.0)}) == Use()
    assert use_of(replace(PAIR_RUNNING, device_uuids=()), usage) == Use()


def test_of_a_shared_device_the_container_s_memory_counts() -> None:
    usage = {"GPU-a": Usage(60 * GIB, 71.0, memory_bytes={"c" * 64: 3 * GIB, "d" * 64: 50 * GIB})}
    assert use_of(SLICE, usage) == Use(3 * GIB, 71.0)
    assert use_of(replace(SLICE, container_id="e" * 64), usage) == Use(None, 71.0)


class Readings:
    """What the node has read."""

    uses: dict[str, Use]

    def __init__(self, **uses: Use) -> None:
        self.uses = uses

    def __call__(self) -> list[dict[str, Use]]:
        """Each lease is on a machine of its own."""
        return [{key: use} for key, use in self.uses.items()]


async def test_twelve_samples_are_one_point_of_the_curve() -> None:
    read = Readings(a=Use(2 * GIB, 50.0), b=Use())
    sampler = Sampler(read)
    for memory in (2, 7, None, *[1] * 9):
        read.uses["a"] = Use(None if memory is None else memory * GIB, 50.0 if memory == 7 else 0.0)
        assert sampler.curve("a") == ()
        await sampler.sample()
    assert sampler.curve("a") == (Point(7 * GIB, pytest.approx(50.0 / 12)),)
    assert sampler.curve("b") == (Point(None, None),)
    assert sampler.curve("other") == ()


async def test_an_hour_is_kept_and_ended_leases_are_forgotten() -> None:
    read = Readings(a=Use(GIB, 1.0))
    sampler = Sampler(read)
    for _ in range(12 * (module.POINTS + 3)):
        await sampler.sample()
    assert len(sampler.curve("a")) == module.POINTS
    read.uses = {}
    await sampler.sample()
    assert (sampler.curve("a"), dict(sampler.latest)) == ((), {})


async def test_it_goes_on_after_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SAMPLE_SECONDS", 0.001)
    calls = 0

    def read() -> list[dict[str, Use]]:
        nonlocal calls
        calls += 1
        if calls < 4:
            raise RuntimeError("odd")
        return [{"a": Use(GIB)}]

    sampler = Sampler(read)
    metrics = Metrics()
    task = asyncio.create_task(sampler.run(LoopFailures("sampler", metrics, LOG)))
    while not sampler.latest:
        await asyncio.sleep(0.001)
    task.cancel()
    assert caplog.messages == ["The use of leases can't be sampled; trying again: odd"]
    assert metrics.registry.get_sample_value("gpuspawner_loop_errors_total", {"loop": "sampler"}) == 3
