"""The life of leases in the broker: holds, releases, Docker's faults, restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.leases.memory_notice import sentence
from gpuspawner.broker.ledger import Ledger
from gpuspawner.core.errors import BrokerUnavailable
from gpuspawner.core.model import Device, DeviceHealth, Lease, LeaseState
from gpuspawner.core.want import Want
from gpuspawner.node.engine import Container, ContainerEvent, EventsConnected

from tests.soon import SOON_SECONDS
from tests.unit.lease_examples import NOON
from tests.unit.service_bench import HOUR, Bench, make_bench


def _lease_fields() -> dict[str, Any]:
    now = datetime.fromisoformat("2025-03-01T12:00:00+00:00")
    return {"id": "e" * 32, "hub": "hub", "user": "anna", "server": "", "tier": "gpu", "state": "running",
            "want": Want(1), "created_at": now, "since": now}  # fmt: skip


@pytest.fixture
async def bench(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    async for found in make_bench(ledger, monkeypatch, queue_seconds=HOUR):
        yield found


async def test_the_hold_ends_a_reservation_without_a_container(bench: Bench) -> None:
    async with bench.client.acquire(bench.request(1), lambda *_: None):
        assert bench.states() == {"anna": "reserved"}
    await bench.become()


async def test_the_hold_ends_a_reservation_and_removes_a_created_container(bench: Bench) -> None:
    async with bench.client.acquire(bench.request(1), lambda *_: None) as grant:
        bench.put(grant.lease, state="created")
    await bench.become()
    assert bench.engine.boxes == {}


async def test_a_list_that_is_older_than_the_container_ends_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine listed, then the container started and the hold closed, and then the answer came."""
    listed, answer = asyncio.Event(), asyncio.Event()
    real = bench.engine.list

    async def slow(lease_id: str | None = None) -> tuple[Container, ...]:
        found = await real(lease_id)
        if lease_id is None:
            listed.set()
            await answer.wait()
        return found

    monkeypatch.setattr(bench.engine, "list", slow)
    async with bench.client.acquire(bench.request(1), lambda *_: None) as grant:
        round_ = asyncio.create_task(bench.service.reconcile())
        await listed.wait()
        event = bench.put(grant.lease)
    while bench.service._kept(grant.lease.id):  # until the broker has seen that the hold is closed
        await asyncio.sleep(0.001)
    answer.set()
    bench.service.on_event(event)
    await round_
    await bench.become(anna="running")
    await asyncio.sleep(0.1)
    assert bench.states() == {"anna": "running"}


async def test_a_lost_start_event_is_made_up_for_when_the_hold_closes(bench: Bench) -> None:
    async with bench.client.acquire(bench.request(1), lambda *_: None) as grant:
        bench.put(grant.lease)
    await bench.become(anna="running")


async def test_a_fault_of_docker_keeps_the_reservation(bench: Bench) -> None:
    async with bench.client.acquire(bench.request(1), lambda *_: None):
        bench.engine.fault = "down"
    await asyncio.sleep(0.1)
    assert bench.states() == {"anna": "reserved"}
    assert not await bench.service.reconcile_or_log()
    assert bench.states() == {"anna": "reserved"}
    bench.engine.fault = ""
    assert await bench.service.reconcile_or_log()
    assert bench.states() == {}


async def test_a_closed_connection_gives_the_place_back_though_docker_is_down(bench: Bench) -> None:
    async with bench.client.acquire(bench.request(1), lambda *_: None):
        task = asyncio.create_task(
            bench.client.acquire(bench.request(2, "ben"), lambda *_: None).__aenter__()
        )
        await bench.become(anna="reserved", ben="waiting")
        bench.engine.fault = "down"
        task.cancel()
        await bench.become(anna="reserved")
        bench.engine.fault = ""


async def test_a_new_spawn_ends_the_older_lease_of_its_server(bench: Bench) -> None:
    async with bench.client.acquire(bench.request(1), lambda *_: None) as old:
        bench.service.on_event(bench.put(old.lease))
        await bench.become(anna="running")
        async with bench.client.acquire(bench.request(2), lambda *_: None) as new:
            assert new.lease.device_uuids == ("GPU-1",)
            assert bench.engine.boxes == {}
            while old.lost is None:
                await asyncio.sleep(0.01)
            assert old.lost.message == (
                "The lease of this server has ended (the server is started again): start the server again"
            )


async def test_a_new_spawn_waits_for_docker_to_remove_the_former_container(bench: Bench) -> None:
    async with bench.client.acquire(bench.request(1), lambda *_: None) as old:
        bench.service.on_event(bench.put(old.lease))
        await bench.become(anna="running")
    bench.engine.slow.add("c1")
    with pytest.raises(BrokerUnavailable, match="still removing this server's previous container"):
        await bench.client.acquire(bench.request(2), lambda *_: None).__aenter__()
    assert bench.states() == {"anna": "releasing"}
    bench.engine.boxes.clear()
    async with bench.client.acquire(bench.request(3), lambda *_: None) as new:
        assert new.lease.id == bench.request(3).lease_id


async def test_before_docker_was_compared_nothing_new_is_given_out(bench: Bench) -> None:
    bench.service.ready.clear()
    with pytest.raises(BrokerUnavailable, match="can't reach Docker yet"):
        await bench.client.acquire(bench.request(1), lambda *_: None).__aenter__()
    assert (bench.states(), bench.refusals("broker_unavailable")) == ({}, 1.0)


async def test_a_folder_that_cannot_be_written_gives_everything_back(bench: Bench) -> None:
    bench.folders.fault = "the disk is full"
    with pytest.raises(BrokerUnavailable, match="the ledger can't be written"):
        await bench.client.acquire(bench.request(1), lambda *_: None).__aenter__()
    await bench.become()


async def test_a_reconnect_of_the_events_looks_at_everything(bench: Bench) -> None:
    async with bench.client.acquire(bench.request(1), lambda *_: None) as grant:
        bench.put(grant.lease)
        bench.service.on_event(EventsConnected())
        await bench.become(anna="running")
    bench.engine.boxes.clear()
    bench.service.on_event(EventsConnected())
    await bench.become()


async def test_events_of_other_brokers_cost_nothing(bench: Bench) -> None:
    bench.service.on_event(ContainerEvent("die", "c9", "f" * 32, "elsewhere"))
    await asyncio.sleep(0.05)
    assert bench.engine.calls == []


async def test_how_a_container_ended_that_nobody_stopped_is_known_when_it_is_gone(bench: Bench) -> None:
    async with bench.client.acquire(bench.request(1), lambda *_: None) as grant:
        bench.service.on_event(bench.put(grant.lease))
        await bench.become(anna="running")
    bench.put(grant.lease, state="exited")
    bench.service.on_event(ContainerEvent("die", "c1", grant.lease.id, "here", exit_code=137))
    await bench.become()
    assert bench.engine.boxes == {}
    assert await bench.client.exit_code(grant.lease.id) == 137


async def test_a_container_that_was_stopped_has_no_exit_code(bench: Bench) -> None:
    async with bench.client.acquire(bench.request(1), lambda *_: None) as grant:
        bench.service.on_event(bench.put(grant.lease))
        await bench.become(anna="running")
    await bench.allocator.begin_release(grant.lease.id, "stopped by ines, who teaches it")
    bench.service.on_event(ContainerEvent("die", "c1", grant.lease.id, "here", exit_code=137))
    await bench.become()
    assert await bench.client.exit_code(grant.lease.id) is None


async def test_a_running_container_without_a_lease_is_taken_up(bench: Bench) -> None:
    lease = Lease(**{**_lease_fields(), "device_uuids": ("GPU-1",)})
    bench.put(lease)
    await bench.service.reconcile()
    assert bench.states() == {"anna": "running"}
    again = bench.allocator.lease(lease.id)
    assert again is not None
    assert (again.device_uuids, again.memory_bytes, again.container_id) == (("GPU-1",), 80 << 30, "c1")


async def test_one_that_clashes_is_stopped_then_removed(bench: Bench) -> None:
    bench.put(Lease(**{**_lease_fields(), "device_uuids": ("GPU-of-nobody",)}))
    await bench.service.reconcile()
    async with asyncio.timeout(SOON_SECONDS):
        while bench.engine.boxes:
            await asyncio.sleep(0.01)
    assert [call for call in bench.engine.calls if call != "list"] == ["stop c1", "remove c1"]
    assert bench.states() == {}


async def test_holders_are_told_of_a_withdrawn_device(bench: Bench) -> None:
    async with bench.client.acquire(bench.request(1), lambda *_: None) as grant:
        await bench.service.set_health(DeviceHealth("GPU-1", False, "it is lost"))
        assert "it is lost" in bench.folders.written[grant.lease.id].notice


async def test_a_broker_that_ends_gives_nothing_back(bench: Bench) -> None:
    async with bench.client.acquire(bench.request(1), lambda *_: None):
        await bench.service.close()
    await asyncio.sleep(0.1)
    assert bench.states() == {"anna": "reserved"}


async def test_leases_of_a_former_broker_may_be_held_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuspawner.broker.leases.leasing.RESTORE_SECONDS", 0.3)
    held, lost = bench.request(1), bench.request(2, "ben")
    await bench.allocator.acquire(held)
    await bench.allocator.acquire(lost)
    bench.service.restore()
    await bench.service.reconcile()
    assert bench.states() == {"anna": "reserved", "ben": "waiting"}  # the socket isn't up yet
    bench.service.reachable()
    async with bench.client.acquire(held, lambda *_: None):
        await bench.become(anna="reserved")


async def test_a_hub_that_comes_back_slowly_keeps_all_its_places(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each hold that comes back gives the others time; a loop that is late, as under load, counts as none."""
    loop = asyncio.get_running_loop()
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now)
    names = ("anna", "ben", "cleo")
    first, second, third = (bench.request(number, name) for number, name in enumerate(names))
    for request in (first, second, third):
        await bench.allocator.acquire(request)
    bench.service.restore()
    bench.service.reachable()
    everybody = {"anna": "reserved", "ben": "waiting", "cleo": "waiting"}
    with bench.service.hold(first.lease_id):
        now += 2
        with bench.service.hold(second.lease_id):
            now += 2
            await bench.service.reconcile()
            assert bench.states() == everybody  # 4 s after the start, 2 s after the second hold
            with bench.service.hold(first.lease_id):  # held already: this gives no time
                now += 2
                await bench.service.reconcile()
                assert bench.states() == {"anna": "reserved", "ben": "waiting"}


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_a_ledger_that_cannot_be_written_leases_nothing(
    times: Any, path: Path, faulty_ledger: type[Ledger], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    ledger = times.make_ledger(path, kind=faulty_ledger)
    await ledger.open()
    async for bench in make_bench(ledger, monkeypatch, queue_seconds=HOUR):
        ledger.fault = fault
        with pytest.raises(BrokerUnavailable, match="the ledger can't be written"):
            await bench.client.acquire(bench.request(1), lambda *_: None).__aenter__()
        assert bench.states() == {}
        async with bench.client.acquire(bench.request(2), lambda *_: None) as grant:
            assert grant.lease.device_uuids == ("GPU-1",)
        await bench.become()
    await ledger.close()


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_a_release_that_cannot_be_recorded_is_tried_again(
    times: Any, path: Path, faulty_ledger: type[Ledger], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    ledger = times.make_ledger(path, kind=faulty_ledger)
    await ledger.open()
    async for bench in make_bench(ledger, monkeypatch, queue_seconds=HOUR):
        async with bench.client.acquire(bench.request(1), lambda *_: None) as grant:
            bench.service.on_event(bench.put(grant.lease))
            await bench.become(anna="running")
        await asyncio.sleep(0.05)
        bench.engine.boxes.clear()
        ledger.fault = fault
        await bench.service.reconcile()
        assert bench.states() == {"anna": "running"}
        await bench.service.reconcile()
        assert bench.states() == {}
    await ledger.close()


# Containers that can't be removed delay nobody else.


async def test_stuck_removals_hold_up_nobody(bench: Bench) -> None:
    """Twelve leases of other users are released, and no call for their containers ever answers."""
    devices = [Device(f"GPU-{number}", "H100 80GB", 80 << 30) for number in range(2, 15)]
    await bench.allocator.add(devices, {})
    for number in range(2, 14):
        lease = await bench.allocator.acquire(bench.request(number, f"user-{number}"))
        bench.put(lease, f"stuck-{number}")
        bench.engine.stuck.add(f"stuck-{number}")
        await bench.allocator.set_running(lease.id, f"stuck-{number}")
        await bench.service.stopped(lease.id)
    anna = await bench.allocator.acquire(bench.request(1))
    bench.put(anna)
    async with asyncio.timeout(SOON_SECONDS):
        await bench.service.reconcile()
        assert bench.states()["anna"] == "running"  # by the timer's round, though the event was lost
        bench.engine.boxes.pop("c1")
        await bench.service.reconcile()
    assert bench.states() == {f"user-{number}": "releasing" for number in range(2, 14)}
    await bench.service.reconcile()
    removals = sorted(call for call in bench.engine.calls if call.startswith("remove"))
    assert removals == sorted(f"remove stuck-{number}" for number in range(2, 14))  # once each
    bench.engine.boxes.clear()  # whatever hung has ended
    await bench.service.reconcile()
    assert bench.states() == {}


async def test_a_release_ends_when_the_removal_does(bench: Bench) -> None:
    lease = await bench.allocator.acquire(bench.request(1))
    bench.put(lease)
    await bench.allocator.set_running(lease.id, "c1")
    assert not await bench.service.release(lease.id, "stopped")
    await bench.become()
    assert bench.engine.boxes == {}


async def test_the_start_event_alone_makes_a_lease_run(bench: Bench) -> None:
    """Its container is guarded from then on, even where Docker can't list containers just now."""
    async with bench.client.acquire(bench.request(1), lambda *_: None) as grant:
        event = bench.put(grant.lease)
        bench.engine.fault = "busy"
        bench.service.on_event(event)
        await bench.become(anna="running")
        lease = bench.allocator.lease(grant.lease.id)
        assert lease is not None
        assert lease.container_id == "c1"
        bench.engine.fault = ""


# The ledger may be an old copy: nothing is placed before Docker was looked at.


async def restart(bench: Bench) -> None:
    """The broker reads the ledger anew, as after a restart, and has not looked at Docker yet."""
    devices = [view.device for view in bench.allocator.snapshot().devices]
    await bench.allocator.load(devices, place=False)
    bench.service.restore()


def row(number: int, user: str, state: str, *uuids: str, container_id: str | None = None) -> Lease:
    fields = {**_lease_fields(), "id": f"{number:032x}", "user": user, "state": LeaseState(state)}
    return Lease(
        **fields, device_uuids=uuids, container_id=container_id, memory_bytes=len(uuids) * (80 << 30)
    )


async def test_nobody_is_placed_before_docker_was_compared(bench: Bench) -> None:
    """The copy has a waiting lease, and not the one of the container that runs on the only device."""
    await bench.ledger.save(row(2, "ben", "waiting"), at=NOON)
    await restart(bench)
    assert bench.states() == {"ben": "waiting"}
    bench.put(row(1, "anna", "running", "GPU-1"))
    bench.engine.fault = "down"
    assert not await bench.service.reconcile_or_log()
    assert (bench.states(), bench.allocator.placing) == ({"ben": "waiting"}, False)
    bench.engine.fault = ""
    assert await bench.service.reconcile_or_log()
    assert (bench.states(), bench.allocator.placing) == ({"ben": "waiting", "anna": "running"}, True)
    assert bench.engine.boxes["c1"].state == "running"


async def test_those_who_wait_are_placed_by_the_first_good_comparison(bench: Bench) -> None:
    await bench.ledger.save(row(2, "ben", "waiting"), at=NOON)
    await restart(bench)
    assert await bench.service.reconcile_or_log()
    assert bench.states() == {"ben": "reserved"}


@pytest.mark.parametrize(
    "copy",
    [
        row(2, "anna", "waiting"),
        row(2, "anna", "reserved", "GPU-1"),
        row(2, "ben", "reserved", "GPU-1"),
        row(2, "ben", "running", "GPU-1", container_id="c0"),
        row(2, "anna", "running", "GPU-1", container_id="c0"),
        row(2, "ben", "releasing", "GPU-1", container_id="c0"),
    ],
    ids=lambda lease: f"{lease.user}-{lease.state}",
)
async def test_an_old_copy_of_the_ledger_stops_no_notebook(bench: Bench, copy: Lease) -> None:
    """Whatever the copy says of the device or the server: a container that runs there now is right."""
    await bench.ledger.save(copy, at=NOON)
    await restart(bench)
    bench.put(row(1, "anna", "running", "GPU-1"))
    async with asyncio.timeout(SOON_SECONDS):
        while not await bench.service.reconcile_or_log():
            assert not bench.allocator.placing
    assert bench.states() == {"anna": "running"}
    assert bench.engine.boxes["c1"].state == "running"
    assert not [call for call in bench.engine.calls if call.startswith(("stop", "remove"))]


async def test_an_adoption_that_cannot_be_recorded_keeps_everybody_waiting(
    times: Any, path: Path, faulty_ledger: type[Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = times.make_ledger(path, kind=faulty_ledger)
    await ledger.open()
    async for bench in make_bench(ledger, monkeypatch, queue_seconds=HOUR):
        await bench.ledger.save(row(2, "ben", "waiting"), at=NOON)
        await restart(bench)
        bench.put(row(1, "anna", "running", "GPU-1"))
        ledger.fault = "before"
        assert not await bench.service.reconcile_or_log()
        assert (bench.states(), bench.allocator.placing) == ({"ben": "waiting"}, False)
        assert await bench.service.reconcile_or_log()
        assert bench.states() == {"ben": "waiting", "anna": "running"}
    await ledger.close()


# A container that Docker starts again after a reboot is charged again.


@pytest.mark.parametrize("known", [True, False])
async def test_a_restarted_container_is_charged_again(
    times: Any, path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """From the moment on at which it was started; where Docker can't say when, in a later round."""
    first = times.make_ledger(path)
    await first.open()
    await first.save(row(1, "anna", "running", "GPU-1", container_id="c1"), at=times.now())
    times.pass_seconds(60)
    await first.beat()
    await first.close()
    times.reboot(down_seconds=3600)  # it counts 10 s since boot
    second = times.make_ledger(path)
    await second.open()
    times.pass_seconds(100)
    async for bench in make_bench(second, monkeypatch, queue_seconds=HOUR, clock=times.now):
        bench.put(row(1, "anna", "running", "GPU-1", container_id="c1"))
        if known:
            bench.engine.started["c1"] = times.now() - timedelta(seconds=80)
        await bench.service.reconcile()
        times.pass_seconds(20)
        bench.engine.started["c1"] = times.now() - timedelta(seconds=100)
        await bench.service.reconcile()
        times.pass_seconds(40)
        await bench.service.reconcile()
        assert await second.gpu_seconds("anna", NOON) == 60 + 80 + 20 + 40
        assert bench.states() == {"anna": "running"}
    await second.close()


async def test_a_clock_that_is_wrong_after_a_reboot_charges_no_more_than_since_boot(
    times: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = times.make_ledger(path)
    await first.open()
    await first.save(row(1, "anna", "running", "GPU-1", container_id="c1"), at=times.now())
    await first.close()
    times.reboot(down_seconds=3600)
    second = times.make_ledger(path)
    await second.open()
    async for bench in make_bench(second, monkeypatch, queue_seconds=HOUR, clock=times.now):
        bench.put(row(1, "anna", "running", "GPU-1", container_id="c1"))
        bench.engine.started["c1"] = times.now() - timedelta(days=300)
        await bench.service.reconcile()
        assert await second.gpu_seconds("anna", NOON) == 10.0
    await second.close()


async def test_out_of_memory_is_told_to_the_holder(bench: Bench) -> None:
    async with bench.client.acquire(bench.request(1), lambda *_: None) as grant:
        bench.service.on_event(bench.put(grant.lease))
        await bench.become(anna="running")
        bench.service.on_event(ContainerEvent("oom", "c1", grant.lease.id, mem_limit_bytes=8 << 30))
        while not (lease := bench.allocator.lease(grant.lease.id)) or not lease.notice:
            await asyncio.sleep(0.01)
        assert lease.notice == sentence(8 << 30)
        assert bench.states() == {"anna": "running"}


# Several brokers with one database.


@pytest.fixture
async def pair(
    database: str, times: Any, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Bench, Bench]]:
    """Two machines, each with its Docker and its state folder at the same path: two ids, one label."""
    benches = []
    async with AsyncExitStack() as stack:
        for owner in ("one", "other"):
            ledger = times.make_ledger(database, owner=owner)
            await ledger.open()
            stack.push_async_callback(ledger.close)
            made = make_bench(ledger, monkeypatch, queue_seconds=HOUR)
            benches.append(await anext(made))
            stack.push_async_callback(anext, made, None)  # its end
        yield benches[0], benches[1]


async def test_two_brokers_with_one_database_leave_each_others_leases_alone(
    pair: tuple[Bench, Bench],
) -> None:
    one, other = pair
    lease = await one.allocator.acquire(one.request(1))
    one.put(lease)
    await one.service.reconcile()
    await restart(other)  # it starts, and has no such container
    await other.service.reconcile()
    await other.service.reconcile()
    assert (one.states(), other.states()) == ({"anna": "running"}, {})
    found = await one.ledger.find(lease.id)
    assert found is not None
    assert found.state is LeaseState.RUNNING
    await restart(one)
    await one.service.reconcile()
    assert one.states() == {"anna": "running"}


async def test_a_broker_that_lost_its_id_takes_over_what_runs(pair: tuple[Bench, Bench]) -> None:
    """Its state folder was lost, and the database is another machine's: the containers are here."""
    before, after = pair
    lease = await before.allocator.acquire(before.request(1, groups=("class",)))
    before.put(lease)
    await before.service.reconcile()
    await restart(after)
    after.engine.boxes.update(before.engine.boxes)
    assert await after.service.reconcile()
    assert (after.states(), after.engine.boxes["c1"].state) == ({"anna": "running"}, "running")
    taken = after.allocator.lease(lease.id)
    assert taken is not None
    assert (taken.groups, taken.created_at, taken.device_fractions) == (
        ("class",), lease.created_at, (1.0,)
    )  # fmt: skip
    assert [each.id for each in await after.ledger.living()] == [lease.id]
    assert await before.ledger.living() == ()


async def test_a_lease_placed_by_the_first_round_waits_for_the_way_into_its_container(bench: Bench) -> None:
    """The round places it, and only then the broker finds out how devices get into containers."""
    lease = await bench.allocator.acquire(bench.request(1))
    bench.service.ready.clear()
    patch = asyncio.create_task(bench.service.patch(lease))
    await asyncio.sleep(0.05)
    assert (patch.done(), bench.folders.written) == (False, {})
    bench.service.ready.set()
    assert (await patch).env == {"GPUSPAWNER_LEASE": lease.id}
    bench.service.ready.clear()
    with pytest.raises(BrokerUnavailable, match="can't reach Docker yet"):
        await bench.service.patch(lease)
