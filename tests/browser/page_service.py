"""The GPU page with a status read from the file $PAGE_STATUS: started by the hub of `page_hub_config.py`.

What the buttons do is real: they ask the hub and write the audit log, in a ledger beside the file.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gpuspawner.broker.api.access import Viewer
from gpuspawner.broker.api.public.actions import Actions
from gpuspawner.broker.api.public.hub_servers import HubServers
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.leases.gate import QuotaGate
from gpuspawner.broker.leases.rule_service import RuleService
from gpuspawner.broker.leases.rulebook import Rulebook
from gpuspawner.broker.ledger import Ledger, Write
from gpuspawner.broker.observe.sampler import POINTS, Point
from gpuspawner.broker.pages.own.page import Records
from gpuspawner.broker.pages.routes import make_handlers, make_settings
from gpuspawner.config.quotas import Known
from gpuspawner.core.model import Lease, LeaseState, Tier
from gpuspawner.core.want import Want
from tornado.web import Application

STATUS = Path(os.environ["PAGE_STATUS"])
TIERS = (Tier("gpu", "One GPU", want=Want(1)), Tier("cpu", "CPU only"))


class FileView:
    """A broker that says what a file says."""

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(STATUS.read_text("utf-8"))
        return status

    def stamp(self) -> object:
        return STATUS.read_bytes()

    def tiers(self) -> dict[str, Any]:
        return {"simulated": True, "tiers": [{"name": "gpu", "title": "One GPU"}]}

    def metrics(self) -> bytes:
        return b""


class FileDesk:
    """Curves of a lease that computes for an hour; buttons that work."""

    def __init__(self, ledger: Ledger, actions: Actions) -> None:
        self.actions, self._ledger = actions, ledger

    def curve(self, lease_id: str) -> Sequence[Point]:
        return tuple(
            Point(int((4 + 2 * math.sin(step / 9)) * 2**30), 55 + 35 * math.sin(step / 4))
            for step in range(POINTS)
        )

    def extend_seconds(self, lease_id: str) -> float:
        return 0.0

    def why_not_extended(self, lease_id: str) -> str:
        return "Your quota doesn't let you extend it."

    def told(self) -> object:
        return ()

    async def records(self, viewer: Viewer) -> Records:
        return Records()

    def messages(self, viewer: Viewer) -> tuple[()]:
        return ()

    async def write(self, write_id: str) -> Write | None:
        return await self._ledger.audited_write(write_id)


def find(lease_id: str) -> Lease | None:
    """The lease of the file."""
    now = datetime.now(UTC)
    for each in FileView().status()["leases"]:
        if each["id"] == lease_id:
            return Lease(
                each["id"], each["hub"], each["user"], each["server"], each["tier"],
                LeaseState(each["state"]), Want(1), now, now, device_uuids=tuple(each["device_uuids"]),
            )  # fmt: skip
    return None


async def main() -> None:
    ledger = Ledger(f"sqlite:///{STATUS.with_name('ledger.sqlite')}")
    await ledger.open()
    rulebook = Rulebook(ledger, [], Known(TIERS))
    gate = QuotaGate(rulebook, ledger)
    rules = RuleService(rulebook, gate, Allocator(ledger, gate=gate), ledger)
    actions = Actions(rules, HubServers(os.environ["JUPYTERHUB_API_URL"]), find, TIERS)
    handlers = make_handlers(
        FileView(), os.environ["JUPYTERHUB_SERVICE_PREFIX"], desk=FileDesk(ledger, actions)
    )
    where = urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"])
    Application(handlers, **make_settings()).listen(where.port or 80, where.hostname or "127.0.0.1")
    await asyncio.Event().wait()


asyncio.run(main())
