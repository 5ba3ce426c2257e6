"""A broker with a class: real allocator, ledger and rules; the hub's lists and Docker are the test's."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from gpuspawner.broker.api.classes import Classes, ClassParts
from gpuspawner.broker.api.public.classes import ClassTools
from gpuspawner.broker.leases.announcements import Announcements
from gpuspawner.broker.leases.hub_api import HubServer
from gpuspawner.broker.leases.hub_people import Hub, HubPeople
from gpuspawner.broker.ledger import EndedProcess
from gpuspawner.broker.observe.use import Use
from gpuspawner.core.errors import EngineFault, HubFault, NotAllowed
from gpuspawner.core.model import GpuRequest

from tests.unit.rules_bench import Machine, Served

GIB = 1 << 30


@dataclass
class ListingHub:
    """The hub's lists; `fault` makes it silent."""

    groups: dict[str, list[str]] = field(default_factory=dict)
    running: dict[str, tuple[HubServer, ...]] = field(default_factory=dict)
    fault: str = ""

    async def members(self, group: str) -> list[str]:
        if self.fault:
            raise HubFault(self.fault)
        if group not in self.groups:
            raise HubFault(f"GET /groups/{group} was answered with 404: No such group")
        return self.groups[group]

    async def servers(self) -> dict[str, tuple[HubServer, ...]]:
        if self.fault:
            raise HubFault(self.fault)
        return self.running


class Ender:
    """Ends leases as the service does, without containers; `stuck` are those that Docker can't remove."""

    def __init__(self, bench: ClassBench) -> None:
        self._bench = bench
        self.ended: list[tuple[str, str]] = []
        self.stuck: set[str] = set()

    async def tell(self, lease_id: str, sentence: str) -> None:
        await self._bench.broker.allocator.tell(lease_id, sentence)

    async def release(self, lease_id: str, reason: str) -> bool:
        if lease_id in self.stuck:
            raise EngineFault("Docker does not answer")
        self.ended.append((lease_id[-1], reason))
        allocator = self._bench.broker.allocator
        lease = await allocator.begin_release(lease_id, reason)
        if lease is not None and lease.state.holds_devices:
            await allocator.close(lease_id)
        return True


@dataclass
class HubStop:
    """The hub stops servers for those whose token it accepts; `refuse`: it says no."""

    asked: list[tuple[str, str, str]] = field(default_factory=list)
    refuse: bool = False

    async def stop(self, token: str, user: str, server: str) -> bool:
        self.asked.append((token, user, server))
        if self.refuse:
            raise NotAllowed("the hub says no")
        return True


class ClassBench:
    """The class `students` of ada, bob, cid and dan; `another` has eve."""

    def __init__(
        self, folder: Path, times: Any, machine: Machine | None = None, people: Hub | None = None
    ) -> None:
        self.broker, self.times = Served(folder, times, machine), times
        self.hub = ListingHub({"students": ["ada", "bob", "cid", "dan"], "another": ["eve"]})
        self._people = people or self.hub
        self.ender = Ender(self)
        self.hub_stop: Any = HubStop()
        self.uses: dict[str, Use] = {}
        self.ended: list[EndedProcess] = []

    async def open(self) -> None:
        """Opens ledger and rules on the present loop."""
        await self.broker.open()
        broker, now = self.broker, self.times.now
        parts = ClassParts(
            people=HubPeople(self._people, now, lambda: self.times.steady.seconds),
            allocator=broker.allocator,
            service=self.ender,
            rules=broker.rules,
            endings=broker.endings,
            announcements=Announcements(broker.rules.rulebook, broker.site.log, now),
            ledger=broker.ledger,
            ended=lambda: self.ended,
            use=lambda: self.uses,
            clock=now,
            stop_through_hub=self.hub_stop.stop,
        )
        self.classes = Classes(parts)
        self.tools = ClassTools(broker.site, broker.rules, broker.endings, self.classes)

    async def close(self) -> None:
        """Ends what `open` began."""
        await self.broker.close()
        self.broker.loop.close()

    async def ask(
        self,
        number: int,
        user: str,
        group: str = "students",
        hub: str = "hub",
        tier: str = "gpu",
        server: str = "",
    ) -> str:
        """A lease of the tier, waiting or reserved; its id."""
        known = {each.name: each for each in self.broker.rules.rulebook.known.tiers}
        request = GpuRequest(f"{number:032x}", hub, user, server, tier, known[tier].want, (group,))
        return (await self.broker.allocator.acquire(request)).id

    async def run(self, number: int, user: str, *where: str, **more: str) -> str:
        """The same, running."""
        lease_id = await self.ask(number, user, *where, **more)
        await self.broker.allocator.set_running(lease_id, f"container-{number}")
        return lease_id

    def end_process(
        self, lease_id: str, user: str, minutes_ago: float = 1, quota_bytes: int = 8 * GIB
    ) -> None:
        """The guard ended a process of that lease."""
        self.ended.insert(0, EndedProcess(
            at=self.times.now() - timedelta(minutes=minutes_ago), offence="memory", lease_id=lease_id,
            hub="hub", user=user, server="", container_id="c", device_uuid="GPU-0", pid=7, name="python",
            used_bytes=quota_bytes + GIB, quota_bytes=quota_bytes, over_seconds=2.0,
            sentence="Your process was ended",
        ))  # fmt: skip

    def states(self) -> dict[str, str]:
        """The state of each living lease, by user."""
        return {lease.user: lease.state.value for lease in self.broker.allocator.leases()}
