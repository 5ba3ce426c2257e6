"""A reload of systemd takes devices from containers: who has lost one is told, once, and nobody else."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest
from gpuspawner.broker.enforce import reloads
from gpuspawner.broker.enforce.reloads import CONTROL, LOST, ReloadParts, ReloadWatch
from gpuspawner.broker.observe.metrics import Metrics
from gpuspawner.core.errors import EngineFault
from gpuspawner.node.api import Injection
from gpuspawner.node.reloads import reload_stamp

from tests.unit.lease_examples import RESERVED, RUNNING, WAITING, A, B, C, D, lease

LEASES = (
    lease(A, RUNNING, "GPU-0", container_id="c1"),
    lease(B, RUNNING, "GPU-1", container_id="c2"),
    lease(C, RESERVED, "GPU-2"),
    lease(D, WAITING),
)


class Machine:
    """Systemd's stamp, and the containers that can't open the device."""

    def __init__(self) -> None:
        self.stamp: int | None = 1
        self.way: Injection | None = Injection.NVIDIA
        self.denied: set[str] = set()
        self.down = False
        self.asked: list[str] = []
        self.stamps_read = 0
        self.told: list[tuple[str, str]] = []

    async def is_denied(self, container_id: str, device: str) -> bool:
        assert device == CONTROL
        if self.down:
            raise EngineFault("Docker is down")
        self.asked.append(container_id)
        return container_id in self.denied

    async def read_stamp(self) -> int | None:
        self.stamps_read += 1
        return self.stamp

    async def tell(self, lease_id: str, sentence: str) -> None:
        self.told.append((lease_id, sentence))

    def watch(self) -> ReloadWatch:
        parts = ReloadParts(
            engine=self,  # type: ignore[arg-type]
            way=lambda: self.way,
            stamp=self.read_stamp,
            leases=lambda: LEASES,
            tell=self.tell,
            metrics=Metrics(),
            log=logging.getLogger("reloads"),
        )
        return ReloadWatch(parts)


async def test_after_a_reload_each_server_is_asked_once() -> None:
    machine = Machine()
    watch = machine.watch()
    for _ in range(2):
        await watch.round()
    assert (machine.asked, machine.told) == (["c1", "c2"], [])  # the broker may have been away
    machine.stamp, machine.denied = 2, {"c2"}
    for _ in range(2):
        await watch.round()
    assert machine.asked == ["c1", "c2"] * 2
    assert machine.told == [(B, LOST)]


async def test_a_round_that_docker_does_not_answer_is_repeated() -> None:
    machine = Machine()
    machine.down, machine.denied = True, {"c1"}
    watch = machine.watch()
    with pytest.raises(EngineFault):
        await watch.round()
    machine.down = False
    await watch.round()
    assert machine.told == [(A, LOST)]


async def test_the_same_failure_is_logged_once_until_it_is_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reloads, "ROUND_SECONDS", 0.001)
    machine = Machine()
    watching = asyncio.create_task(machine.watch().run())
    for stamp in (2, 3):
        machine.down, machine.stamp = True, stamp
        await asyncio.sleep(0.05)
        machine.down = False
        await asyncio.sleep(0.05)
    watching.cancel()
    await asyncio.wait([watching])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith("Whether servers have lost their GPU is not known, retrying: ")


@pytest.mark.parametrize(("way", "stamp"), [(Injection.CDI, 1), (None, 1), (Injection.NVIDIA, None)])
async def test_with_cdi_or_without_systemd_nobody_is_asked(way: Injection | None, stamp: int | None) -> None:
    machine = Machine()
    machine.way, machine.stamp = way, stamp
    await machine.watch().round()
    assert machine.asked == []
    assert machine.stamps_read == (way is Injection.NVIDIA)  # on other machines it costs a message


def test_the_stamp_changes_as_a_reload_changes_the_folder(tmp_path: Path) -> None:
    """systemd removes the folder of its generators and makes it again."""
    assert reload_stamp(tmp_path / "none") is None
    (tmp_path / "generator").mkdir()
    os.utime(tmp_path, ns=(1, 1))
    before = reload_stamp(tmp_path)
    (tmp_path / "generator").rmdir()
    (tmp_path / "generator").mkdir()
    assert before != reload_stamp(tmp_path) is not None
