"""What the guard did: the latest in memory for the pages, all of it in the ledger."""

from __future__ import annotations

import logging
from collections import deque
from typing import Protocol

from ...core.errors import LedgerFault
from ...core.model import Lease
from ...node.api import GuardEvent
from ..ledger import EndedProcess

SHOWN = 50
"""So many of the latest are shown."""
_MOST_PENDING = 1000


class Records(Protocol):
    """The ledger, as far as this goes."""

    async def record(self, *items: EndedProcess) -> None:
        """Keeps them. Raises LedgerFault."""
        ...

    async def ended(self, limit: int = 100) -> tuple[EndedProcess, ...]:
        """The latest, youngest first. Raises LedgerFault."""
        ...


class Journal:
    """One a broker, on its event loop."""

    def __init__(self, records: Records, log: logging.Logger) -> None:
        self._records = records
        self._log = log
        self._recent: deque[EndedProcess] = deque(maxlen=SHOWN)
        self._pending: deque[EndedProcess] = deque(maxlen=_MOST_PENDING)

    async def load(self) -> None:
        """What former brokers did. Raises LedgerFault."""
        self._recent.extend(await self._records.ended(SHOWN))

    def recent(self) -> tuple[EndedProcess, ...]:
        """The latest, youngest first."""
        return tuple(self._recent)

    async def add(self, item: EndedProcess) -> None:
        """Shown from now on, and in the ledger; what can't be written now is written with the next."""
        self._recent.appendleft(item)
        self._pending.append(item)
        writing = tuple(self._pending)
        self._pending.clear()
        try:
            await self._records.record(*writing)
        except LedgerFault as fault:
            self._pending.extendleft(reversed(writing))
            self._log.warning("An ended process could not be recorded yet, it is tried again: %s", fault)


def is_of(event: GuardEvent, lease: Lease) -> bool:
    """Whether the process was of the lease's container."""
    if event.lease_id is not None:
        return lease.id == event.lease_id
    return lease.container_id == event.container_id


def record_of(event: GuardEvent, lease: Lease | None) -> EndedProcess:
    """What is kept of it; `lease` is the container's, None if that has ended."""
    return EndedProcess(
        at=event.at,
        offence=event.offence.value,
        lease_id=event.lease_id if lease is None else lease.id,
        hub="" if lease is None else lease.hub,
        user="" if lease is None else lease.user,
        server="" if lease is None else lease.server,
        container_id=event.container_id,
        device_uuid=event.device_uuid,
        pid=event.pid,
        name=event.name,
        used_bytes=event.used_bytes,
        quota_bytes=event.quota_bytes,
        over_seconds=event.over_seconds,
        sentence=event.sentence,
    )
