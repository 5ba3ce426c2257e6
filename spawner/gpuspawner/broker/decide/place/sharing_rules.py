"""A pool's rules for its devices: how much of one a lease gets. Pure.

Memory is strict: the shares of a device never add up to more than it has. Compute in a slice pool is
an upper limit of each lease, not a reserved part: by default the limits add up to twice the device, so
that some leases may use what others leave idle (measured: 3.14 times time-slicing at 15 with 25 % each).
"""

from __future__ import annotations

from dataclasses import dataclass

from ....config.pools import MOST_SLICES
from ....core.hashed import HashedOnce
from ....core.model import Guarantee, Mode, Pool, guarantee_of

DRIVER_BYTES = 768 << 20
"""Of a GPU that is shared: what the driver and MPS keep (H100 80GB, driver 580: 0.47 GiB that CUDA doesn't
see, 0.07 GiB of the MPS server). Slices of all the memory would not all get theirs. Of a simulated one too:
what is tried there shall fit the real one."""
TURN_RESERVE_BYTES = 3 << 30
"""Of a GPU in turns: what the driver keeps, and room for programs that begin while others have their memory
there (0.6 GiB a context; without it a newcomer gets CUDA's out of memory; measured on H100, driver 580)."""
OVERSUBSCRIBED_PERCENT = 200.0
"""The sum of the compute limits of a device's slices, unless the pool sets another."""
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class SharingRules(HashedOnce):
    """How the devices of one pool are shared.

    `lends_whole`: its MIG instances also serve tiers in mode whole. `mps` False: compute is not limited.
    `seats`: how many leases a pool of turns admits, on all its devices together. `labels` are those of the
    machine, which tiers may ask for.
    """

    pool: str = "whole"
    mode: Mode = Mode.WHOLE
    slices: int | None = None
    sizes_bytes: tuple[int, ...] = ()
    compute_percent: float | None = None
    mps: bool = False
    reserve_bytes: int = 0
    lends_whole: bool = False
    seats: int | None = None
    labels: frozenset[str] = frozenset()

    __hash__ = HashedOnce.__hash__

    @property
    def sliced(self) -> bool:
        """Whether a device may have several leases at once."""
        return self.mode is Mode.SLICE

    @property
    def in_turns(self) -> bool:
        """Whether its leases use the devices one after the other."""
        return self.mode is Mode.TURNS

    @property
    def most_leases(self) -> int | None:
        """How many leases a device may have at once; None where only its memory decides."""
        if self.in_turns:
            return self.seats
        if not self.sliced:
            return 1
        return self.slices or (MOST_SLICES if self.mps else None)

    def serves(self, mode: Mode) -> bool:
        """Whether devices of this pool go to requests in `mode`."""
        return mode is self.mode or (self.lends_whole and mode is Mode.WHOLE)

    def usable_bytes(self, memory_bytes: int) -> int:
        """What leases may have together of a device with `memory_bytes`."""
        return max(0, memory_bytes - self.reserve_bytes)

    def largest_bytes(self, memory_bytes: int) -> int:
        """The largest slice of such a device, in whole MiB as MPS takes it; 0 where not even one fits."""
        usable = self.usable_bytes(memory_bytes)
        if self.slices is not None:
            return usable // self.slices // _MIB * _MIB
        return max((size for size in self.sizes_bytes if size <= usable), default=0)

    def largest_percent(self, memory_bytes: int) -> float:
        """The compute limit of the largest slice, which the MPS daemon enforces for everybody."""
        return self._percent(self.largest_bytes(memory_bytes), memory_bytes)

    def slice_of(
        self, memory_bytes: int, wanted_bytes: int | None, wanted_percent: float | None
    ) -> tuple[int, float] | None:
        """Memory and compute ceiling of a slice of such a device; None where that is not available.

        Nothing wanted is the largest slice.
        """
        largest = self.largest_bytes(memory_bytes)
        size = largest if wanted_bytes is None else wanted_bytes
        if not 0 < size <= largest or (self.sizes_bytes and size not in self.sizes_bytes):
            return None
        if not self.mps:
            return (size, 100.0) if wanted_percent is None else None
        percent = self._percent(size, memory_bytes) if wanted_percent is None else wanted_percent
        return (size, percent) if percent <= self.largest_percent(memory_bytes) else None

    def promise(self, memory_bytes: int, wanted_bytes: int | None) -> int | None:
        """What who is awake on such a device may have of it; None where it is too small."""
        usable = self.usable_bytes(memory_bytes)
        size = usable if wanted_bytes is None else wanted_bytes
        return size if 0 < size <= usable else None

    def gpu_fraction(self, memory_bytes: int, held_bytes: int) -> float:
        """The part (0-1) of a device with `memory_bytes` that a slice of `held_bytes` is charged with.

        Its part of what slices may have together; in a pool of n equal slices at least 1/n, as nobody else
        can have its place.
        """
        part = held_bytes / max(1, self.usable_bytes(memory_bytes))
        return min(1.0, max(part, 1 / self.slices if self.slices else 0.0))

    def _percent(self, size_bytes: int, memory_bytes: int) -> float:
        """min(100, 200/n), n being how many of that size fit; a whole number, as MPS takes it."""
        if not self.mps:
            return 100.0
        if self.compute_percent is not None:
            return self.compute_percent
        if self.slices is not None:
            part = OVERSUBSCRIBED_PERCENT / self.slices
        else:
            part = OVERSUBSCRIBED_PERCENT * size_bytes / max(1, self.usable_bytes(memory_bytes))
        return min(100.0, max(1.0, float(int(part))))


WHOLE = SharingRules()


def worth_compute(mode: Mode, mps: bool, simulated: bool) -> Guarantee:
    """The guarantee of a share's compute: none in a slice pool without MPS."""
    if mode is Mode.SLICE and not mps:
        return Guarantee.NONE
    return guarantee_of(mode, simulated)


def rules_of(pool: Pool, *, mps: bool) -> SharingRules:
    """The sharing rules of a configured pool on this host."""
    sliced = pool.mode is Mode.SLICE
    reserve = {Mode.SLICE: DRIVER_BYTES, Mode.TURNS: TURN_RESERVE_BYTES}
    return SharingRules(
        pool=pool.name,
        mode=pool.mode,
        slices=pool.slices,
        sizes_bytes=pool.sizes_bytes,
        compute_percent=pool.compute_percent,
        mps=sliced and mps,
        reserve_bytes=reserve.get(pool.mode, 0),
        seats=None if pool.turns is None else pool.turns.seats,
    )
