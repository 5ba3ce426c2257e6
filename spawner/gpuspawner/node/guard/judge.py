"""Decides who is over a quota, for how long, and which process must end. Pure.

A container's memory on a device is the sum over its processes. The time over quota
grows while the container is over, and shrinks slowly while it is not, so that bursts add up. When it
reaches the grace time, the processes end that grew most since the container was last within its quota, as
many as needed. Processes that may not use the device are counted in the same way, so that short ones add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from ..processes import Process

Key = tuple[int, int]
"""Pid and start time: they identify a process even if its pid is reused."""


class Offence(StrEnum):
    """Why a process must end."""

    MEMORY = "memory"
    NO_LEASE = "no_lease"
    BYPASSED_MPS = "bypassed_mps"


@dataclass(frozen=True, slots=True)
class Quota:
    """What the container of a lease may use of one device.

    `memory_bytes` None: the hardware enforces it, so the guard ignores the memory that NVML reports.
    """

    lease_id: str
    container_id: str
    device_uuid: str
    memory_bytes: int | None
    mps_required: bool = False


@dataclass(frozen=True, slots=True)
class ProcessSample:
    """A process on the device. `container_id`: its container; None if unknown."""

    process: Process
    container_id: str | None
    memory_bytes: int | None
    through_mps: bool | None = None

    @property
    def key(self) -> Key:
        """Identifies the process."""
        return self.process.pid, self.process.start_ticks


@dataclass(frozen=True, slots=True)
class Rules:
    """The guard's tolerances. The defaults enforce a quota within about three seconds.

    `tolerance_bytes`: NVML counts pages and includes the driver's memory for a context, so a
    process that MPS stopped at its limit may be slightly over the quota. `hard_factor`: from this
    multiple of the quota on, two samples in a row are enough, without grace: it affects neighbours at once.
    `repay`: seconds within the quota pay back this part of a second over it, so bursts of more than
    one twentieth of the time end too. `settle_seconds`: how long an ended process may take to give
    its memory back before it counts again.
    """

    grace_seconds: float = 2.0
    tolerance_bytes: int = 64 << 20
    hard_factor: float = 1.5
    repay: float = 0.05
    settle_seconds: float = 5.0
    longest_step_seconds: float = 2.0


_RULES = Rules()


@dataclass(frozen=True, slots=True)
class Account:
    """A container's time over its quota on the device."""

    over_seconds: float = 0.0
    is_over: bool = False
    is_hard: bool = False


@dataclass(frozen=True, slots=True)
class Wrong:
    """A container's time with offending processes, and the offending processes of the last sample."""

    seconds: float = 0.0
    keys: frozenset[Key] = frozenset()


@dataclass(frozen=True, slots=True)
class History:
    """The state from earlier samples of a device. `at` is None if the time before can't be counted."""

    at: float | None = None
    accounts: Mapping[str, Account] = field(default_factory=lambda: MappingProxyType({}))
    within: Mapping[Key, int] = field(default_factory=lambda: MappingProxyType({}))
    """Each process's memory when its container was last within its quota."""
    wrong: Mapping[tuple[str, Offence], Wrong] = field(default_factory=lambda: MappingProxyType({}))
    """By container and offence."""
    ending: Mapping[Key, float] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Verdict:
    """A process that must end. `used_bytes` is the container's on the device; `quota` None: no lease."""

    seen: ProcessSample
    offence: Offence
    quota: Quota | None
    used_bytes: int
    over_seconds: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """`alert`: somebody is over quota, so check again soon."""

    verdicts: tuple[Verdict, ...]
    history: History
    alert: bool


@dataclass(frozen=True, slots=True)
class QuotaPlan:
    """The quotas that the guard enforces; the broker always replaces the whole plan.

    `containers` are those of this broker's leases on any device: only their processes are ended.
    """

    quotas: tuple[Quota, ...] = ()
    containers: frozenset[str] = frozenset()
    device_uuids: frozenset[str] = frozenset()
    """The devices to watch; those of the quotas are watched in any case."""

    def watched(self) -> frozenset[str]:
        """Every device to watch."""
        return self.device_uuids | {quota.device_uuid for quota in self.quotas}

    def ours(self) -> frozenset[str]:
        """Every container whose processes may be ended."""
        return self.containers | {quota.container_id for quota in self.quotas}

    def on(self, device_uuid: str) -> QuotaPlan:
        """The plan for one device: its quotas, and every container of ours."""
        quotas = tuple(quota for quota in self.quotas if quota.device_uuid == device_uuid)
        return QuotaPlan(quotas, self.ours(), frozenset({device_uuid}))


def judge(
    samples: Iterable[ProcessSample], plan: QuotaPlan, history: History, now: float, rules: Rules = _RULES
) -> Judgement:
    """The verdicts on one device at `now` (monotonic seconds), and what to remember.

    `plan` is the part for the device (`QuotaPlan.on`). A container of ours without a quota there may not
    use it. Processes of other containers and of the host are ignored.
    """
    present = tuple(samples)
    keys = {seen.key for seen in present}
    ending = {
        key: since
        for key, since in history.ending.items()
        if key in keys and now - since < rules.settle_seconds
    }
    evaluation = _Evaluation(history, now, rules, ending)
    held = {quota.container_id: quota for quota in plan.quotas}
    by_container: dict[str, list[ProcessSample]] = {container: [] for container in (*held, *plan.ours())}
    for seen in present:
        if seen.container_id in by_container and seen.key not in ending:
            by_container[seen.container_id].append(seen)
    for container, processes in by_container.items():
        if container in held:
            evaluation.with_quota(held[container], processes)
        else:
            evaluation.without_lease(container, processes)
    return evaluation.judgement()


class _Evaluation:
    """One evaluation of a device's samples: gathers the verdicts and the next history."""

    def __init__(self, history: History, now: float, rules: Rules, ending: dict[Key, float]) -> None:
        self._history, self._now, self._rules, self._ending = history, now, rules, ending
        step = 0.0 if history.at is None else now - history.at
        self._step = min(max(step, 0.0), rules.longest_step_seconds)
        self._accounts: dict[str, Account] = {}
        self._within: dict[Key, int] = {}
        self._wrong: dict[tuple[str, Offence], Wrong] = {}
        self._verdicts: dict[Key, Verdict] = {}

    def judgement(self) -> Judgement:
        """The result."""
        alert = any(account.is_over for account in self._accounts.values()) or any(
            wrong.keys for wrong in self._wrong.values()
        )
        history = History(self._now, self._accounts, self._within, self._wrong, self._ending)
        return Judgement(tuple(self._verdicts.values()), history, alert)

    def without_lease(self, container: str, processes: list[ProcessSample]) -> None:
        """Processes of a container of ours that has no lease for this device."""
        self._wrongs(container, Offence.NO_LEASE, None, processes, _used(processes))

    def with_quota(self, quota: Quota, processes: list[ProcessSample]) -> None:
        """Processes of a container with a quota on this device."""
        bypassed_mps = [seen for seen in processes if quota.mps_required and seen.through_mps is False]
        self._wrongs(quota.container_id, Offence.BYPASSED_MPS, quota, bypassed_mps, _used(processes))
        if quota.memory_bytes is not None:
            left = [seen for seen in processes if seen.key not in self._verdicts]
            self._memory(quota, quota.memory_bytes, left)

    def _memory(self, quota: Quota, quota_bytes: int, processes: list[ProcessSample]) -> None:
        rules, used = self._rules, _used(processes)
        before = self._history.accounts.get(quota.container_id, Account())
        change = self._step if before.is_over else -self._step * rules.repay
        seconds = max(0.0, before.over_seconds + change)
        most = quota_bytes + rules.tolerance_bytes
        far = max(most, quota_bytes * rules.hard_factor)
        is_over, is_hard = used > most, used > far
        allowed: float = used
        if is_over and seconds >= rules.grace_seconds:
            allowed = most
        elif is_hard and before.is_hard:
            allowed = far
        rest = used
        for worst in sorted(processes, key=self._growth, reverse=True) if used > allowed else ():
            if rest > allowed and worst.memory_bytes:
                self._end(Verdict(worst, Offence.MEMORY, quota, rest, seconds))
                rest -= worst.memory_bytes
        ended = rest < used and rest <= most
        self._accounts[quota.container_id] = Account() if ended else Account(seconds, is_over, is_hard)
        for seen in processes:
            if not is_over:
                self._within[seen.key] = seen.memory_bytes or 0
            elif seen.key in self._history.within:
                self._within[seen.key] = self._history.within[seen.key]

    def _growth(self, seen: ProcessSample) -> tuple[int, int, int, int]:
        """Sort key: growth, then size, then the younger process, which was probably just started."""
        memory_bytes = seen.memory_bytes or 0
        grown = memory_bytes - self._history.within.get(seen.key, 0)
        return (grown, memory_bytes, seen.process.start_ticks, seen.process.pid)

    def _wrongs(
        self, container: str, offence: Offence, quota: Quota | None, wrong: list[ProcessSample], used: int
    ) -> None:
        """A process must offend in two samples in a row: NVML's lists are read one after the other."""
        before = self._history.wrong.get((container, offence))
        if before is None and not wrong:
            return
        before = before or Wrong()
        change = self._step if before.keys else -self._step * self._rules.repay
        seconds = max(0.0, before.seconds + change)
        for seen in wrong:
            known = seen.key in before.keys and self._history.at is not None
            if known and seconds >= self._rules.grace_seconds:
                self._end(Verdict(seen, offence, quota, used, seconds))
        keys = frozenset(seen.key for seen in wrong) - self._verdicts.keys()
        if keys or seconds:
            kept = min(seconds, self._rules.grace_seconds)
            self._wrong[container, offence] = Wrong(kept, keys)

    def _end(self, verdict: Verdict) -> None:
        self._verdicts[verdict.seen.key] = verdict
        self._ending[verdict.seen.key] = self._now


def _used(processes: Iterable[ProcessSample]) -> int:
    return sum(seen.memory_bytes or 0 for seen in processes)
