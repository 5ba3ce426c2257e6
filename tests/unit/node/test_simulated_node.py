"""A further machine that is simulated: its facts, and that it can be taken away and comes back."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from gpuspawner.config.site import GpuSite
from gpuspawner.core.errors import DeviceFault
from gpuspawner.node.api import DesiredState, NodeEvent, NodeFacts
from gpuspawner.node.opening import open_nodes

from tests.soon import SOON_SECONDS

LOG = logging.getLogger("test")
AWAY = "the machine b can't be reached: cut"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GpuSite:
    monkeypatch.setattr("gpuspawner.node.simulated_node.LOOK_SECONDS", 0.01)
    devices = "a: 1 x H100 80GB; b: 1 x T4 16GB"
    return GpuSite(inventory="simulated", simulated_devices=devices, state_dir=str(tmp_path))


async def until_facts(events: asyncio.Queue[NodeEvent]) -> NodeFacts:
    async with asyncio.timeout(SOON_SECONDS):
        while not isinstance(event := await events.get(), NodeFacts):
            pass
    return event


async def test_each_machine_has_its_own_devices(site: GpuSite) -> None:
    nodes = open_nodes(site, LOG)
    facts = [await node.start() for node in nodes]
    found = [(each.name, each.simulated, [device.model for device in each.devices]) for each in facts]
    assert found == [("a", True, ["H100 80GB"]), ("b", True, ["T4 16GB"])]
    assert {device.node for each in facts for device in each.devices} == {"a", "b"}
    for node in nodes:
        await node.close()


async def test_names_count_only_where_everything_is_simulated(site: GpuSite) -> None:
    site.inventory = "auto"
    assert len(open_nodes(site, LOG)) == 1


async def test_it_goes_away_and_comes_back(site: GpuSite, tmp_path: Path) -> None:
    faults = tmp_path / "simulated_faults"
    faults.write_text("b cut\n")
    _, node = open_nodes(site, LOG)
    events: asyncio.Queue[NodeEvent] = asyncio.Queue()

    async def read() -> None:
        async for event in node.events():
            events.put_nowait(event)

    reading = asyncio.create_task(read())
    facts = await node.start()
    assert (facts.away, facts.devices) == (AWAY, ())
    with pytest.raises(DeviceFault, match="can't be reached: cut"):
        await node.settle("GPU-x")
    faults.write_text("")
    back = await until_facts(events)
    assert (back.away, [device.model for device in back.devices]) == ("", ["T4 16GB"])
    await node.apply(DesiredState(frozenset(device.uuid for device in back.devices)))
    assert [each.healthy for each in await node.health()] == [True]
    faults.write_text("b cut\n")
    gone = await until_facts(events)
    assert (gone.away, gone.devices) == (AWAY, back.devices)
    await node.close()
    await reading
