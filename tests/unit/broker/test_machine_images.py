"""Which images a machine has: asked when something may have changed, and not where nobody chooses."""

from __future__ import annotations

import asyncio

import pytest
from gpuspawner.broker.observe import machine_images
from gpuspawner.broker.observe.machine_images import ImageParts, MachineImages
from gpuspawner.core.errors import EngineFault

from tests.soon import until


class Machine:
    """Its Docker, and what was noted of it."""

    def __init__(self) -> None:
        self.images: frozenset[str] | None = frozenset({"sha256:1"})
        self.noted: list[frozenset[str]] = []
        self.is_chosen = True
        self.watch = MachineImages(ImageParts(self.read, self.noted.append, lambda: self.is_chosen))

    async def read(self) -> frozenset[str]:
        if self.images is None:
            raise EngineFault("the machine is away")
        return self.images


async def test_a_machine_that_can_not_be_asked_has_no_image() -> None:
    machine = Machine()
    await machine.watch.look()
    machine.images = None
    await machine.watch.look()
    assert machine.noted == [{"sha256:1"}, frozenset()]


async def test_a_single_machine_is_not_asked() -> None:
    machine = Machine()
    machine.is_chosen = False
    await machine.watch.look()
    assert machine.noted == []


async def test_it_looks_again_when_a_lab_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_images, "GATHER_SECONDS", 0.0)
    machine = Machine()
    running = asyncio.create_task(machine.watch.run())
    try:
        await until(lambda: machine.noted == [{"sha256:1"}])
        machine.images = frozenset({"sha256:1", "sha256:2"})
        machine.watch.look_soon()
        await until(lambda: machine.noted[-1] == {"sha256:1", "sha256:2"})
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
