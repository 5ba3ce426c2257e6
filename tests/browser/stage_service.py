"""The GPU service with a class and an admin's machine behind it: real allocator, ledger, rules and pages.

Started by the hub of `stage_hub_config.py`, whose groups and users it reads. There are no containers: a
server is a lease that runs. The scene is that of a lab session in its second half.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gpuspawner.broker.api.public.classes import class_routes
from gpuspawner.broker.api.public.hub_servers import HubServers
from gpuspawner.broker.api.public.rules import joined, public_rules
from gpuspawner.broker.decide.place.sharing_rules import DRIVER_BYTES, SharingRules
from gpuspawner.broker.decide.snapshot import DeviceView, QueueEntry
from gpuspawner.broker.leases.hub_api import HubApi
from gpuspawner.broker.ledger import EndedProcess, Ledger, Steady
from gpuspawner.broker.observe.checkup import Checkup, Line
from gpuspawner.broker.observe.use import Use
from gpuspawner.broker.pages.admin.base import AdminTools
from gpuspawner.broker.pages.admin.handlers import admin_pages
from gpuspawner.broker.pages.admin.map import Readings
from gpuspawner.broker.pages.classes.base import Teaching
from gpuspawner.broker.pages.classes.handlers import class_pages
from gpuspawner.broker.pages.routes import make_handlers, make_settings
from gpuspawner.broker.pages.unknown.handlers import unknown_pages
from gpuspawner.core.disk import Disk
from gpuspawner.core.model import Device, Lease
from gpuspawner.core.want import Mode
from gpuspawner.node.api import Usage, XidSeen
from gpuspawner.protocol.pulls import ImageDocument, PullMessage
from tornado.web import Application

from tests.unit.class_bench import ClassBench
from tests.unit.rules_bench import Machine

GIB = 1 << 30
CLASS = "cs231n"
GPUS = tuple(Device(f"GPU-{n:08x}-0000-4000-8000-000000000000", "H100 80GB", 80 * GIB, (9, 0), index=n)
             for n in range(4))  # fmt: skip
SLICED = SharingRules("class", Mode.SLICE, slices=6, mps=True, reserve_bytes=DRIVER_BYTES)
MACHINE = Machine(
    devices=GPUS,
    terms={GPUS[0].uuid: SLICED, GPUS[1].uuid: SLICED},
    tiers=[
        {"name": "cpu", "title": "CPU"},
        {"name": "slice", "title": "Slice of a GPU", "mode": "slice"},
        {"name": "gpu", "title": "One GPU", "devices": 1},
    ],
    quotas=[{"group": CLASS, "gpu_hours": 10, "period": "week", "session_hours": 4, "extend_hours": 2}],
)


UNKNOWN = f"{200:032x}"
"""The researcher's lease: the hub has renamed its user."""


class Now:
    """Clocks of the present; `ago` sets them back while the scene is set."""

    ago_seconds = 0.0

    def now(self) -> datetime:
        return datetime.now(UTC) - timedelta(seconds=self.ago_seconds)

    @property
    def wall(self) -> datetime:
        return self.now()

    @property
    def steady(self) -> Steady:
        return Steady("boot", time.monotonic() + 1e6 - self.ago_seconds)

    def make_ledger(self, where: Path) -> Ledger:
        return Ledger(f"sqlite:///{where}", clock=self.now, steady=lambda: self.steady)


async def set_scene(bench: ClassBench, times: Now) -> None:
    """Twelve run, four wait, two are stuck, and some had a server yesterday."""
    students = [f"student{number:02}" for number in range(1, 25)]
    for number, user in enumerate(students[20:22]):
        times.ago_seconds = 20 * 3600 - number * 3600
        lease_id = await bench.run(900 + number, user, CLASS, tier="slice")
        times.ago_seconds -= 2400
        await bench.ender.release(lease_id, "stopped")
    for number, user in enumerate(students[:12]):
        times.ago_seconds = (70 - 2 * number) * 60
        lease_id = await bench.run(number, user, CLASS, tier="slice")
        used = (2.1, 11.9, 5.4, 0.6, 8.8, 3.3, 12.6, 7.2, 4.0, 0.0, 9.9, 1.5)[number] * GIB
        bench.uses[lease_id] = Use(int(used), (41.0, 12.0, 0.0, 88.0)[number % 4])
    for number, user in enumerate(students[12:16]):
        times.ago_seconds = (24, 9, 6, 1)[number] * 60
        await bench.ask(100 + number, user, CLASS, tier="slice")
    times.ago_seconds = 15 * 60
    await bench.run(200, "researcher", "ml")
    times.ago_seconds = 0.0
    for minutes in (6, 3):
        bench.end_process(f"{1:032x}", students[1], minutes, quota_bytes=13 * GIB)
    await bench.broker.rules.drain(GPUS[3].uuid, "admin", "new fans on Friday")
    await plan(bench)


async def plan(bench: ClassBench) -> None:
    """A lab session now, one each week, and a date that is cancelled."""
    local = datetime.now(UTC).astimezone()
    today = local.date()
    monday = today - timedelta(days=today.weekday())
    base: dict[str, Any] = {"group": CLASS, "tier": "slice", "seats": 6, "timezone": "Europe/Berlin"}
    for name, weekday, begins, seconds in (("lab-a", 0, "10:00", 7200.0), ("lab-b", 2, "14:15", 5400.0)):
        first = monday - timedelta(days=7) + timedelta(days=weekday)
        session = {
            **base, "name": name, "first": first.isoformat(), "begins": begins, "length_seconds": seconds,
            "rule": "FREQ=WEEKLY",
        }  # fmt: skip
        if name == "lab-b":
            session["changes"] = [{
                "on": (monday + timedelta(days=2)).isoformat(), "length_seconds": seconds,
                "begins": f"{monday + timedelta(days=3)}T09:00",
            }]  # fmt: skip
        await bench.broker.rules.save_session(session, "ines", "timetable")
    exam = {**base, "name": "exam", "seats": 6, "first": (monday + timedelta(days=4)).isoformat(),
            "begins": "10:30", "length_seconds": 5400.0, "rule": "FREQ=WEEKLY",
            "exdates": [(monday + timedelta(days=4)).isoformat()]}  # fmt: skip
    await bench.broker.rules.save_session(exam, "ines", "timetable")


def admin_tools(bench: ClassBench) -> AdminTools:
    """The machine of the scene: one GPU is hot, one reported an XID."""
    now = bench.times.now()
    usage = {
        GPUS[0].uuid: Usage(41 * GIB, 93.0, None, 71.0, 612.0, 700.0),
        GPUS[1].uuid: Usage(18 * GIB, 35.0, None, 52.0, 301.0, 700.0),
        GPUS[2].uuid: Usage(64 * GIB, 100.0, None, 83.0, 698.0, 700.0),
        GPUS[3].uuid: Usage(1 << 29, 0.0, None, 34.0, 71.0, 700.0),
    }
    readings = Readings(usage, {GPUS[1].uuid: (XidSeen(now, 31), XidSeen(now, 43))})
    findings = (
        Line("problem", "Image gpuspawner/lab-torch:0.1.0", "it is not on this machine", "run `make images`"),
        Line("note", "Open files", "1024 are enough for 160 users who wait", "set LimitNOFILE=65536"),
        Line("ok", "Docker", "28.5.2, cgroup v2, CDI"),
    )

    async def ended(limit: int) -> tuple[EndedProcess, ...]:
        return tuple(bench.ended[:limit])

    return AdminTools(
        allocator=bench.broker.allocator,
        service=bench.ender,
        rules=bench.broker.rules,
        ledger=bench.broker.ledger,
        readings=lambda: readings,
        fault=lambda: "",
        ended=ended,
        disks=lambda: (Disk("homes and images", "/var/lib/docker", 412 * GIB, 1800 * GIB),),
        images=lambda: IMAGES,
        unknown=lambda: {UNKNOWN},
        checkup=Checkup(lambda: findings),
    )


IMAGES = (
    ImageDocument(image="gpuspawner/lab-base:0.1.0", here=True, size_bytes=1_900_000_000, pull=None),
    ImageDocument(
        image="gpuspawner/lab-torch:0.1.0", here=False, size_bytes=None,
        pull=PullMessage(
            image="gpuspawner/lab-torch:0.1.0", percent=62, waiting=3,
            message="Pulling image gpuspawner/lab-torch:0.1.0: 8 of 13 layers, 3261 of 5240 MB, 62 %",
        ),
    ),
)  # fmt: skip


def unknown_document(lease: Lease) -> dict[str, Any]:
    """The lease as the status document has it, with what the page of unknown servers shows."""
    return {
        "id": lease.id, "hub": lease.hub, "user": lease.user, "server": lease.server, "tier": lease.tier,
        "state": lease.state.value, "device_uuids": list(lease.device_uuids), "groups": list(lease.groups),
        "memory_bytes": lease.memory_bytes, "compute_percent": lease.compute_percent, "notice": "",
        "since": lease.since.strftime("%Y-%m-%dT%H:%M:%SZ"), "unknown_to_hub": True,
    }  # fmt: skip


def device_document(view: DeviceView) -> dict[str, Any]:
    """The device as the status document has it: what of it is held, and whether it is drained."""
    gpu, held = view.device, len(view.holders)
    total = view.terms.slices or 0
    slices = {"total_slices": total, "free_slices": total - held} if total else {}
    return {
        "uuid": gpu.uuid, "model": gpu.model, "index": gpu.index, "memory_bytes": gpu.memory_bytes,
        "node": "", "healthy": True, "reason": "", "simulated": False, "guarantee": "hard", "free": not held,
        "lease_id": view.holders[0].id if held else None, "user": None, "server": None,
        "drained": view.drain is not None, **slices,
    }  # fmt: skip


def place_document(entry: QueueEntry) -> dict[str, Any]:
    """The place as the status document has it."""
    lease = entry.lease
    return {
        "id": lease.id, "hub": lease.hub, "user": lease.user, "server": lease.server, "tier": lease.tier,
        "position": entry.position, "since": lease.created_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "groups": list(lease.groups),
    }  # fmt: skip


class Stage:
    """What the student's pages show here; the others change with the leases."""

    def __init__(self, bench: ClassBench) -> None:
        self._bench = bench

    def stamp(self) -> object:
        return self._bench.broker.allocator.snapshot()

    def status(self) -> dict[str, Any]:
        found = self._bench.broker.allocator.lease(UNKNOWN)
        leases = [] if found is None else [unknown_document(found)]
        snapshot = self._bench.broker.allocator.snapshot()
        return {
            "simulated": False, "fault": "", "devices": list(map(device_document, snapshot.devices)),
            "leases": leases, "queue": list(map(place_document, snapshot.queue)), "ended": [],
        }  # fmt: skip

    def tiers(self) -> dict[str, Any]:
        facts = (
            {"device_count": 0, "total": None},
            {"device_count": 1, "total": 12},
            {"device_count": 1, "total": 2},
        )
        tiers = [{**tier, **more} for tier, more in zip(MACHINE.tiers, facts, strict=True)]
        return {"simulated": False, "tiers": tiers}

    def metrics(self) -> bytes:
        return b""


async def main() -> None:
    times = Now()
    bench = ClassBench(Path(tempfile.mkdtemp()), times, MACHINE, HubApi(os.environ))
    bench.hub_stop = HubServers(os.environ["JUPYTERHUB_API_URL"])
    await bench.open()
    await set_scene(bench, times)
    broker = bench.broker
    routes = joined(
        public_rules(broker.site, broker.rules, broker.endings),
        class_routes(bench.tools),
        class_pages(Teaching(bench.classes, broker.rules)),
        admin_pages(admin_tools(bench)),
        unknown_pages(broker.rules.audit, lambda lease_id, author: bench.ender.release(lease_id, author)),
    )
    handlers: list[Any] = list(
        make_handlers(Stage(bench), os.environ["JUPYTERHUB_SERVICE_PREFIX"], hub="hub", more=routes)
    )
    where = urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"])
    Application(handlers, **make_settings()).listen(where.port or 80, where.hostname or "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
