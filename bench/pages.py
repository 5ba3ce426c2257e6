"""What open pages cost the broker: processor time and bytes at 100 viewers, 8 GPUs and 100 leases.

    python bench/pages.py [--viewers 100] [--seconds 60]

Each viewer has a slice and an open "My GPU" (server-sent events). What every lease uses changes every five
seconds, and one lease in ten seconds gets or loses a notice. The service runs in a process of its own, with
the broker's own allocator, ledger, status document and templates; only JupyterHub's answer about a login is
given by the benchmark. `polling` is the same with each page fetched every three seconds, as without events.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import os
import resource
import tempfile
import time
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
from gpuspawner.broker.api.answers import About, View
from gpuspawner.broker.api.public.actions import Actions
from gpuspawner.broker.api.public.hub_servers import HubServers
from gpuspawner.broker.decide.place.sharing_rules import SharingRules
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.leases.gate import QuotaGate
from gpuspawner.broker.leases.rule_service import RuleService
from gpuspawner.broker.leases.rulebook import Rulebook
from gpuspawner.broker.ledger import Ledger
from gpuspawner.broker.observe.metrics import Metrics
from gpuspawner.broker.observe.sampler import SAMPLE_SECONDS, Sampler
from gpuspawner.broker.observe.use import Use
from gpuspawner.broker.pages.own.desk import BrokerDesk
from gpuspawner.broker.pages.routes import make_handlers, make_settings
from gpuspawner.config.quotas import Known
from gpuspawner.core.model import Device, GpuRequest, Tier
from gpuspawner.core.want import Mode, Want
from gpuspawner.node.api import NodeFacts
from jupyterhub.services.auth import HubOAuth
from rich.console import Console
from rich.table import Table
from tornado.web import Application, RequestHandler

GIB = 1 << 30
PREFIX = "/services/gpu/"
SLICE = Want(1, mode=Mode.SLICE)
TIERS = (Tier("slice", "A slice", want=SLICE), Tier("cpu", "CPU only"))
ACCESS = "access:services!service=gpu"
NOTICE_SECONDS = 10.0
POLL_SECONDS = 3.0


class KnownLogins(HubOAuth):
    """Everybody is who their cookie says."""

    def get_user(self, handler: RequestHandler, *, sync: bool = True) -> Any:
        async def user() -> dict[str, Any]:
            name = handler.get_cookie("who", "nobody")
            return {
                "name": name,
                "kind": "user",
                "groups": [],
                "scopes": [ACCESS, f"delete:servers!user={name}"],
            }

        return user()


class Service:
    """The pages with a broker's allocator behind them."""

    def __init__(self, folder: Path, viewers: int) -> None:
        self.viewers = viewers
        self.ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite'}")
        self.uses: dict[str, Use] = {}
        self.sampler = Sampler(lambda: [self.uses])

    async def open(self) -> None:
        """Everybody's lease is running."""
        await self.ledger.open()
        known = Known(TIERS)
        rulebook = Rulebook(self.ledger, [], known)
        gate = QuotaGate(rulebook, self.ledger)
        self.allocator = Allocator(self.ledger, gate=gate)
        devices = [Device(f"GPU-{number:08x}", "H100 80GB", 80 * GIB, index=number) for number in range(8)]
        rules = SharingRules("class", Mode.SLICE, slices=13, mps=True)
        await self.allocator.load(devices, {device.uuid: rules for device in devices})
        self.rules = RuleService(rulebook, gate, self.allocator, self.ledger)
        for number in range(self.viewers):
            lease_id = f"{number:032x}"
            await self.allocator.acquire(GpuRequest(lease_id, "hub", f"user-{number}", "", "slice", SLICE))
            await self.allocator.set_running(lease_id, f"{number:064x}")

    def listen(self, port: int) -> None:
        """Serves the pages."""
        about = About(
            TIERS,
            False,
            Metrics(),
            dict,
            dict,
            tuple,
            lambda: NodeFacts("bench"),
            lambda: self.sampler.latest,
        )
        actions = Actions(self.rules, HubServers("http://127.0.0.1:9"), self.allocator.lease, TIERS)
        desk = BrokerDesk(self.rules, self.ledger, self.sampler, actions)
        auth = KnownLogins(
            api_url="http://127.0.0.1:9/hub/api", api_token="t", base_url=PREFIX, hub_prefix="/hub/",
            oauth_client_id="service-gpu", access_scopes={ACCESS},
        )  # fmt: skip
        handlers: list[Any] = list(
            make_handlers(View(self.allocator, about), PREFIX, hub_auth=auth, hub="hub", desk=desk)
        )
        Application(handlers, **make_settings()).listen(port, "127.0.0.1")

    async def live(self) -> None:
        """What changes in a class: everybody's use, and now and then a notice."""
        for second in itertools.count():
            if second % SAMPLE_SECONDS == 0:
                self.uses = {
                    f"{number:032x}": Use(
                        (1 + (second + number) % 5) * GIB, float((second + 7 * number) % 100)
                    )
                    for number in range(self.viewers)
                }
                await self.sampler.sample()
            if second % NOTICE_SECONDS == 0:
                lease_id = f"{second % self.viewers:032x}"
                await self.allocator.tell(lease_id, "" if second % 20 else "Save your work.")
            await asyncio.sleep(1)


async def serve(folder: Path, viewers: int, port: int, pipe: Connection) -> None:
    """The service; answers each message with the processor seconds that it has used."""
    service = Service(folder, viewers)
    await service.open()
    service.listen(port)
    living = asyncio.create_task(service.live())
    pipe.send("ready")
    while await asyncio.to_thread(pipe.recv) != "end":
        used = resource.getrusage(resource.RUSAGE_SELF)
        pipe.send(used.ru_utime + used.ru_stime)
    living.cancel()


def run_service(folder: Path, viewers: int, port: int, pipe: Connection) -> None:
    """In a process of its own."""
    os.environ["JUPYTERHUB_SERVICE_NAME"] = "gpu"
    asyncio.run(serve(folder, viewers, port, pipe))


async def read_events(session: aiohttp.ClientSession, url: str, count: list[int]) -> None:
    """One page that stays open."""
    while True:
        async with session.get(f"{url}events") as answer:
            assert answer.status == 200, answer.status
            async for chunk in answer.content.iter_any():
                count[0] += len(chunk)


async def read_by_polling(session: aiohttp.ClientSession, url: str, count: list[int]) -> None:
    """One page without events."""
    etag = ""
    while True:
        async with session.get(f"{url}live", headers={"If-None-Match": etag} if etag else {}) as answer:
            assert answer.status in (200, 304), answer.status
            etag = answer.headers.get("Etag", etag)
            count[0] += len(await answer.read())
        await asyncio.sleep(POLL_SECONDS)


async def measure(
    read: Any, viewers: int, seconds: float, port: int, pipe: Connection
) -> tuple[float, float]:
    """Per cent of a core, and kB a second for each viewer."""
    count = [0]
    async with asyncio.TaskGroup() as group, aiohttp.TCPConnector(limit=0) as connector:
        tasks, sessions = [], []
        for number in range(viewers):
            session = aiohttp.ClientSession(
                cookies={"who": f"user-{number}"}, connector=connector, connector_owner=False,
                timeout=aiohttp.ClientTimeout(total=None),
            )  # fmt: skip
            sessions.append(session)
            tasks.append(group.create_task(read(session, f"http://127.0.0.1:{port}{PREFIX}", count)))
        await asyncio.sleep(5 if viewers else 1)  # the first state of each page is not what is measured
        before, bytes_before, began = processor_seconds(pipe), count[0], time.perf_counter()
        await asyncio.sleep(seconds)
        passed = time.perf_counter() - began
        used, sent = processor_seconds(pipe) - before, count[0] - bytes_before
        for task in tasks:
            task.cancel()
        for session in sessions:
            await session.close()
    return 100 * used / passed, sent / passed / max(1, viewers) / 1000


def processor_seconds(pipe: Connection) -> float:
    """Of the service's process, up to now."""
    pipe.send("used")
    return float(pipe.recv())


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--viewers", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--port", type=int, default=18790)
    given = parser.parse_args()
    table = Table(
        "load", "% of a core", "kB/s a viewer", title=f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores"
    )
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=run_service, args=(Path(folder), given.viewers, given.port, theirs)
        )
        process.start()
        assert ours.recv() == "ready"
        loads = (("nobody looks", read_events, 0), ("events", read_events, given.viewers),
                 ("polling", read_by_polling, given.viewers))  # fmt: skip
        for name, read, viewers in loads:
            percent, kilobytes = asyncio.run(measure(read, viewers, given.seconds, given.port, ours))
            table.add_row(f"{name}, {viewers} viewers", f"{percent:.2f}", f"{kilobytes:.2f}")
        ours.send("end")
        process.join()
    Console().print(table)


if __name__ == "__main__":
    main()
