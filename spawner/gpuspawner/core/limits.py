"""What a lab may use of the machine besides its GPU: memory, shared memory, processes, CPU. Pure.

Docker enforces these limits; this file only computes them. Sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from .labels import HOME_SIZE
from .units import format_bytes

GIB = 1 << 30
LEAST_RESERVE_BYTES = 2 * GIB
LEAST_SHM_BYTES = 64 << 20
"""Docker's default size of /dev/shm, and our minimum."""
CORES_PER_SEAT = 2


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine that Docker runs on, as `docker info` describes it; None for what it doesn't say."""

    memory_bytes: int | None = None
    cores: int | None = None
    log_driver: str = ""
    raises_limits: bool = True
    """Whether Docker may give processes higher limits than its own (of locked memory, open files)."""


@dataclass(frozen=True, slots=True)
class LabRules:
    """What every lab gets, from the settings of `c.GpuLab`; a tier's own values take precedence."""

    limit_memory: bool = True
    reserve_bytes: int | None = None
    """Memory reserved for the host; None: a tenth of the memory, at least 2 GiB."""
    seats: int = 0
    """How many labs share the machine; 0: one for each two cores."""
    shm_bytes: int | None = None
    """None: half of the lab's memory."""
    pids: int = 4096
    cpu_shares: int = 256
    log_size_bytes: int = 10 << 20
    log_files: int = 3
    past_lease: frozenset[str] = frozenset()
    home: str = ""
    home_size_bytes: int | None = None
    """The size of a new home; None: no limit."""
    home_options: tuple[tuple[str, str], ...] = (("size", "{size}"),)
    """How the volume driver is told the size."""
    private: tuple[str, ...] = ()
    """Folders of the host that no lab may mount: the broker's state."""

    def volume_of_home(self, home: str) -> dict[str, dict[str, str]]:
        """With what docker-py creates this home, so that its size is limited; empty without a limit."""
        if self.home_size_bytes is None:
            return {}
        size = str(self.home_size_bytes)
        options = {
            key: text.replace("{size}", size).replace("{home}", home) for key, text in self.home_options
        }
        return {"driver_opts": options, "labels": {HOME_SIZE: size}}


@dataclass(frozen=True, slots=True)
class ConfiguredLimits:
    """The limits configured for one lab; None where none is configured."""

    memory_bytes: int | None = None
    cpu_cores: float | None = None
    shm_bytes: int | None = None
    pids: int | None = None
    cpu_shares: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that Docker gets for one lab. None: no limit. `shm_bytes` is part of `memory_bytes`."""

    memory_bytes: int | None = None
    cpu_cores: float | None = None
    shm_bytes: int | None = None
    pids: int | None = None
    cpu_shares: int | None = None

    @property
    def threads(self) -> int | None:
        """How many threads a numeric library should start; None where the CPU has no limit."""
        return None if self.cpu_cores is None else max(1, int(self.cpu_cores))

    def sentence(self) -> str:
        """The limits for people: "8.0 GiB of memory, up to 4.0 GiB of it in /dev/shm; 4096 processes"."""
        memory = (
            "no memory limit" if self.memory_bytes is None else f"{format_bytes(self.memory_bytes)} of memory"
        )
        of_it = "" if self.memory_bytes is None else " of it"
        shm = "" if self.shm_bytes is None else f", up to {format_bytes(self.shm_bytes)}{of_it} in /dev/shm"
        parts = [f"{memory}{shm}"]
        if self.cpu_cores is not None:
            parts.append(f"{self.cpu_cores:g} core{'' if self.cpu_cores == 1 else 's'}")
        if self.pids is not None:
            parts.append(f"{self.pids} processes")
        return "; ".join(parts)


def reserve(rules: LabRules, memory_bytes: int) -> int:
    """Memory reserved for the host; half of the memory if the setting would leave nothing for labs."""
    wanted = rules.reserve_bytes
    if wanted is None:
        wanted = max(LEAST_RESERVE_BYTES, memory_bytes // 10)
    return min(wanted, memory_bytes // 2)


def seats(rules: LabRules, machine: Machine) -> int:
    """How many labs share the machine."""
    return rules.seats or max(1, (machine.cores or 1) // CORES_PER_SEAT)


def default_memory(rules: LabRules, machine: Machine) -> int | None:
    """The memory limit of a lab for which none is configured; None where labs have none by default.

    If one lab for each seat uses all of its memory, the host still has its reserve.
    """
    if not rules.limit_memory or machine.memory_bytes is None:
        return None
    left = machine.memory_bytes - reserve(rules, machine.memory_bytes)
    return left // seats(rules, machine)


def limits_of(configured: ConfiguredLimits, rules: LabRules, machine: Machine) -> Limits:
    """The limits of a lab: what is configured for it, else the defaults of `rules` on this machine."""
    memory = configured.memory_bytes or default_memory(rules, machine)
    shm = configured.shm_bytes or rules.shm_bytes
    if shm is None:
        shm = _default_shm(memory, rules, machine)
    return Limits(
        memory_bytes=memory,
        cpu_cores=configured.cpu_cores,
        shm_bytes=shm,
        pids=configured.pids or rules.pids,
        cpu_shares=configured.cpu_shares or rules.cpu_shares,
    )


def _default_shm(memory: int | None, rules: LabRules, machine: Machine) -> int | None:
    if memory is not None:
        return max(memory // 2, LEAST_SHM_BYTES)
    if machine.memory_bytes is None:
        return None
    return max(machine.memory_bytes // 2 // seats(rules, machine), LEAST_SHM_BYTES)


def default_sentence(rules: LabRules, machine: Machine) -> str:
    """Explains to the admin how the default memory limit is computed."""
    memory = default_memory(rules, machine)
    if memory is None or machine.memory_bytes is None:
        return "a lab without its own mem_limit may use all memory of the machine, also the hub's"
    places = seats(rules, machine)
    whole, kept = machine.memory_bytes, reserve(rules, machine.memory_bytes)
    return (
        f"a lab without its own mem_limit gets {format_bytes(memory)}: {format_bytes(whole)} less "
        f"{format_bytes(kept)} for the host, shared among {places} seat{'' if places == 1 else 's'}"
    )
