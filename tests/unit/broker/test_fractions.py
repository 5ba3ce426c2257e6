"""The part of a GPU that a lease is charged with: by mode, by pool, and never more than there is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from gpuspawner.broker.decide.place.sharing_rules import DRIVER_BYTES, SharingRules
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.ledger import Ledger
from gpuspawner.core.errors import LeaseConflict, LedgerFault
from gpuspawner.core.model import Device, GpuRequest, Lease, LeaseState
from gpuspawner.core.want import Mode, Want
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.lease_examples import NOON
from tests.unit.share_walk import MemoryLedger

GIB = 1 << 30
GPU = Device("GPU-0", "H100 80GB", 80 * GIB, index=0, node="box")
OTHER = Device("GPU-1", "H100 80GB", 80 * GIB, index=1, node="box")
MIG = Device("MIG-0", "H100 MIG", 40 * GIB, mig_profile="3g.40gb", gpu_fraction=0.5, node="box")
EIGHTHS = SharingRules("class", Mode.SLICE, slices=8, mps=True, reserve_bytes=DRIVER_BYTES)
SIZES = SharingRules("sizes", Mode.SLICE, sizes_bytes=(10 * GIB, 20 * GIB, 40 * GIB))


@pytest.mark.parametrize(
    ("want", "fractions"),
    [
        (Want(2), (1.0, 1.0)),
        (Want(1, mode=Mode.MIG), (0.5,)),
        (Want(1, mode=Mode.SLICE, pool="class"), (1 / 8,)),
        (Want(1, mode=Mode.SLICE, pool="class", memory_bytes=GIB), (1 / 8,)),  # it takes one of eight places
        (Want(1, mode=Mode.SLICE, pool="sizes", memory_bytes=20 * GIB), (1 / 4,)),
        (Want(1, mode=Mode.SLICE, pool="sizes", memory_bytes=10 * GIB), (1 / 8,)),
    ],
)
async def test_what_a_lease_is_charged_with(
    ledger: Ledger, times: Any, want: Want, fractions: tuple[float, ...]
) -> None:
    sliced = Device("GPU-2", "H100 80GB", 80 * GIB, index=2, node="box")
    sized = Device("GPU-3", "H100 80GB", 80 * GIB, index=3, node="box")
    rules = {"GPU-2": EIGHTHS, "GPU-3": SIZES, "MIG-0": SharingRules("mig", Mode.MIG)}
    allocator = Allocator(ledger, clock=times.now)
    await allocator.load([GPU, OTHER, sliced, sized, MIG], rules)
    lease = await allocator.acquire(GpuRequest("a" * 32, "hub", "ada", "", "t", want, ("class", "2026")))
    assert (lease.device_fractions, lease.node, lease.groups) == (fractions, "box", ("class", "2026"))
    assert lease.gpu_fraction == sum(fractions)
    await allocator.set_running(lease.id, "c1")
    times.pass_seconds(1000)
    assert await ledger.gpu_seconds("ada", NOON) == 1000 * sum(fractions)
    assert await ledger.find(lease.id) == allocator.lease(lease.id)


async def test_a_full_device_of_equal_slices_is_one_gpu(ledger: Ledger, times: Any) -> None:
    for count in range(1, 17):
        rules = SharingRules("class", Mode.SLICE, slices=count, mps=True, reserve_bytes=DRIVER_BYTES)
        assert rules.gpu_fraction(GPU.memory_bytes, rules.largest_bytes(GPU.memory_bytes)) == 1 / count


@given(
    slices=st.none() | st.integers(1, 16),
    wants=st.lists(st.sampled_from([1, 3, 10, 20, 40, 79]), min_size=1, max_size=20),
)
def test_the_parts_of_a_device_never_add_up_to_more_than_it(slices: int | None, wants: list[int]) -> None:
    sizes = () if slices else (1 * GIB, 3 * GIB, 10 * GIB, 20 * GIB, 40 * GIB, 79 * GIB)
    rules = SharingRules("p", Mode.SLICE, slices, sizes, reserve_bytes=DRIVER_BYTES)

    async def check() -> None:
        allocator = Allocator(MemoryLedger(), clock=lambda: NOON)  # type: ignore[arg-type]
        await allocator.load([GPU], {"GPU-0": rules})
        for number, size in enumerate(wants):
            want = Want(1, mode=Mode.SLICE, memory_bytes=size * GIB)
            if rules.slice_of(GPU.memory_bytes, size * GIB, None) is not None:
                await allocator.acquire(GpuRequest(f"{number:032x}", "hub", f"u{number}", "", "t", want))
        held = [lease for lease in allocator.leases() if lease.device_uuids]
        assert all(0 < lease.gpu_fraction <= 1 for lease in held)
        assert sum(lease.gpu_fraction for lease in held) <= 1 + 1e-9

    asyncio.run(check())


async def test_a_lease_whose_device_is_missing_gets_its_part_when_it_is_found(
    ledger: Ledger, times: Any
) -> None:
    """As after an upgrade with a GPU that can be read only later."""
    lease = Lease(
        "a" * 32, "hub", "ada", "", "t", LeaseState.RUNNING, Want(1, mode=Mode.SLICE), NOON, NOON,
        device_uuids=("GPU-0",), memory_bytes=9 * GIB, container_id="c1",
    )  # fmt: skip
    await ledger.save(lease, at=times.now())
    allocator = Allocator(ledger, clock=times.now)
    await allocator.load([OTHER])
    (held,) = allocator.leases()
    assert (held.device_fractions, held.gpu_fraction) == ((), 1.0)
    times.pass_seconds(80)
    await allocator.add([GPU], {"GPU-0": EIGHTHS})
    (held,) = allocator.leases()
    assert (held.device_fractions, held.node) == ((1 / 8,), "box")
    assert await ledger.gpu_seconds("ada", NOON) == 10.0
    await allocator.begin_release("a" * 32, "stopped")
    await allocator.close("a" * 32)  # what is given back is what was held


# The new commits, each with a fault before it and with an answer that was lost.


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_start_of_placing_whose_commit_fails_is_made_again(
    path: Any, times: Any, faulty_ledger: Any, fault: str
) -> None:
    ledger = times.make_ledger(path, kind=faulty_ledger)
    await ledger.open()
    allocator = Allocator(ledger, clock=times.now)
    await allocator.load([GPU], place=False)
    lease = await allocator.acquire(GpuRequest("a" * 32, "hub", "ada", "", "t", Want(1)))
    assert lease.state is LeaseState.WAITING
    ledger.fault = fault
    with pytest.raises(LedgerFault):
        await allocator.start_placing()
    assert (allocator.placing, allocator.leases()) == (False, (lease,))
    await allocator.start_placing()
    (placed,) = allocator.leases()
    assert (placed.state, placed.device_uuids) == (LeaseState.RESERVED, ("GPU-0",))
    assert await ledger.living() == (placed,)
    await ledger.close()


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_a_charge_whose_commit_fails_is_made_again_and_counts_once(
    path: Any, times: Any, faulty_ledger: Any, fault: str
) -> None:
    running = Lease(
        "a" * 32, "hub", "ada", "", "t", LeaseState.RUNNING, Want(1), NOON, NOON,
        device_uuids=("GPU-0",), memory_bytes=80 * GIB, container_id="c1",
    )  # fmt: skip
    first = times.make_ledger(path)
    await first.open()
    await first.save(running, at=times.now())
    await first.close()
    times.reboot(600)
    ledger = times.make_ledger(path, kind=faulty_ledger)
    await ledger.open()
    allocator = Allocator(ledger, clock=times.now)
    await allocator.load([GPU], place=False)
    started_at = times.now()
    times.pass_seconds(30)
    ledger.fault = fault
    with pytest.raises(LedgerFault):
        await allocator.charge("a" * 32, started_at)
    times.pass_seconds(30)
    await allocator.charge("a" * 32, started_at)
    await allocator.charge("a" * 32, times.now())
    assert await ledger.gpu_seconds("ada", NOON) == 60.0
    await ledger.close()


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_a_take_over_whose_commit_fails_leaves_the_lease_somebodys(
    path: Any, times: Any, faulty_ledger: Any, fault: str
) -> None:
    one = times.make_ledger(path, owner="one")
    await one.open()
    running = Lease(
        "a" * 32, "hub", "ada", "", "t", LeaseState.RUNNING, Want(1), NOON, NOON,
        device_uuids=("GPU-0",), memory_bytes=80 * GIB, container_id="c1",
    )  # fmt: skip
    await one.save(running, at=times.now())
    await one.close()
    ledger = times.make_ledger(path, kind=faulty_ledger, owner="other")
    await ledger.open()
    allocator = Allocator(ledger, clock=times.now)
    await allocator.load([GPU], place=False)
    ledger.fault = fault
    with pytest.raises(LedgerFault):
        await allocator.adopt(running)
    adopted = await allocator.adopt(running)
    assert (allocator.leases(), await ledger.living()) == ((adopted,), (adopted,))
    with pytest.raises(LeaseConflict):
        await allocator.adopt(running)
    times.pass_seconds(10)
    assert await ledger.gpu_seconds("ada", NOON) == 10.0
    await ledger.close()
