"""What users and groups have used, as it grows in one possible future. Pure."""

from __future__ import annotations

import math

from .fairshare import Standings
from .queue import Waiting


class Use:
    """What users and groups have used, as it grows in this future; everything 0 without fair share.

    A session's whole use counts from its begin. Use decays: here what comes later weighs more instead, which
    gives the same order.
    """

    def __init__(self, standings: Standings | None, now_seconds: float) -> None:
        self._fair = standings
        self._now = now_seconds
        self._users: dict[str, float] = {}
        self._groups: dict[str, float] = {}
        self._held: dict[str, float] = {}

    def hold(self, group: str, devices: float) -> None:
        """The group holds so many more devices."""
        self._held[group] = self._held.get(group, 0.0) + devices

    def end(self, group: str, devices: float) -> None:
        """The group holds so many fewer devices."""
        self._held[group] = self._held.get(group, 0.0) - devices

    def grow(self, user: str, group: str, gpu_seconds: float, at: float) -> None:
        """A session that uses so much begins."""
        if self._fair is not None:
            weighs = gpu_seconds * math.exp((at - self._now) * self._fair.rate)
            self._users[user] = self._users.get(user, 0.0) + weighs
            self._groups[group] = self._groups.get(group, 0.0) + weighs

    def of_user(self, user: str) -> float:
        """What the user is ordered by."""
        return 0.0 if self._fair is None else self._fair.users.get(user, 0.0) + self._users.get(user, 0.0)

    def of_group(self, group: str, member: Waiting) -> tuple[float, float]:
        """What the group is ordered by: whether it has what it is guaranteed, and its use by its weight."""
        if self._fair is None:
            return (0.0, 0.0)
        use = self._fair.groups.get(group, 0.0) + self._groups.get(group, 0.0)
        return float(self._held.get(group, 0.0) >= member.claim.guaranteed_devices), use / member.claim.weight
