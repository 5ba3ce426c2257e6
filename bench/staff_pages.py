"""How soon "My GPU" and the pages of staff answer with 1,000 GPUs, 4,000 servers and 1,000 that wait.

    .venv/bin/python bench/staff_pages.py

Real handlers, allocator and SQLite ledger in this process; the hub's answers come from memory. Prints for
each page its size, and of `ROUNDS` requests the first, the median by the clock and by CPU time of server and
client together (other programs don't count there), and the slowest, in milliseconds. The goal is 200 ms. The
two lines above the table are what the broker makes before its port opens; here the first request of a page
makes its own templates.
"""

from __future__ import annotations

import asyncio
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gpuspawner.broker.api.answers import About, View  # noqa: E402
from gpuspawner.broker.api.public.rules import joined  # noqa: E402
from gpuspawner.broker.decide.place.sharing_rules import SharingRules  # noqa: E402
from gpuspawner.broker.ledger import EndedProcess  # noqa: E402
from gpuspawner.broker.observe.checkup import Checkup  # noqa: E402
from gpuspawner.broker.observe.metrics import Metrics  # noqa: E402
from gpuspawner.broker.pages.admin.base import AdminTools  # noqa: E402
from gpuspawner.broker.pages.admin.handlers import admin_pages  # noqa: E402
from gpuspawner.broker.pages.admin.map import Readings  # noqa: E402
from gpuspawner.broker.pages.classes.base import Teaching  # noqa: E402
from gpuspawner.broker.pages.classes.handlers import class_pages  # noqa: E402
from gpuspawner.broker.pages.look import Look  # noqa: E402
from gpuspawner.broker.pages.routes import make_handlers  # noqa: E402
from gpuspawner.core.model import Device, Lease, LeaseState  # noqa: E402
from gpuspawner.core.want import Mode, Want  # noqa: E402
from gpuspawner.node.api import NodeFacts, Usage  # noqa: E402
from jupyterhub.services.auth import HubOAuth  # noqa: E402

_tests = importlib.import_module
"""The helpers of the tests, which are typed less strictly than this folder."""
serving: Any = _tests("tests.unit.broker.test_pages_handlers").serving
ClassBench: Any = _tests("tests.unit.class_bench").ClassBench
Times: Any = _tests("tests.unit.conftest").Times
Machine: Any = _tests("tests.unit.rules_bench").Machine

ROUNDS = 15
GPUS, SLICED, SLICES, WAITING, CLASS = 1000, 500, 7, 1000, 300
GIB = 1 << 30
PAGES = (
    "", "admin/", "admin/?sort=temperature&descending=1&page=7", "admin/servers/",
    "admin/servers/?search=user4&sort=user", "admin/timeline/?page=20", "admin/log/", "classes/students/",
    "classes/students/sessions/",
)  # fmt: skip


def machine() -> Any:
    """Half of the GPUs whole, half in seven slices."""
    gpus = tuple(Device(f"GPU-{n:08d}", "H100 80GB", 80 * GIB, index=n) for n in range(GPUS))
    rules = SharingRules("class", Mode.SLICE, slices=SLICES)
    tiers = [{"name": "cpu"}, {"name": "slice", "mode": "slice"}, {"name": "gpu", "devices": 1}]
    return Machine(
        gpus, {gpu.uuid: rules for gpu in gpus[:SLICED]}, tiers, [{"group": "students", "devices": 1}]
    )


def leases(gpus: tuple[Device, ...], now: datetime) -> list[Lease]:
    """Every GPU is held; a thousand wait."""
    held = [(gpu.uuid, "slice") for gpu in gpus[:SLICED] for _ in range(SLICES)]
    held += [(gpu.uuid, "gpu") for gpu in gpus[SLICED:]]
    found = []
    for number in range(len(held) + WAITING):
        uuid, tier = held[number] if number < len(held) else ("", "gpu")
        since = now - timedelta(seconds=60 + number)
        found.append(
            Lease(
                id=f"{number:032x}", hub="hub", user=f"user{number}", server="", tier=tier,
                state=LeaseState.RUNNING if uuid else LeaseState.WAITING,
                want=Want(1, mode=Mode.SLICE) if tier == "slice" else Want(1),
                created_at=since, since=since, device_uuids=(uuid,) if uuid else (),
                memory_bytes=0 if not uuid else 11 * GIB if tier == "slice" else 80 * GIB,
                container_id=f"c{number}" if uuid else None,
                groups=("students",) if number < CLASS else ("others",),
            )
        )  # fmt: skip
    return found


class LargeSite:
    """The pages of a large site: real rules, allocator and ledger; `usage` is what NVML would read."""

    def __init__(self, folder: Path) -> None:
        self.times: Any = Times()
        self.times.wall = datetime.now(UTC)
        self._machine = machine()
        self.bench: Any = ClassBench(folder, self.times, self._machine)
        self.bench.hub.groups["students"] = [f"user{number}" for number in range(CLASS)]
        self.usage = {
            gpu.uuid: Usage(30 * GIB, 60.0, None, 61.0, 400.0, 700.0) for gpu in self._machine.devices
        }

    async def open(self) -> None:
        """Everybody has a server, or waits for one."""
        await self.bench.open()
        now = self.times.now()
        await self.bench.broker.ledger.save(*leases(self._machine.devices, now), at=now)
        await self.bench.broker.allocator.load(self._machine.devices, self._machine.terms, place=False)

    async def close(self) -> None:
        """Ends what `open` began."""
        await self.bench.close()

    def view(self) -> View:
        """The broker's documents."""
        tiers, facts = self.bench.broker.rules.rulebook.known.tiers, NodeFacts("here")
        about = About(tiers, False, Metrics(), dict, lambda: dict(self.usage), tuple, lambda: facts)
        return View(self.bench.broker.allocator, about)

    def routes(self) -> Any:
        """Those of the pages of staff."""

        async def ended(limit: int) -> tuple[EndedProcess, ...]:
            return ()

        tools = AdminTools(
            allocator=self.bench.broker.allocator, service=self.bench.ender, rules=self.bench.broker.rules,
            ledger=self.bench.broker.ledger, readings=lambda: Readings(self.usage), fault=lambda: "",
            ended=ended, disks=tuple, unknown=tuple, checkup=Checkup(tuple), clock=self.times.now,
        )  # fmt: skip
        teaching = Teaching(self.bench.classes, self.bench.broker.rules, clock=self.times.now)
        return joined(class_pages(teaching), admin_pages(tools))

    def handlers(self, prefix: str, auth: HubOAuth) -> list[Any]:
        """All pages below `prefix`, for whom `auth` lets in."""
        return list(make_handlers(self.view(), prefix, hub_auth=auth, hub="hub", more=self.routes()))


def processor_ms(work: Callable[[], object]) -> float:
    """Milliseconds of CPU time that it takes."""
    began = time.process_time()
    work()
    return 1000 * (time.process_time() - began)


async def main() -> None:
    """Prints the table."""
    site = LargeSite(Path(tempfile.mkdtemp()))
    await site.open()
    view = site.view()
    first, again = processor_ms(view.status), processor_ms(view.status)
    print(f"documents of all leases: {first:.0f} ms of CPU the first time, then {again:.0f} ms")
    print(f"programs of all templates: {processor_ms(Look().compile):.0f} ms of CPU, once")
    async with serving(site.routes(), None, view) as pages:
        print(f"{'page':48} {'kB':>6} {'first ms':>9} {'median ms':>10} {'CPU ms':>7} {'slowest ms':>11}")
        for path in PAGES:
            took, worked, size = [], [], 0
            for _ in range(ROUNDS):
                began, cpu = time.perf_counter(), time.process_time()
                status, _, text = await pages.get(path, "noether-token")
                took.append(1000 * (time.perf_counter() - began))
                worked.append(1000 * (time.process_time() - cpu))
                assert status == 200, text[-500:]
                size = len(text.encode())
            medians = f"{statistics.median(took):10.0f} {statistics.median(worked):7.0f}"
            print(f"{path:48} {size / 1000:6.0f} {took[0]:9.0f} {medians} {max(took):11.0f}")
    await site.close()


if __name__ == "__main__":
    asyncio.run(main())
