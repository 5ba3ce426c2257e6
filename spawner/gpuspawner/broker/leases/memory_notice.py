"""Tells a lease's user that the lab's memory was full; removes the notice after some minutes.

Docker's event `oom` says it, with the container's labels (seen on Engine 20.10 with cgroups 1). A lab without
a GPU has no lease: there the notebook looks at its control group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ...core.model import Lease
from ...core.units import format_bytes
from ..decide.place.notice import is_withdrawal

_ADVICE = "Restart the kernel and load less at a time, or close notebooks that you don't need."
SHOWN_SECONDS = 900.0
"""The notice stays this long, so that a user who was away can still read the reason."""


def sentence(limit_bytes: int | None) -> str:
    """The message to the user. The memory was full, so the used amount is the limit."""
    size = "" if limit_bytes is None else f" {format_bytes(limit_bytes)} of {format_bytes(limit_bytes)}"
    used = f"used{size} of memory" if size else "had no memory left"
    return (
        f"A program of your server, most likely a notebook's kernel, was ended: the server {used}. {_ADVICE}"
    )


def is_memory_notice(notice: str) -> bool:
    """Whether the notice comes from `sentence`."""
    return notice.endswith(_ADVICE)


class MemoryNotices:
    """Gives and removes the notice. `find` returns a lease by its id, `tell` gives its user a notice."""

    def __init__(
        self,
        find: Callable[[str], Lease | None],
        tell: Callable[[str, str], Awaitable[None]],
        shown_seconds: float = SHOWN_SECONDS,
    ) -> None:
        self._find = find
        self._tell = tell
        self._shown_seconds = shown_seconds
        self._times: dict[str, int] = {}

    async def show(self, lease_id: str, limit_bytes: int | None) -> None:
        """Tells the user; returns when the notice is removed. A notice about a lost GPU has precedence."""
        lease = self._find(lease_id)
        if lease is None or is_withdrawal(lease.notice):
            return
        text = sentence(limit_bytes)
        turn = self._times[lease_id] = self._times.get(lease_id, 0) + 1
        try:
            await self._tell(lease_id, text)
            await asyncio.sleep(self._shown_seconds)
            lease = self._find(lease_id)
            if turn == self._times.get(lease_id) and lease is not None and lease.notice == text:
                await self._tell(lease_id, "")
        finally:
            if turn == self._times.get(lease_id):
                del self._times[lease_id]
