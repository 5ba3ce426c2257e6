"""How much each user and group has used the GPUs; older use counts less. Pure.

Use is in GPU-seconds: a whole GPU for a second is 1, a slice or a MIG instance counts as the part of the GPU
that it is charged with. After one half-life, use counts half.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..place.placement import Room, Share

HALF_LIFE_SECONDS = 7 * 86400.0
"""Use of last week counts half as much as that of today."""
PREPAID_SECONDS = 3600.0
"""Each device that is held now counts as this much additional use: otherwise one account could get every GPU
that becomes free in the same minute, before its use has grown."""


_REBASE_EXPONENT = 300.0
"""e to this power is still far from the largest number; before that the accounts are rescaled."""


@dataclass(slots=True)
class Account:
    """What one user or group has used and holds.

    Use at a time t is `grown` e^(-(t - epoch) rate) + `held` / rate. What decays is one factor for all, so a
    thousand accounts are compared without a thousand powers.
    """

    grown: float = 0.0
    held: float = 0.0


_NONE = Account()


@dataclass(frozen=True, slots=True)
class Standings:
    """Decayed GPU-seconds of every user and group at one moment; `rate` is how fast they decay, by second."""

    users: Mapping[str, float]
    groups: Mapping[str, float]
    rate: float


class FairShare:
    """The accounts of users and groups. Times are seconds since 1970; going back counts as no time."""

    def __init__(self, half_life_seconds: float = HALF_LIFE_SECONDS) -> None:
        if half_life_seconds <= 0:
            raise ValueError(f"the half-life is {half_life_seconds} seconds, and must be more than 0")
        self._rate = math.log(2) / half_life_seconds
        self._users: dict[str, Account] = {}
        self._groups: dict[str, Account] = {}
        self._epoch: float | None = None
        self._latest = -math.inf

    @property
    def memory_seconds(self) -> float:
        """Use older than this counts less than a hundredth, and need not be read from the ledger."""
        return 7 * math.log(2) / self._rate

    def hold(self, user: str, group: str, devices: float, at_seconds: float) -> None:
        """From `at_seconds` on the user holds this many more devices; fewer if it is negative."""
        change = devices * self._grown(self._pass_time(at_seconds)) / self._rate
        for account in self._both(user, group):
            account.grown -= change
            held = account.held + devices
            account.held = held if abs(held) > 1e-9 else 0.0

    def add_past(
        self, user: str, group: str, devices: float, began_seconds: float, ended_seconds: float
    ) -> None:
        """The user held so many devices then, as the ledger has it."""
        self._pass_time(ended_seconds)
        began = min(began_seconds, ended_seconds)
        grown = devices * (self._grown(ended_seconds) - self._grown(began)) / self._rate
        for account in self._both(user, group):
            account.grown += grown

    def user_use(self, user: str, now_seconds: float) -> float:
        """Decayed GPU-seconds of the user."""
        return self._use(self._users.get(user, _NONE), self._left(now_seconds))

    def group_use(self, group: str, now_seconds: float) -> float:
        """Decayed GPU-seconds of the group."""
        return self._use(self._groups.get(group, _NONE), self._left(now_seconds))

    def standings(self, now_seconds: float) -> Standings:
        """What all have used, as it is now: a copy."""
        left = self._left(now_seconds)
        users, groups = (
            {name: self._use(account, left) for name, account in accounts.items()}
            for accounts in (self._users, self._groups)
        )
        return Standings(users, groups, self._rate)

    def user_standings(
        self, users: Sequence[str], now_seconds: float, more: Mapping[str, float]
    ) -> list[float]:
        """What users are ordered by: use, with what each holds, and `more` devices, counted as prepaid."""
        accounts, left, each_held = self._users, self._left(now_seconds), 1 / self._rate + PREPAID_SECONDS
        find = accounts.get
        standings = [(account := find(user, _NONE)).grown * left + account.held * each_held for user in users]
        if more:
            standings = [
                standing + more.get(user, 0.0) * PREPAID_SECONDS
                for user, standing in zip(users, standings, strict=True)
            ]
        return standings

    def group_standings(
        self, groups: Iterable[str], now_seconds: float, more: Mapping[str, float]
    ) -> list[tuple[float, float]]:
        """The same of groups, and how many devices each holds with the `more`."""
        find, left, rate, standings = self._groups.get, self._left(now_seconds), self._rate, []
        for group in groups:
            account = find(group, _NONE)
            held, use = account.held, account.grown * left + account.held / rate
            if more:
                held += more.get(group, 0.0)
            standings.append(((use if use > 0.0 else 0.0) + held * PREPAID_SECONDS, held))
        return standings

    def user_held(self, user: str) -> float:
        """Devices that the user holds now."""
        return self._users.get(user, _NONE).held

    def group_held(self, group: str) -> float:
        """Devices that the group holds now."""
        return self._groups.get(group, _NONE).held

    def _both(self, user: str, group: str) -> Iterable[Account]:
        yield self._users.setdefault(user, Account())
        yield self._groups.setdefault(group, Account())

    def _use(self, account: Account, left: float) -> float:
        return max(0.0, account.grown * left + account.held / self._rate)

    def _pass_time(self, at_seconds: float) -> float:
        """The time is `at_seconds` or, if that is earlier, what it was; returns it."""
        self._latest = max(self._latest, at_seconds)
        if self._epoch is None:
            self._epoch = self._latest
        passed = (self._latest - self._epoch) * self._rate
        if passed > _REBASE_EXPONENT:
            for account in (*self._users.values(), *self._groups.values()):
                account.grown *= math.exp(-passed)
            self._epoch = self._latest
        return self._latest

    def _grown(self, at_seconds: float) -> float:
        """By how much a second of use at that time counts more than one at the epoch."""
        return math.exp((at_seconds - (self._epoch or 0.0)) * self._rate)

    def _left(self, now_seconds: float) -> float:
        """The remaining weight of a second of use at the epoch."""
        if self._epoch is None:
            return 0.0
        return math.exp(-(max(now_seconds, self._latest) - self._epoch) * self._rate)


def part_of(share: Share, room: Room) -> float:
    """The part of a GPU that a share of this room is, from 0 to 1: what its use is counted with."""
    if share.in_turns or not room.terms.sliced:
        return room.device.gpu_fraction
    part = room.terms.gpu_fraction(room.device.memory_bytes, share.memory_bytes)
    return room.device.gpu_fraction * part


def parts_of(shares: Sequence[Share], rooms: Mapping[str, Room]) -> float:
    """The part of a GPU that the shares of one lease are together; in turns it uses one of them at a time."""
    parts = sum(part_of(share, rooms[share.device_uuid]) for share in shares)
    return parts / len(shares) if shares and shares[0].in_turns else parts
