"""Leases against the hub's servers: what the hub doesn't know is marked; its errors say nothing."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from gpuspawner.broker.leases.hub_api import HubServer
from gpuspawner.broker.leases.unknown import UnknownServers
from gpuspawner.core.errors import HubFault
from gpuspawner.core.model import Lease

from tests.unit.lease_examples import RELEASING, RESERVED, RUNNING, WAITING, A, B, C, D, lease

ANNA = replace(lease(A, RUNNING, "GPU-0", container_id="c1"), user="anna")
TRAIN = replace(lease(B, RUNNING, "GPU-1", container_id="c2"), user="anna", server="train")


class Machine:
    """The broker's leases and the hub's servers; a lease may begin while the hub is asked."""

    def __init__(self, *leases: Lease) -> None:
        self.leases = list(leases)
        self.hub: dict[str, tuple[HubServer, ...]] | HubFault = {}
        self.begins: list[Lease] = []

    async def servers(self) -> dict[str, tuple[HubServer, ...]]:
        self.leases += self.begins
        if isinstance(self.hub, HubFault):
            raise self.hub
        return self.hub

    def know(self, user: str, *servers: str) -> None:
        assert isinstance(self.hub, dict)
        self.hub[user] = tuple(HubServer(name, "gpu", None) for name in servers)

    def unknown(self) -> UnknownServers:
        return UnknownServers(self, lambda: self.leases, "hub", logging.getLogger("unknown"))


async def test_what_the_hub_does_not_know_twice_is_marked(caplog: pytest.LogCaptureFixture) -> None:
    """A renamed user: the hub has the server under another name."""
    machine = Machine(ANNA, TRAIN)
    machine.know("anna", "train")
    machine.know("anne", "")
    unknown = machine.unknown()
    await unknown.round()
    assert unknown.ids() == frozenset()
    for _ in range(2):
        await unknown.round()
        assert unknown.ids() == {A}
    assert caplog.messages == [
        "The hub doesn't know a server that holds a GPU; an admin can end it on the GPU page: "
        f"user=anna server=- lease={A} devices=GPU-0 container=c1"
    ]
    machine.know("anna", "", "train")
    await unknown.round()
    assert unknown.ids() == frozenset()


async def test_an_error_of_the_hub_says_nothing() -> None:
    machine = Machine(ANNA)
    unknown = machine.unknown()
    await unknown.round()
    lost, machine.hub = machine.hub, HubFault("503")
    with pytest.raises(HubFault):
        await unknown.round()
    assert unknown.ids() == frozenset()
    machine.hub = lost
    await unknown.round()
    assert unknown.ids() == {A}
    machine.hub = HubFault("503")
    with pytest.raises(HubFault):
        await unknown.round()
    assert unknown.ids() == {A}


async def test_what_begins_or_ends_meanwhile_and_what_is_another_hubs() -> None:
    others = [
        lease(B, WAITING), lease(C, RESERVED, "GPU-1"), lease(D, RELEASING, "GPU-1"),
        replace(lease("e" * 32, RUNNING, "GPU-2"), hub="another"),
    ]  # fmt: skip
    machine = Machine(*others)
    machine.begins = [ANNA]
    unknown = machine.unknown()
    await unknown.round()
    machine.begins = []
    await unknown.round()
    assert unknown.ids() == frozenset()  # once is not twice
    await unknown.round()
    assert unknown.ids() == {A}
    machine.leases.remove(ANNA)
    await unknown.round()
    assert unknown.ids() == frozenset()
