"""A whole broker with two machines: what is on which, one that goes away, one that is away from the start."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.assembly.broker import Broker
from gpuspawner.core.errors import NoCapacity
from gpuspawner.core.model import GpuRequest, LeaseState
from gpuspawner.core.want import Want
from gpuspawner.protocol.client import BrokerClient

from tests.soon import SOON_SECONDS
from tests.unit.whole_broker import running, state_folder

TWO = 'c.GpuSite.simulated_devices = "a: 2 x H100 80GB; b: 1 x H100 80GB, 1 x A100 40GB"\n'
A100 = Want(1, "a100")
USERS = (("anna", Want(2, "h100")), ("ben", A100))


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with state_folder(monkeypatch) as found:
        monkeypatch.setattr("gpuspawner.node.simulated_node.LOOK_SECONDS", 0.02)
        yield found


def request(user: str, want: Want = A100) -> GpuRequest:
    return GpuRequest(uuid.uuid4().hex, "hub", user, "", "gpu", want)


@asynccontextmanager
async def two_machines(folder: Path) -> AsyncIterator[tuple[Broker, BrokerClient]]:
    """A broker for which Docker has answered: it has placed who waits."""
    async with running(folder, TWO) as (broker, client):
        await broker.deciding.allocator.start_placing()
        yield broker, client


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


def health(broker: Broker) -> dict[str, tuple[bool, str]]:
    """By what people call a device: whether it is in service, and why not."""
    views = broker.deciding.allocator.snapshot().devices
    return {view.name: (view.health.healthy, view.health.reason) for view in views}


WELL = (True, "")
AWAY = (False, "the machine b can't be reached: network cut")
FAULT = "The machine b can't be reached: network cut"


async def test_the_devices_of_a_lease_are_of_one_machine_which_is_named(folder: Path) -> None:
    async with two_machines(folder) as (broker, client):
        status = await client.status()
        found = [(each["node"], each["index"], each["model"]) for each in status["devices"]]
        assert found == [
            ("a", 0, "H100 80GB"),
            ("a", 1, "H100 80GB"),
            ("b", 0, "H100 80GB"),
            ("b", 1, "A100 40GB"),
        ]
        allocator = broker.deciding.allocator
        with pytest.raises(
            NoCapacity, match="You asked for 3 GPUs, but no machine has more than 2: choose another"
        ):
            await allocator.acquire(request("anna", Want(3)))
        pair = await allocator.acquire(request("anna", Want(2, "h100")))
        one = await allocator.acquire(request("ben", A100))
        assert (pair.node, one.node) == ("a", "b")


async def test_each_machine_enforces_its_own_leases(folder: Path) -> None:
    async with two_machines(folder) as (broker, _):
        allocator = broker.deciding.allocator
        leases = [await allocator.acquire(request(user, want)) for user, want in USERS]
        for lease in leases:
            await allocator.set_running(lease.id, f"container of {lease.user}")
        desired = {name: broker.machines.machine(name).enforcement.desired() for name in ("a", "b")}
        watched = {name: sorted(uuid[-1] for uuid in each.device_uuids) for name, each in desired.items()}
        assert watched == {"a": ["0", "1"], "b": ["2", "3"]}
        quotas = {
            name: [(each.container_id, each.device_uuid[-1]) for each in plan.quotas.quotas]
            for name, plan in desired.items()
        }
        assert quotas == {
            "a": [("container of anna", "0"), ("container of anna", "1")],
            "b": [("container of ben", "3")],
        }
        containers = {name: set(plan.quotas.containers) for name, plan in desired.items()}
        assert containers == {"a": {"container of anna"}, "b": {"container of ben"}}


async def test_a_machine_that_is_away_keeps_its_leases_and_gets_nothing_new(folder: Path) -> None:
    async with two_machines(folder) as (broker, client):
        allocator = broker.deciding.allocator
        held = await allocator.acquire(request("anna"))
        (folder / "simulated_faults").write_text("b network cut\n")
        await until(lambda: not health(broker)["A100 40GB #1 of b"][0])
        await until(lambda: not health(broker)["H100 80GB #0 of b"][0])
        assert health(broker) == {
            "H100 80GB #0 of a": WELL, "H100 80GB #1 of a": WELL,
            "H100 80GB #0 of b": AWAY, "A100 40GB #1 of b": AWAY,
        }  # fmt: skip
        assert (await client.status())["fault"] == FAULT
        await until(lambda: (known := allocator.lease(held.id)) is not None and bool(known.notice))
        kept = allocator.lease(held.id)
        assert kept is not None
        assert (kept.state, kept.device_uuids) == (LeaseState.RESERVED, held.device_uuids)
        assert kept.notice == "The machine b can't be reached: network cut; your lab goes on."
        waiting = await allocator.acquire(request("ben"))
        assert waiting.state is LeaseState.WAITING
        assert "the machine b can't be reached: network cut" in allocator.obstacles([waiting.id])[waiting.id]
        elsewhere = await allocator.acquire(request("cleo", Want(1)))
        assert elsewhere.node == "a"


async def test_a_machine_that_is_back_serves_after_docker_was_compared(folder: Path) -> None:
    async with two_machines(folder) as (broker, _):
        allocator, answers = broker.deciding.allocator, [False, False]

        async def compare() -> bool:
            return answers.pop() if answers else may_serve

        may_serve = False
        presence: Any = broker.machines.machine("b").presence
        presence._parts = replace(presence._parts, compare=compare, retry_seconds=0.01)
        (folder / "simulated_faults").write_text("b network cut\n")
        await until(lambda: not health(broker)["A100 40GB #1 of b"][0])
        waiting = await allocator.acquire(request("anna"))
        (folder / "simulated_faults").write_text("")
        await until(lambda: not answers)
        await asyncio.sleep(0.1)
        assert health(broker)["A100 40GB #1 of b"] == AWAY
        may_serve = True
        await until(lambda: health(broker)["A100 40GB #1 of b"] == WELL)
        await until(lambda: allocator.lease(waiting.id).state is LeaseState.RESERVED)  # type: ignore[union-attr]


async def test_a_machine_that_is_away_at_the_start_keeps_its_leases_and_comes_later(folder: Path) -> None:
    async with two_machines(folder) as (broker, _):
        held = await broker.deciding.allocator.acquire(request("anna"))
    (folder / "simulated_faults").write_text("b network cut\n")
    async with two_machines(folder) as (broker, _):
        allocator = broker.deciding.allocator
        kept = allocator.lease(held.id)
        assert kept is not None
        assert (kept.node, kept.device_uuids, kept.state) == ("b", held.device_uuids, LeaseState.RESERVED)
        early = await allocator.acquire(request("ben"))
        never = await allocator.acquire(request("cleo", Want(1, "b200")))
        assert (early.state, never.state) == (LeaseState.WAITING, LeaseState.WAITING)
        assert allocator.obstacles([early.id])[early.id] == (
            "You asked for a GPU with 'a100' in its name, which no machine has that can be reached now: the "
            "machine b can't be reached: network cut. Your server starts when it is back and has one free; "
            "or choose another tier, or CPU."
        )
        presence: Any = broker.machines.machine("b").presence

        async def compare() -> bool:
            return True

        presence._parts = replace(presence._parts, compare=compare, retry_seconds=0.01)
        (folder / "simulated_faults").write_text("")
        await until(lambda: "A100 40GB #1 of b" in health(broker))
        await until(lambda: allocator.lease(never.id) is None)  # now it is known that nobody has one
        with pytest.raises(NoCapacity, match="no machine has one: choose another tier"):
            await allocator.acquire(replace(request("cleo", Want(1, "b200")), lease_id=never.id))
        waits = allocator.lease(early.id)
        assert waits is not None
        assert (waits.state, allocator.obstacles([early.id])) == (LeaseState.WAITING, {})  # anna has it


async def test_who_has_files_on_a_machine_gets_a_gpu_there_or_waits_for_it(folder: Path) -> None:
    on_b = Want(1, node="b")
    async with two_machines(folder) as (broker, _):
        allocator = broker.deciding.allocator
        first, second = [await allocator.acquire(request(user, on_b)) for user in ("anna", "ben")]
        assert (first.node, second.node) == ("b", "b")
        third = await allocator.acquire(request("cleo", on_b))
        assert third.state is LeaseState.WAITING  # although a has two
        with pytest.raises(NoCapacity) as never:
            await allocator.acquire(request("dora", Want(1, "a100", node="a")))
        assert never.value.message == (
            "You asked for a GPU with 'a100' in its name on the machine a, where your files are, but it has "
            "none: choose another tier, or CPU."
        )
        (folder / "simulated_faults").write_text("b network cut\n")
        await until(lambda: not health(broker)["A100 40GB #1 of b"][0])
        await until(lambda: not health(broker)["H100 80GB #0 of b"][0])
        obstacle = allocator.obstacles([third.id])[third.id]
        assert obstacle.startswith(
            "You asked for a GPU on the machine b, where your files are, but no matching GPU is in service"
        )
        assert "the machine b can't be reached: network cut" in obstacle
    async with two_machines(folder) as (broker, _):  # b is away, and nobody knows what it has
        allocator = broker.deciding.allocator
        kept = allocator.lease(third.id)
        assert kept is not None
        assert (kept.state, kept.want) == (LeaseState.WAITING, on_b)
        with pytest.raises(NoCapacity, match="on the machine c, where your files are, but it has none"):
            await allocator.acquire(request("emil", Want(1, node="c")))


async def test_a_tier_s_label_and_a_pool_s_machines_decide_where_a_server_is(folder: Path) -> None:
    settings = TWO + (
        'c.GpuSite.node_labels = {"b": ["fast-disk"]}\n'
        'c.GpuSite.pools = [{"name": "lab", "nodes": ["b"], "devices": {"model": "A100"}}, {"name": "all"}]\n'
        'c.GpuSite.tiers = [{"name": "gpu", "devices": 1}, '
        '{"name": "near", "devices": 1, "node_label": "fast-disk", "model": "H100"}, '
        '{"name": "lab", "devices": 1, "pool": "lab"}]\n'
    )
    async with running(folder, settings) as (broker, client):
        allocator = broker.deciding.allocator
        await allocator.start_placing()
        near = Want(1, "h100", node_label="fast-disk")
        first, second = (
            await allocator.acquire(request("anna", near)),
            await allocator.acquire(request("ben", near)),
        )
        assert (first.node, second.state) == ("b", LeaseState.WAITING)  # a has two, but no such label
        lab = await allocator.acquire(request("cleo", Want(1, pool="lab")))
        pools = {each["pool"] for each in (await client.status())["devices"] if each["model"] == "A100 40GB"}
        assert (lab.node, pools) == ("b", {"lab"})
        with pytest.raises(NoCapacity, match="a GPU of a machine with the label 'fast-net', but"):
            await allocator.acquire(request("dora", Want(1, node_label="fast-net")))
        machines = {each["name"]: each["labels"] for each in (await client.status())["machines"]}
        assert machines == {"a": [], "b": ["fast-disk"]}
        found = await broker.ground.ledger.find(second.id)
        assert found is not None
        assert found.want == near
