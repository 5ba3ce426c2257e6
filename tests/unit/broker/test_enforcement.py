"""What the node does for the leases: MPS daemons, compute modes and quotas, through restarts and deaths."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from gpuspawner.broker.decide.place.sharing_rules import SharingRules
from gpuspawner.broker.ledger import EndedProcess
from gpuspawner.core.errors import DeviceFault
from gpuspawner.core.model import ContainerPatch, DeviceHealth, Mode
from gpuspawner.node.guard.guard import GuardEvent
from gpuspawner.node.guard.judge import Offence, Quota, QuotaPlan
from gpuspawner.node.inventory import ComputeMode
from gpuspawner.node.mps.daemon import BACK, DIED

from tests.unit.share_walk import MemoryLedger
from tests.unit.slice_machine import GIB, NEEDS_ROOT, NOW, SLICED, A, B, C, Machine, machine_in, until

pytestmark = NEEDS_ROOT


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    """Three GPUs, two of them for slices."""
    async with machine_in(tmp_path) as machine:
        yield machine


def counted(machine: Machine, name: str, **labels: str) -> float | None:
    return machine.metrics.registry.get_sample_value(f"gpuspawner_{name}_total", labels)


async def test_a_daemon_starts_with_the_first_slice_and_has_the_largest_s_limits(machine: Machine) -> None:
    broker = await machine.broker()
    assert (machine.pid(A), machine.pid(B)) == (None, None)
    lease = await machine.lease(running=False)
    assert lease.device_uuids == (A,)
    await broker.prepare(lease)
    first = machine.pid(A)
    assert first is not None
    assert machine.pid(B) is None
    assert machine.commands() == [
        "set_default_active_thread_percentage 25",
        "set_default_device_pinned_mem_limit 0 10240M",
    ]
    mount = {
        "source": str(machine.place().pipe),
        "target": "/run/gpuspawner-mps",
        "type": "bind",
        "read_only": True,
    }
    patch = ContainerPatch(env={"A": "b"}, mounts=({"source": "/x"},))
    env = {"A": "b", "CUDA_MPS_PIPE_DIRECTORY": "/run/gpuspawner-mps"}
    assert broker.patch(lease, patch) == ContainerPatch(env=env, mounts=({"source": "/x"}, mount))
    small = await machine.lease(memory_bytes=4 * GIB, compute_percent=10.0, pool="class")
    small = replace(small, device_uuids=(A,))
    await broker.prepare(small)
    assert machine.pid(A) == first
    assert broker.patch(small, ContainerPatch()).env == {
        "CUDA_MPS_PIPE_DIRECTORY": "/run/gpuspawner-mps",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "10",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=4096M",
    }


async def test_whole_leases_and_slices_without_mps_need_nothing(machine: Machine) -> None:
    broker = await machine.broker(
        {A: SharingRules("plain", Mode.SLICE, slices=8), B: SharingRules(), C: SharingRules()}
    )
    for lease in (await machine.lease(), await machine.lease(mode=Mode.WHOLE)):
        await broker.prepare(lease)
        assert broker.patch(lease, ContainerPatch(env={"A": "b"})) == ContainerPatch(env={"A": "b"})
    assert not (machine.folder / "mps").exists()


async def test_a_daemon_outlives_the_broker_and_the_next_one_watches_it(machine: Machine) -> None:
    broker = await machine.broker()
    first, second = await machine.lease(), await machine.lease()
    assert (first.device_uuids, second.device_uuids) == ((A,), (B,))
    for lease in (first, second):
        await broker.prepare(lease)
    before = machine.pid(A)
    await machine.close(second)
    await machine.end()
    assert (machine.pid(A), machine.pid(B)) == (before, machine.pid(B))
    # B leaves the pool, A goes on; its death is noticed although another broker started it.
    await machine.broker({A: SLICED, B: SharingRules(), C: SharingRules()})
    assert machine.pid(A) == before
    await until(lambda: machine.pid(B) is None)
    assert "quit" in machine.commands(B)
    await machine.node.settle(A)
    os.kill(before or 0, signal.SIGKILL)
    await until(lambda: (first.id, BACK) in machine.holders.told)


async def test_a_lease_from_a_containers_labels_has_its_daemon_looked_after(machine: Machine) -> None:
    """The ledger was lost: nobody asked this broker to prepare anything."""
    broker = await machine.broker()
    lease = await machine.lease()
    await broker.prepare(lease)
    before = machine.pid(A)
    machine.ledger = MemoryLedger()
    await machine.broker()
    assert machine.pid(A) == before
    await machine.allocator.adopt(lease)
    await until(lambda: A in machine.node.applied[-1].daemons)
    await machine.node.settle(A)
    os.kill(before or 0, signal.SIGKILL)
    await until(lambda: (lease.id, BACK) in machine.holders.told)


async def test_a_dead_daemon_takes_its_gpu_out_of_use_until_it_is_back(machine: Machine) -> None:
    broker = await machine.broker()
    first, second = await machine.lease(running=False), await machine.lease(running=False)
    for lease in (first, second):
        await broker.prepare(lease)
    machine.place().make()
    (machine.place().log / "orders").write_text("no-start")
    os.kill(machine.pid(A) or 0, signal.SIGKILL)
    await until(lambda: not machine.healthy(A))
    await until(lambda: machine.holders.told)
    assert machine.holders.told == [(first.id, DIED)]  # the other GPU's lease goes on, and is told nothing
    assert (machine.allocator.lease(first.id) or first).notice == DIED
    assert (await machine.lease(running=False)).device_uuids == (B,)
    (machine.place().log / "orders").unlink()
    await until(lambda: machine.healthy(A))
    await until(lambda: len(machine.holders.told) == 2)
    assert machine.holders.told[1] == (first.id, BACK)
    assert counted(machine, "mps_deaths") == 1


async def test_a_gpu_whose_mps_does_not_start_is_out_of_use_and_tried_again(machine: Machine) -> None:
    broker = await machine.broker()
    machine.place().make()
    (machine.place().log / "orders").write_text("no-start")
    lease = await machine.lease(running=False)
    with pytest.raises(DeviceFault):
        await broker.prepare(lease)
    assert not machine.healthy(A)
    await machine.close(lease)
    assert (await machine.lease(running=False)).device_uuids == (B,)
    # The hardware itself is well, and says so: that does not bring it back.
    await machine.node.report(DeviceHealth(A, healthy=True))
    assert not machine.healthy(A)
    (machine.place().log / "orders").unlink()
    await until(lambda: machine.healthy(A))
    await machine.node.report(DeviceHealth(A, healthy=False, reason="XID 79"))
    assert not machine.healthy(A)


async def test_quotas_follow_the_leases_and_are_there_after_a_restart(machine: Machine) -> None:
    await machine.broker()
    slice_, whole = await machine.lease(memory_bytes=4 * GIB), await machine.lease(mode=Mode.WHOLE)
    await machine.lease(running=False)  # no container yet: nothing to guard
    quotas = (
        Quota(slice_.id, f"{1:064x}", A, 4 * GIB, mps_required=True),
        Quota(whole.id, f"{2:064x}", C, None),
    )
    devices = frozenset({A, B, C})
    wanted = QuotaPlan(quotas, frozenset({f"{1:064x}", f"{2:064x}"}), devices)
    await until(lambda: machine.node.applied[-1].quotas == wanted)
    again = await machine.broker()
    assert again.desired().quotas == wanted
    assert machine.node.applied[0].quotas == wanted
    await machine.allocator.begin_release(whole.id, "stopped")
    assert again.desired().quotas == wanted  # its container may still run
    await machine.allocator.close(whole.id)
    left = QuotaPlan(quotas[:1], frozenset({f"{1:064x}"}), devices)
    await until(lambda: machine.node.applied[-1].quotas == left)


async def test_who_loses_a_process_is_told_and_it_is_counted(machine: Machine) -> None:
    await machine.broker()
    lease = await machine.lease()
    event = GuardEvent(NOW, Offence.MEMORY, f"{1:064x}", lease.id, A, 7, "python3", 9, 8, 2.0, "It was over.")
    await machine.node.report(event)
    await machine.node.report(replace(event, offence=Offence.NO_LEASE, lease_id=None))
    await machine.node.report(replace(event, lease_id=None, container_id="gone"))
    assert machine.holders.told == [(lease.id, "2026-01-01 12:30 UTC: It was over.")] * 2
    record = EndedProcess(
        NOW, "memory", lease.id, "hub", "user-1", "", f"{1:064x}", A, 7, "python3", 9, 8, 2.0, "It was over."
    )
    gone = replace(record, container_id="gone", lease_id=None, hub="", user="")
    assert machine.ledger.records == [record, replace(record, offence="no_lease"), gone]
    assert machine.journal.recent() == tuple(machine.ledger.records[::-1])
    ended = [counted(machine, "guard_ended", offence=offence) for offence in ("memory", "no_lease")]
    assert ended == [2, 1]
    # It stays when the device's health changes, and through a restart.
    await machine.node.report(DeviceHealth(A, healthy=False, reason="XID 79"))
    assert "Save your work" in (machine.allocator.lease(lease.id) or lease).notice
    await machine.holders.tell(lease.id, "It was over.")
    await machine.node.report(DeviceHealth(A, healthy=True))
    await machine.broker()
    assert (machine.allocator.lease(lease.id) or lease).notice == "It was over."


async def test_the_compute_mode_is_set_while_the_pool_is_in_use_and_put_back(machine: Machine) -> None:
    broker = await machine.broker(managed=frozenset({A}))
    first, second = await machine.lease(), await machine.lease()
    for lease in (first, second):
        await broker.prepare(lease)
    modes = [machine.inventory.compute_mode(uuid) for uuid in (A, B)]
    assert modes == [ComputeMode.EXCLUSIVE_PROCESS, ComputeMode.DEFAULT]
    await machine.broker(managed=frozenset({A}))
    assert machine.inventory.compute_mode(A) is ComputeMode.EXCLUSIVE_PROCESS
    # The pool is gone from the settings; its last lease still runs, then ends.
    await machine.broker({A: SharingRules(), B: SLICED, C: SharingRules()})
    assert machine.inventory.compute_mode(A) is ComputeMode.EXCLUSIVE_PROCESS
    assert machine.pid(A) is not None
    await machine.close(first)
    await until(lambda: machine.pid(A) is None)
    await until(lambda: machine.inventory.compute_mode(A) is ComputeMode.DEFAULT)


async def test_nothing_is_done_where_gpus_are_simulated(machine: Machine) -> None:
    machine.inventory.simulated = True
    broker = await machine.broker()
    lease = await machine.lease()
    await broker.prepare(lease)
    assert broker.patch(lease, ContainerPatch()) == ContainerPatch()
    assert broker.blind() == {}
    assert not (machine.folder / "mps").exists()
