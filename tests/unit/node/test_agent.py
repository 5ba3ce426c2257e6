"""An agent as a real process, over TLS on loopback: it joins, dies, is cut off, forgotten; a broker dies."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from gpuspawner import __version__
from gpuspawner.core.errors import ConfigError, DeviceFault, Fault
from gpuspawner.node.api import Contact, DesiredState, NodeFacts, QuotaPlan
from gpuspawner.node.remote import wire
from gpuspawner.node.remote.certificates import Identity
from gpuspawner.node.remote.joining import connect, join, parse_line
from gpuspawner.node.remote.wire import Hello, plain

from tests.soon import SOON_SECONDS, until
from tests.unit.node.agents import Broker, Cable, agent

WAITS = "the machine b hasn't reported yet since the broker started"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Making keys takes a second or two."""
    folder = tmp_path_factory.mktemp("broker")
    Broker(folder)
    return folder


@pytest.fixture
async def broker(keys: Path) -> AsyncIterator[Broker]:
    found = Broker(keys)
    await found.start()
    yield found
    await found.stop()
    for name in found.membership.names():
        found.membership.forget(name)


@pytest.fixture
async def member(broker: Broker, tmp_path: Path) -> Path:
    """The state folder of machine b, which has joined."""
    await join(broker.line(), "b", Identity(tmp_path / "agent"))
    return tmp_path


def desired(facts: NodeFacts) -> DesiredState:
    """All of its devices, watched."""
    uuids = frozenset(device.uuid for device in facts.devices)
    return DesiredState(uuids, QuotaPlan(device_uuids=uuids))


async def test_a_machine_joins_and_does_what_the_broker_wants(broker: Broker, member: Path) -> None:
    assert broker.facts == NodeFacts("b", away=WAITS)
    with pytest.raises(DeviceFault, match="hasn't reported yet since the broker started"):
        await broker.node.settle("GPU-x")
    async with agent(member, f"--broker=127.0.0.1:{broker.port}"):
        await until(lambda: not broker.away)
        facts = broker.node.facts
        assert [(each.node, each.model, each.index) for each in facts.devices] == [
            ("b", "T4 16GB", 0), ("b", "T4 16GB", 1),
        ]  # fmt: skip
        await broker.node.apply(desired(facts))
        health = await broker.node.health()
        assert [(each.uuid, each.healthy) for each in health] == [(each.uuid, True) for each in facts.devices]
        await broker.node.settle(facts.devices[0].uuid)
        (member / "simulated_faults").write_text("1 Fell off the bus\n")
        reason = "Fell off the bus"
        await until(lambda: any(getattr(event, "reason", "") == reason for event in broker.events))


async def test_an_agent_that_is_killed_comes_back_with_what_it_was_told(broker: Broker, member: Path) -> None:
    async with agent(member, f"--broker=127.0.0.1:{broker.port}") as process:
        await until(lambda: not broker.away)
        devices = broker.node.facts.devices
        await broker.node.apply(desired(broker.node.facts))
        process.kill()
        await until(lambda: broker.away == "the machine b can't be reached: the connection was closed")
    assert broker.node.facts.devices == devices  # what it has is known; it only can't be reached
    assert await broker.node.health() == ()
    kept = json.loads((member / "desired.json").read_text())
    assert sorted(kept["device_uuids"]) == sorted(each.uuid for each in devices)
    await broker.stop()
    await broker.start()  # it has not looked at the machine yet, so it tells nothing
    async with agent(member, f"--broker=127.0.0.1:{broker.port}"):
        await until(lambda: not broker.away)
        assert [each.healthy for each in await broker.node.health()] == [True, True]  # watched by itself


async def test_a_broker_that_dies_finds_its_machine_again(broker: Broker, member: Path) -> None:
    async with agent(member, f"--broker=127.0.0.1:{broker.port}") as process:
        await until(lambda: not broker.away)
        await broker.node.apply(desired(broker.node.facts))
        await broker.stop()
        await asyncio.sleep(0.3)
        assert process.returncode is None
        await broker.start()
        assert broker.facts.away == WAITS
        await broker.node.apply(DesiredState())  # it knows no device yet, which takes nothing away
        await until(lambda: not broker.away)
        assert [each.healthy for each in await broker.node.health()] == [True, True]


async def test_a_cut_cable_is_noticed_and_mended(broker: Broker, member: Path) -> None:
    cable = Cable(broker.port)
    await cable.open()
    async with agent(member, f"--broker=127.0.0.1:{cable.port}"):
        await until(lambda: not broker.away)
        await broker.node.apply(desired(broker.node.facts))
        cable.cut()
        await until(lambda: broker.away == "the machine b can't be reached: nothing was heard for 1.5 s")
        with pytest.raises(DeviceFault, match=r"nothing was heard for 1\.5 s"):
            await broker.node.processes("GPU-x")
        cable.mend()
        await until(lambda: not broker.away)
        assert [each.healthy for each in await broker.node.health()] == [True, True]
    await cable.close()


async def test_a_machine_that_is_forgotten_is_shut_out(broker: Broker, member: Path) -> None:
    async with agent(member, f"--broker=127.0.0.1:{broker.port}") as process:
        await until(lambda: not broker.away)
        assert broker.membership.forget("b")
        await broker.node.close()  # as the broker does when it looks
        await until(lambda: bool(broker.away))
        assert process.stderr is not None
        async with asyncio.timeout(SOON_SECONDS):
            while b"machine 'b' hasn't joined, or was forgotten" not in (await process.stderr.readline()):
                pass
        assert broker.away


async def test_a_copy_of_a_machine_is_refused_and_told_of(
    broker: Broker, member: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(member / "agent", copy / "agent")
    address = f"--broker=127.0.0.1:{broker.port}"
    async with agent(member, address):
        await until(lambda: not broker.away)
        assert broker.node.facts.contact == Contact(__version__)
        async with agent(copy, address) as second:
            assert second.stderr is not None
            async with asyncio.timeout(20):
                while b"the agent of machine b is connected already" not in await second.stderr.readline():
                    pass
            assert broker.node.facts.contact == Contact(
                __version__,
                rival="A second agent of this machine connects, from 127.0.0.1, and is refused. If one of "
                "the two machines is a copy of the other, run `gpuspawner node leave` and `gpuspawner node "
                "join LINE` on the copy",
            )
            assert not broker.away


async def test_an_agent_of_another_release_is_refused_and_the_machine_says_so(
    broker: Broker, member: Path
) -> None:
    old = Hello("b", "run", wire.VERSION - 2, "0.0.1")
    reader, writer = await connect("127.0.0.1", broker.port, Identity(member / "agent"))
    writer.write(json.dumps(plain(old)).encode() + b"\n")
    why = old.refusal()
    assert json.loads(await reader.readline()) == {"tell": "refused", "value": why}
    writer.close()
    away = f"the machine b can't be reached: {why}"
    assert broker.node.facts == NodeFacts("b", away=away, contact=Contact("0.0.1", refused=True))
    async with agent(member, f"--broker=127.0.0.1:{broker.port}"):  # updated
        await until(lambda: not broker.away)
        assert broker.node.facts.contact == Contact(__version__)


async def test_a_certificate_of_another_machine_is_refused(broker: Broker, member: Path) -> None:
    """With a good certificate, but under the name of a machine that has another one."""
    joined = broker.folder / "joined.json"
    joined.write_text(json.dumps({"b": "0" * 64, "c": json.loads(joined.read_text())["b"]}))
    async with agent(member, f"--broker=127.0.0.1:{broker.port}"):
        await asyncio.sleep(3)
        assert broker.away == WAITS


async def test_a_token_serves_once_and_a_name_once(broker: Broker, tmp_path: Path) -> None:
    line = broker.line()
    await join(line, "b", Identity(tmp_path / "one"))
    with pytest.raises(Fault, match="this token isn't good, or not any more"):
        await join(line, "other", Identity(tmp_path / "two"))
    with pytest.raises(Fault, match="a machine b has joined already"):
        await join(broker.line(), "b", Identity(tmp_path / "three"))
    with pytest.raises(Fault, match="is no machine's name"):
        await join(broker.line(), "../b", Identity(tmp_path / "four"))
    assert broker.membership.names() == ("b",)


async def test_a_token_goes_to_no_other_program(broker: Broker, tmp_path: Path) -> None:
    line = broker.line()
    with pytest.raises(Fault, match="Another program answers"):
        await join(replace(line, broker_fingerprint="0" * 64), "b", Identity(tmp_path / "one"))
    await join(line, "b", Identity(tmp_path / "two"))  # it was not used up


def test_a_line_is_read_as_it_was_printed(keys: Path) -> None:
    line = Broker(keys).line()
    assert parse_line(f" {line}\n") == line
    with pytest.raises(ConfigError, match="copy the whole line"):
        parse_line(str(line)[:-1])


async def test_an_agent_without_a_broker_s_address_says_so(tmp_path: Path) -> None:
    async with agent(tmp_path) as process:
        _, error = await process.communicate()
    assert (process.returncode, error.decode().strip().splitlines()[-1]) == (
        1, "gpuspawner agent: --broker= isn't an address: give it as HOST:PORT",
    )  # fmt: skip
