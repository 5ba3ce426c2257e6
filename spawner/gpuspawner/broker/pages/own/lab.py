"""The numbers of "My GPU" for JupyterLab's status bar, written into the folder that a lab sees."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ....core.errors import Fault
from ....core.model import Lease
from ....core.paced import paced
from ....core.states import WITH_CONTAINER
from ...decide.snapshot import TurnView
from ...decide.when.deadline import Deadline
from ...observe.failures import LoopFailures
from ...observe.sampler import SAMPLE_SECONDS
from ...observe.use import NOTHING_KNOWN, Use
from ..meters import Meter, compute_meter, memory_meter

_AT_ONCE = 20
"""So many texts are made before the loop may do something else."""
KEEP_SECONDS = 60.0
"""After this time the file is written again, also unchanged: the lab takes an old file for an unknown use."""


@dataclass(frozen=True, slots=True)
class LabSources:
    """Where the numbers come from, all from memory: leases, use by lease id, ends, turns by lease id.

    `page_url` is the address of "My GPU" for a browser that shows a lab: a path, or with subdomains a URL.
    """

    leases: Callable[[], Iterable[Lease]]
    uses: Callable[[], Mapping[str, Use]]
    deadline_of: Callable[[str], Deadline | None]
    turns: Callable[[], Mapping[str, TurnView]]
    page_url: str
    simulated: bool


class LabReadings:
    """Writes what changed, one a broker, on its event loop. `write` takes texts by lease id, and returns what
    could not be written."""

    def __init__(
        self,
        sources: LabSources,
        write: Callable[[Mapping[str, str]], Awaitable[Mapping[str, Fault]]],
        failures: LoopFailures,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources, self._write, self._failures = sources, write, failures
        self._monotonic = monotonic
        self._written: dict[str, tuple[str, float]] = {}

    async def run(self) -> None:
        """A round as often as the use is sampled, until cancelled."""
        while True:
            try:
                await self.round()
                self._failures.over()
            except Exception as error:  # the top of this loop
                self._failures.failed("The use of GPUs can't be shown in JupyterLab; retrying", error)
            await asyncio.sleep(SAMPLE_SECONDS)

    async def round(self) -> None:
        """Writes the readings that differ from what a lab has.

        Raises a Fault if one can't be written; the others are.
        """
        now = self._monotonic()
        running = [
            lease for lease in self._sources.leases() if lease.state in WITH_CONTAINER and lease.device_uuids
        ]
        self._written = {lease.id: self._written[lease.id] for lease in running if lease.id in self._written}
        uses, turns = self._sources.uses(), self._sources.turns()
        news: dict[str, str] = {}
        async for lease in paced(running, _AT_ONCE):
            text = json.dumps(self._document(lease, uses.get(lease.id, NOTHING_KNOWN), turns.get(lease.id)))
            before, at = self._written.get(lease.id, ("", now))
            if text != before or now - at >= KEEP_SECONDS:
                news[lease.id] = text
        failed = await self._write(news) if news else {}
        self._written |= {key: (text, now) for key, text in news.items() if key not in failed}
        for fault in failed.values():
            raise fault

    def _document(self, lease: Lease, use: Use, turn: TurnView | None) -> dict[str, Any]:
        """`memory` and `compute` are in the words of the page's meters; `ends_at` is ISO 8601."""
        deadline = self._sources.deadline_of(lease.id)
        return {
            "memory": _words(memory_meter(use.memory_bytes, lease.memory_bytes, self._sources.simulated)),
            "compute": _words(compute_meter(use.busy_percent)),
            "turn": "" if turn is None else turn.turn.value,
            "ends_at": None if deadline is None else deadline.at.isoformat(),
            "simulated": self._sources.simulated,
            "page_url": self._sources.page_url,
        }


def _words(meter: Meter) -> dict[str, str]:
    return {"text": meter.text, "left": meter.left, "level": meter.level}
