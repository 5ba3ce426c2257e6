"""A whole broker, and another machine's agent as a real process: whatever dies, no device has two leases."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from gpuspawner import __version__
from gpuspawner.broker.assembly.broker import Broker
from gpuspawner.broker.leases.leasing import LeaseService
from gpuspawner.core.errors import NoCapacity
from gpuspawner.core.machine import MachineState, MachineView
from gpuspawner.core.model import GpuRequest, Lease, LeaseState
from gpuspawner.core.want import Want
from gpuspawner.node.api import NodeFacts
from gpuspawner.node.engine import Engine
from gpuspawner.node.remote.certificates import Authority, Identity
from gpuspawner.node.remote.joining import join
from gpuspawner.node.remote.members import FOLDER, make_line, membership_of
from gpuspawner.tools import cli

from tests.soon import until
from tests.unit.node.agents import DEVICES, agent, stub_agent
from tests.unit.whole_broker import running, state_folder

T4 = Want(1, "t4")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Making keys takes a second or two."""
    folder = tmp_path_factory.mktemp("keys")
    Authority(folder)
    return folder


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, keys: Path) -> Iterator[Path]:
    """A broker's state folder with keys; its comparison with Docker is always good."""

    async def compare(self: LeaseService, engine: Engine | None = None) -> bool:
        if not self._allocator.placing:
            await self._allocator.start_placing()
        return True

    monkeypatch.setattr(LeaseService, "reconcile", compare)
    monkeypatch.setattr("gpuspawner.broker.assembly.members.LOOK_SECONDS", 0.1)
    with state_folder(monkeypatch) as found:
        (found / FOLDER).mkdir()
        shutil.copytree(keys, found / FOLDER / "keys")
        yield found


@pytest.fixture
def address() -> str:
    """Where agents connect."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@asynccontextmanager
async def broker_at(folder: Path, address: str) -> AsyncIterator[Broker]:
    settings = f'c.GpuBroker.agents_address = "{address}"\nc.GpuSite.simulated_devices = "{DEVICES}"\n'
    async with running(folder, settings.replace("; b: 2 x T4 16GB", "")) as (broker, _):
        yield broker


def in_service(broker: Broker) -> int:
    """How many of b's devices may be leased or are."""
    views = broker.deciding.allocator.snapshot().devices
    return sum(view.health.healthy for view in views if view.device.node == "b")


def doubles(broker: Broker) -> list[str]:
    """Devices with more than one lease."""
    views = broker.deciding.allocator.snapshot().devices
    return [view.device.uuid for view in views if len(view.holders) > 1]


async def ask(broker: Broker, user: str) -> Lease:
    request = GpuRequest(uuid.uuid4().hex, "hub", user, "", "gpu", T4)
    return await broker.deciding.allocator.acquire(request)


def state(broker: Broker, lease: Lease) -> tuple[LeaseState, tuple[str, ...]]:
    found = broker.deciding.allocator.lease(lease.id)
    assert found is not None
    return found.state, found.device_uuids


def notice(broker: Broker, lease: Lease) -> str:
    """What the lease's user reads."""
    found = broker.deciding.allocator.lease(lease.id)
    assert found is not None
    return found.notice


async def test_agent_and_broker_die_and_the_leases_stay(folder: Path, address: str, tmp_path: Path) -> None:
    async with broker_at(folder, address) as broker:
        allocator = broker.deciding.allocator
        await join(make_line(folder, address), "b", Identity(tmp_path / "agent"))
        async with agent(tmp_path, f"--broker={address}") as process:
            await until(lambda: in_service(broker) == 2)
            anna, ben = await ask(broker, "anna"), await ask(broker, "ben")
            assert (anna.node, ben.node) == ("b", "b")
            for lease in (anna, ben):
                await allocator.set_running(lease.id, f"container of {lease.user}")
            process.kill()
            await until(lambda: in_service(broker) == 0)
        cleo = await ask(broker, "cleo")
        assert cleo.state is LeaseState.WAITING
        await allocator.begin_release(anna.id, "stopped")
        assert state(broker, anna)[0] is LeaseState.RELEASING  # until Docker says that nothing is left
        await allocator.close(anna.id)
        assert state(broker, cleo)[0] is LeaseState.WAITING  # free, but on a machine that is away
        async with agent(tmp_path, f"--broker={address}"):
            await until(lambda: in_service(broker) == 2)
            await until(lambda: state(broker, cleo)[0] is LeaseState.RESERVED)
            assert state(broker, cleo)[1] == anna.device_uuids
            assert doubles(broker) == []
    async with broker_at(folder, address) as broker:  # it died, and so did the agent
        assert state(broker, ben) == (LeaseState.RUNNING, ben.device_uuids)
        assert in_service(broker) == 0
        assert machine(broker, "b").heard_at is not None  # by the broker before
        told = "The machine b hasn't reported yet since the broker started; your lab goes on."
        assert notice(broker, ben) == told
        async with agent(tmp_path, f"--broker={address}"):
            await until(lambda: in_service(broker) == 2)
            await until(lambda: notice(broker, ben) == "")
            assert (await ask(broker, "dora")).state is LeaseState.WAITING
            assert state(broker, ben) == (LeaseState.RUNNING, ben.device_uuids)
            assert doubles(broker) == []


async def test_a_machine_that_is_forgotten_loses_its_leases_and_may_join_again(
    folder: Path, address: str, tmp_path: Path
) -> None:
    async with broker_at(folder, address) as broker:
        allocator = broker.deciding.allocator
        await join(make_line(folder, address), "b", Identity(tmp_path / "agent"))
        async with agent(tmp_path, f"--broker={address}"):
            await until(lambda: in_service(broker) == 2)
            anna = await ask(broker, "anna")
            await allocator.set_running(anna.id, "container of anna")
            assert membership_of(folder).forget("b")
            await until(lambda: allocator.lease(anna.id) is None)
            assert in_service(broker) == 0
            await asyncio.sleep(3)  # its agent tries again, with a certificate that is worth nothing
            assert in_service(broker) == 0
        with pytest.raises(NoCapacity, match="this machine has none"):
            await ask(broker, "ben")
        assert [view.device.node for view in broker.deciding.allocator.snapshot().devices] == ["a"]
        await join(make_line(folder, address), "b", Identity(tmp_path / "agent"))
        await until(lambda: len(views(broker)) == 2)
        waiting = await ask(broker, "ben")  # nobody knows yet what it has
        assert waiting.state is LeaseState.WAITING
        async with agent(tmp_path, f"--broker={address}"):
            await until(lambda: in_service(broker) == 2)
            await until(lambda: state(broker, waiting)[0] is LeaseState.RESERVED)


def views(broker: Broker) -> tuple[MachineView, ...]:
    """The list of machines."""
    return broker.machines.views(broker.deciding.allocator.snapshot())


def machine(broker: Broker, name: str) -> MachineView:
    """As the list of machines shows it."""
    return next(view for view in views(broker) if view.name == name)


async def test_the_list_of_machines_says_what_each_does(folder: Path, address: str, tmp_path: Path) -> None:
    async with broker_at(folder, address) as broker:
        own = machine(broker, "a")
        assert own == MachineView(
            "a", MachineState.READY, since=own.since, release=__version__, own=True, gpus=1, in_service=1
        )
        await join(make_line(folder, address), "b", Identity(tmp_path / "agent"))
        await until(lambda: len(views(broker)) == 2)
        new = machine(broker, "b")
        assert new == MachineView(
            "b",
            MachineState.AWAY,
            "the machine b hasn't reported yet since the broker started",
            since=new.since,
        )
        async with agent(tmp_path, f"--broker={address}"):
            await until(lambda: machine(broker, "b").state is MachineState.READY)
            await ask(broker, "anna")
            ready = machine(broker, "b")
            assert ready == MachineView(
                "b",
                MachineState.READY,
                since=ready.since,
                release=__version__,
                gpus=2,
                in_service=2,
                leases=1,
            )
            uuids = [view.device.uuid for view in broker.deciding.allocator.snapshot().devices][1:]
            for uuid in uuids:
                await broker.deciding.rules.drain(uuid, "admin", "new disk")
            drained = machine(broker, "b")
            assert (drained.state, drained.reason, drained.drained, drained.leases) == (
                MachineState.DRAINING, "by admin: new disk", 2, 1,
            )  # fmt: skip
        await until(lambda: machine(broker, "b").in_service == 0)
        away = machine(broker, "b")
        assert away == replace(
            ready,
            state=MachineState.AWAY,
            reason="the machine b can't be reached: the connection was closed",
            since=away.since,
            heard_at=away.heard_at,
            in_service=0,
            drained=2,
        )
        assert away.heard_at is not None
        assert away.since is not None


async def test_doctor_looks_at_each_machine_through_its_agent(
    folder: Path, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with broker_at(folder, address) as broker:
        for name in ("b", "c"):
            await join(make_line(folder, address), name, Identity(tmp_path / name / "agent"))
        async with agent(tmp_path / "b", f"--broker={address}"):
            await until(lambda: in_service(broker) == 2)
            await until(lambda: len(views(broker)) == 3)
            words = ["doctor", "--json", "--config", str(folder / "config.py")]
            assert await asyncio.to_thread(cli.main, words) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    told = {each["subject"]: each["text"] for each in findings if each["subject"].startswith("Machine ")}
    assert told["Machine c"] == "the machine c hasn't reported yet since the broker started"
    assert "its agent" not in " ".join(text for subject, text in told.items() if subject != "Machine c")
    assert {"Machine b: Docker", "Machine b: GPUs"} <= told.keys()  # no Docker answers here
    assert "Machine b: Ledger" not in told


async def test_a_gpu_that_two_machines_have_is_leased_on_the_first_and_said(
    folder: Path, address: str, tmp_path: Path
) -> None:
    async with broker_at(folder, address) as broker:
        allocator = broker.deciding.allocator
        (own,) = [view.device for view in allocator.snapshot().devices]
        other = replace(own, uuid="GPU-other", model="T4 16GB")
        for name in ("b", "c"):
            await join(make_line(folder, address), name, Identity(tmp_path / name / "agent"))
        await until(lambda: len(views(broker)) == 3)
        facts = NodeFacts("b", simulated=True, devices=(other, own))
        async with stub_agent(facts, address, tmp_path / "b"):
            await until(lambda: machine(broker, "b").in_service == 1)
            assert machine(broker, "b").notices == (twice(own.uuid, "a"),)
            anna = await ask(broker, "anna")
            assert (anna.node, anna.device_uuids) == ("b", ("GPU-other",))
        await until(lambda: machine(broker, "b").state is MachineState.AWAY)
        facts = NodeFacts("c", simulated=True, devices=(other,))
        async with stub_agent(facts, address, tmp_path / "c"):  # b is away, and may have it all the same
            await until(lambda: machine(broker, "c").state is MachineState.UNUSED)
            assert machine(broker, "c").reason == twice("GPU-other", "b")
        found = {view.device.uuid: view for view in allocator.snapshot().devices}
        assert {uuid: view.device.node for uuid, view in found.items()} == {own.uuid: "a", "GPU-other": "b"}
        assert [lease.id for lease in found["GPU-other"].holders] == [anna.id]


def twice(uuid: str, node: str) -> str:
    return (
        f"{uuid} is a GPU of machine {node}, too, and is leased there only. A GPU is in one machine: if "
        "this one is a copy of that one, or an agent on the same machine, run `gpuspawner node leave` here; "
        f"if the GPU was moved here, run `gpuspawner node forget {node}` on the broker's machine"
    )


async def test_the_leases_of_a_machine_follow_every_change(
    folder: Path, address: str, tmp_path: Path
) -> None:
    async with broker_at(folder, address) as broker:
        allocator = broker.deciding.allocator

        def agree() -> dict[str, list[str]]:
            """The leases by machine; held against asking each lease for its machine."""
            found = {name: [lease.user for lease in allocator.leases_on(name)] for name in ("a", "b", "")}
            one_by_one = {
                name: [lease.user for lease in allocator.leases() if allocator.node_of(lease) == name]
                for name in found
            }
            assert found == one_by_one
            return found

        await join(make_line(folder, address), "b", Identity(tmp_path / "agent"))
        await until(lambda: len(views(broker)) == 2)
        waiting = await ask(broker, "anna")
        assert agree() == {"a": [], "b": [], "": ["anna"]}
        async with agent(tmp_path, f"--broker={address}"):
            await until(lambda: in_service(broker) == 2)
            await until(lambda: state(broker, waiting)[0] is LeaseState.RESERVED)
            await ask(broker, "ben")
            assert agree() == {"a": [], "b": ["anna", "ben"], "": []}
            await allocator.begin_release(waiting.id, "stopped")
            await allocator.close(waiting.id)
            assert agree() == {"a": [], "b": ["ben"], "": []}
        assert membership_of(folder).forget("b")
        await until(lambda: len(views(broker)) == 1)
        await until(lambda: not allocator.leases())
        assert agree() == {"a": [], "b": [], "": []}
