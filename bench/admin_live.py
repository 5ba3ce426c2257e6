"""What an open page of staff takes while a large site changes: 1,000 GPUs, 4,000 servers, 1,000 that wait.

    .venv/bin/python bench/admin_live.py [--seconds 60] [--every 1] [admin/ …]

Chromium shows the page, with the script as it is; a server ends and the next begins every `--every`
seconds, and the readings of all GPUs change with it. Counted is what the browser receives after the page has
been there for ten seconds: events and what the script fetches. The service runs in a process of its own; its
processor time is printed, too, with the cost of the changes themselves. Only the hub's answer about the login
is given by the benchmark. The goal is less than 50 kB/s a viewer.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import resource
import shutil
import tempfile
import time
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from gpuspawner.broker.pages.look import HUB_STATIC_DIR
from gpuspawner.broker.pages.routes import make_settings
from gpuspawner.node.api import Usage
from jupyterhub.services.auth import HubOAuth
from pages import ACCESS, GIB, PREFIX, KnownLogins
from playwright.sync_api import CDPSession, sync_playwright
from staff_pages import LargeSite
from tornado.web import Application, RequestHandler, StaticFileHandler

PAGES = ("admin/", "admin/servers/", "admin/timeline/", "admin/log/", "classes/students/", "")
SETTLED_SECONDS = 10.0


class AdminsLogin(KnownLogins):
    """Everybody is the admin."""

    def get_user(self, handler: RequestHandler, *, sync: bool = True) -> Any:
        async def user() -> dict[str, Any]:
            return {"name": "noether", "kind": "user", "groups": [], "scopes": [ACCESS, "custom:gpu:admin"]}

        return user()


def login() -> HubOAuth:
    """The login of the service."""
    return AdminsLogin(
        api_url="http://127.0.0.1:9/hub/api", api_token="t", base_url=PREFIX, hub_prefix="/hub/",
        oauth_client_id="service-gpu", access_scopes={ACCESS},
    )  # fmt: skip


async def change(site: LargeSite, every: float) -> None:
    """Somebody leaves and the next gets their place; every GPU is a little warmer or colder."""
    numbers = random.Random(1)
    allocator = site.bench.broker.allocator
    while True:
        await asyncio.sleep(every)
        running = [lease for lease in allocator.leases() if lease.device_uuids]
        lease = numbers.choice(running)
        await allocator.begin_release(lease.id, "stopped")
        await allocator.close(lease.id)
        for number, each in enumerate(allocator.leases()):
            if each.device_uuids and each.state.value == "reserved":
                await allocator.set_running(each.id, f"d{number}")
        site.usage |= {
            uuid: Usage(numbers.randrange(80) * GIB, numbers.uniform(0, 100), None, 60.0, 400.0, 700.0)
            for uuid in site.usage
        }


async def serve(port: int, every: float, pipe: Connection) -> None:
    """The service; answers each message with the processor seconds that it has used."""
    site = LargeSite(Path(tempfile.mkdtemp()))
    await site.open()
    static = (r"/hub/static/(.*)", StaticFileHandler, {"path": str(HUB_STATIC_DIR)})
    handlers: list[Any] = [static, *site.handlers(PREFIX, login())]
    Application(handlers, **make_settings()).listen(port, "127.0.0.1")
    changing = asyncio.create_task(change(site, every))
    pipe.send("ready")
    while await asyncio.to_thread(pipe.recv) != "end":
        used = resource.getrusage(resource.RUSAGE_SELF)
        pipe.send(used.ru_utime + used.ru_stime)
        if changing.done():
            changing.result()
    changing.cancel()
    await site.close()


def run_service(port: int, every: float, pipe: Connection) -> None:
    """In a process of its own."""
    os.environ["JUPYTERHUB_SERVICE_NAME"] = "gpu"
    asyncio.run(serve(port, every, pipe))


def processor_seconds(pipe: Connection) -> float:
    """Of the service's process, up to now."""
    pipe.send("used")
    return float(pipe.recv())


class Received:
    """Counts the bytes of answers that a page gets, as the browser's own network panel does."""

    def __init__(self, session: CDPSession) -> None:
        self.bytes = 0
        session.on("Network.dataReceived", self._add)
        session.send("Network.enable")

    def _add(self, event: dict[str, Any]) -> None:
        self.bytes += int(event["dataLength"])


def measure(page: Any, received: Received, seconds: float, pipe: Connection) -> tuple[float, float]:
    """kB a second, and per cent of a core of the service's process."""
    page.wait_for_timeout(1000 * SETTLED_SECONDS)
    before, used, began = received.bytes, processor_seconds(pipe), time.perf_counter()
    page.wait_for_timeout(1000 * seconds)
    passed = time.perf_counter() - began
    percent = 100 * (processor_seconds(pipe) - used) / passed
    return (received.bytes - before) / passed / 1000, percent


def main() -> None:
    """Prints a line a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two changes")
    parser.add_argument("--port", type=int, default=18791)
    parser.add_argument("pages", nargs="*", default=PAGES, help="addresses below the service")
    given = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=run_service, args=(given.port, given.every, theirs)
    )
    process.start()
    assert ours.recv() == "ready"
    load = os.getloadavg()[0]
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, load {load:.1f}")
    print(f"{'page':24} {'kB/s':>6} {'% of a core, service':>22}")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for path in given.pages:
            context = browser.new_context()
            page = context.new_page()
            received = Received(context.new_cdp_session(page))
            page.goto(f"http://127.0.0.1:{given.port}{PREFIX}{path}")
            kilobytes, percent = measure(page, received, given.seconds, ours)
            print(f"{path or 'My GPU':24} {kilobytes:6.1f} {percent:22.1f}", flush=True)
            context.close()
        browser.close()
    ours.send("end")
    process.join()


if __name__ == "__main__":
    main()
