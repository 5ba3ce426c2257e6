"""What a lease's states add up to for the metrics: its wait, and its GPU-seconds by group."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from ...core.model import Lease, LeaseState
from ...core.states import AWAKE

NO_GROUP = "(no group)"
"""Users without a group, as in the reports."""

Add = Callable[[str, float], None]
"""Adds seconds to what has this label."""


class LeaseTimes:
    """`waited(tier, seconds)` is called when a lease gets its devices, `used(group, gpu_seconds)` at each
    change of a lease and at each `settle`, for what was used since the last call.

    A user in several groups counts in each of them. The seconds are those of `steady`, so that setting the
    clock charges nothing. The ledger's reports are exact; these numbers begin when the broker starts.
    """

    def __init__(self, waited: Add, used: Add, steady: Callable[[], float] = time.monotonic) -> None:
        self._waited, self._used, self._steady = waited, used, steady
        self._states: dict[str, LeaseState] = {}
        self._awake: dict[str, tuple[Lease, float]] = {}

    def adopt(self, leases: Iterable[Lease]) -> None:
        """The leases at the start of the broker: what they waited before was counted then."""
        for lease in leases:
            self._states[lease.id] = lease.state
            self._follow(lease)

    def on_lease(self, lease: Lease) -> None:
        """A lease was committed."""
        before = self._states.get(lease.id)
        if lease.state is LeaseState.CLOSED:
            self._states.pop(lease.id, None)
        else:
            self._states[lease.id] = lease.state
        if lease.state is LeaseState.RESERVED and before in (None, LeaseState.WAITING):
            self._waited(lease.tier, max(0.0, (lease.since - lease.created_at).total_seconds()))
        self._follow(lease)

    def settle(self) -> None:
        """Adds what the awake leases have used up to now."""
        for lease, _ in tuple(self._awake.values()):
            self._follow(lease)

    def _follow(self, lease: Lease) -> None:
        now = self._steady()
        before = self._awake.pop(lease.id, None)
        if before is not None:
            earlier, since = before
            for group in earlier.groups or (NO_GROUP,):
                self._used(group, earlier.gpu_fraction * (now - since))
        if lease.state in AWAKE:
            self._awake[lease.id] = lease, now
