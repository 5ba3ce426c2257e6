"""The processes that the guard ended: the latest in memory for the pages, all in the ledger."""

from __future__ import annotations

import logging
from collections import deque
from typing import Protocol

from ...core.errors import LedgerFault
from ...core.model import Lease
from ...node.api import GuardEvent
from ..ledger import EndedProcess

SHOWN = 50
"""How many of the latest are shown."""
_MOST_PENDING = 1000


class Records(Protocol):
    """The part of the ledger that the journal needs."""

    async def record(self, *items: EndedProcess) -> None:
        """Stores them. Raises LedgerFault."""
        ...

    async def ended(self, limit: int = 100) -> tuple[EndedProcess, ...]:
        """The latest records, newest first. Raises LedgerFault."""
        ...


class Journal:
    """One a broker, on its event loop."""

    def __init__(self, records: Records, log: logging.Logger) -> None:
        self._records = records
        self._log = log
        self._recent: deque[EndedProcess] = deque(maxlen=SHOWN)
        self._pending: deque[EndedProcess] = deque(maxlen=_MOST_PENDING)

    async def load(self) -> None:
        """Loads the records of earlier brokers. Raises LedgerFault."""
        self._recent.extend(await self._records.ended(SHOWN))

    def recent(self) -> tuple[EndedProcess, ...]:
        """The latest records, newest first."""
        return tuple(self._recent)

    async def add(self, item: EndedProcess) -> None:
        """Adds a record and writes it to the ledger; if that fails, it is written with the next one."""
        self._recent.appendleft(item)
        self._pending.append(item)
        writing = tuple(self._pending)
        self._pending.clear()
        try:
            await self._records.record(*writing)
        except LedgerFault as fault:
            self._pending.extendleft(reversed(writing))
            self._log.warning("An ended process could not be recorded yet, retrying: %s", fault)


def is_of(event: GuardEvent, lease: Lease) -> bool:
    """Whether the process was of the lease's container."""
    if event.lease_id is not None:
        return lease.id == event.lease_id
    return lease.container_id == event.container_id


def record_of(event: GuardEvent, lease: Lease | None) -> EndedProcess:
    """The record of an event; `lease` is the container's, None if it has ended."""
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
        groups=() if lease is None else lease.groups,
    )
