"""The broker with real containers: a lease's whole life, the queue, lost events, two hubs, a lost ledger."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import uuid
from dataclasses import replace

import pytest
from gpuspawner.core.errors import BrokerUnavailable, LeaseConflict, NoCapacity, QueueTimeout
from gpuspawner.core.model import GpuRequest
from gpuspawner.core.want import Want
from gpuspawner.protocol.client import BrokerClient

from tests.docker.faulty_docker import Rule
from tests.docker.life import remove
from tests.docker.place import Place, is_alive, kill
from tests.soon import until

pytestmark = pytest.mark.docker

ONE = {"GpuSite": {"simulated_devices": "1 x H100 80GB"}}


async def states(place: Place) -> dict[str, str]:
    """User → the state of their lease."""
    return {user: state for user, (state, _) in (await place.leases()).items()}


async def wait_states(place: Place, **wanted: str) -> None:
    async def agree() -> bool:
        return await states(place) == wanted

    await until(agree)


async def test_a_lease_lives_from_request_to_free(place: Place) -> None:
    await place.start()
    server = place.server()
    async with server.spawning() as grant:
        assert grant.lease.state == "reserved"
        await wait_states(place, anna="running")
    await place.settled("anna")
    folder = place.folder / "leases" / server.lease_id
    assert sorted(item.name for item in folder.iterdir()) == ["lease.json", "notice"]
    place.engine.kill(server.container_id)
    await place.settled()
    assert not folder.exists()


async def test_a_stop_by_the_hub_frees_the_device(place: Place) -> None:
    await place.start()
    server = place.server()
    await server.spawn()
    await place.settled("anna")
    await asyncio.to_thread(place.engine.stop, server.container_id, timeout=0)
    await place.client.release(server.lease_id)
    await place.client.release(server.lease_id)
    await asyncio.to_thread(remove, place.engine, server.container_id)
    await place.settled()
    with pytest.raises(LeaseConflict, match="start the server again"):
        await server.spawn()


async def test_a_release_without_a_stop_removes_the_container(place: Place) -> None:
    await place.start()
    server = place.server()
    await server.spawn()
    await place.client.release(server.lease_id)
    await place.settled()


async def test_only_the_brokers_own_user_can_ask(place: Place) -> None:
    await place.start()
    assert stat.S_IMODE(os.stat(place.socket).st_mode) == 0o600


async def test_the_queue_is_first_come_first_served(place: Place) -> None:
    place.settings = ONE
    await place.start()
    anna, ben, cleo = (place.server(user) for user in ("anna", "ben", "cleo"))
    await anna.spawn()
    waiting = asyncio.create_task(ben.spawn())
    await until(lambda: ben.queued)
    third = asyncio.create_task(cleo.spawn())
    await until(lambda: cleo.queued)
    assert await states(place) == {"anna": "running", "ben": "waiting", "cleo": "waiting"}
    remove(place.engine, anna.name)
    await waiting
    await until(lambda: len(cleo.queued) == 2)
    assert (ben.queued, cleo.queued) == (
        ["1st in line for a simulated GPU"],
        ["2nd in line for a simulated GPU", "1st in line for a simulated GPU"],
    )
    remove(place.engine, ben.name)
    await third
    await place.settled("cleo")


async def test_cancelling_gives_the_place_back_at_once(place: Place) -> None:
    place.settings = ONE
    await place.start()
    await place.server().spawn()
    ben, cleo = place.server("ben"), place.server("cleo")
    first, second = asyncio.create_task(ben.spawn()), None
    await until(lambda: ben.queued)
    second = asyncio.create_task(cleo.spawn())
    await until(lambda: cleo.queued)
    first.cancel()
    await until(lambda: cleo.queued[-1] == "1st in line for a simulated GPU")
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    await place.settled("anna")


@pytest.mark.parametrize("step", ["acquire", "remove_old", "create", "confirm", "start", "ready"])
async def test_a_spawn_cancelled_at_any_step_gives_everything_back(place: Place, step: str) -> None:
    await place.start()
    reached = asyncio.Event()
    server = place.server()
    server.at_step = lambda name, when: reached.set() if (name, when) == (step, "before") else None
    task = asyncio.create_task(server.spawn())
    await reached.wait()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    if step in (
        "start",
        "ready",
    ):  # Docker may have started it: then the hub stops it, as after any failed start
        await asyncio.to_thread(remove, place.engine, server.name)
        await place.client.release(server.lease_id)
    await place.settled()


async def test_the_queue_times_out_with_the_offer_of_cpu(place: Place) -> None:
    place.settings = {"GpuSite": {**ONE["GpuSite"], "queue_timeout": 1.0}}
    await place.start()
    await place.server().spawn()
    with pytest.raises(QueueTimeout) as refused:
        await place.server("ben").spawn()
    assert refused.value.message == (
        "No GPU became free in 1 seconds: all are in use. Choose CPU, or try again later."
    )
    await place.settled("anna")


async def test_what_can_never_be_served_is_refused_at_once(place: Place) -> None:
    await place.start()
    with pytest.raises(NoCapacity, match="only 2"):
        await place.server(device_count=3).spawn()
    await place.settled()


async def test_a_new_spawn_supersedes_the_old_lease(place: Place) -> None:
    place.settings = ONE
    await place.start()
    old, new = place.server(), place.server()
    await old.spawn()
    await place.settled("anna")
    await new.spawn()
    await place.settled("anna")
    assert [lease["id"] for lease in (await place.client.status())["leases"]] == [new.lease_id]


async def test_two_hubs_dont_double_lease(place: Place) -> None:
    place.settings = ONE
    await place.start()
    other = BrokerClient(str(place.socket))
    ours, theirs = place.server(), place.server()
    theirs.client, theirs.hub, theirs.name = other, "hub-2", place.name_of("anna2")
    await ours.spawn()
    waiting = asyncio.create_task(theirs.spawn())
    await until(lambda: theirs.queued)
    status = await other.status()
    assert [(lease["hub"], lease["state"]) for lease in status["leases"]] == [
        ("hub", "running"),
        ("hub-2", "waiting"),
    ]
    remove(place.engine, ours.name)
    await waiting
    assert place.containers() == {"anna2": "running"}
    await other.close()


async def test_lost_events_are_made_up_for(place: Place) -> None:
    place.proxy.rules.append(Rule(r"GET \S*/events", "silence", times=99))
    await place.start()
    server = place.server()
    await server.spawn()
    await place.settled("anna")
    place.engine.kill(server.container_id)
    await place.settled()


async def test_the_container_may_restart(place: Place) -> None:
    await place.start()
    server = place.server()
    await server.spawn()
    await place.settled("anna")
    place.engine.pause(server.container_id)
    await asyncio.sleep(2.5)
    assert await place.leases() == {"anna": ("running", 1)}
    place.engine.unpause(server.container_id)
    await place.settled("anna")


async def test_a_broker_that_ends_and_starts_keeps_everything(place: Place) -> None:
    place.settings = ONE
    pid = await place.start()
    await place.server().spawn()
    ben = place.server("ben")
    waiting = asyncio.create_task(ben.spawn())
    await until(lambda: ben.queued)
    kill(pid, signal.SIGTERM)
    await until(lambda: not is_alive(pid))
    assert not place.socket.exists()
    await place.restart()
    await until(lambda: len(ben.queued) == 2)
    assert await place.leases() == {"anna": ("running", 1), "ben": ("waiting", 0)}
    remove(place.engine, place.name_of("anna"))
    await waiting
    await place.settled("ben")


async def test_take_over_ends_the_other_broker(place: Place) -> None:
    first = await place.start()
    await place.server().spawn()
    second = await place.restart()
    assert not is_alive(first)
    assert (place.folder / "broker.lock").read_text() == f"{second}\n"
    await place.settled("anna")


async def test_without_take_over_a_second_broker_refuses(place: Place) -> None:
    pid = await place.start()
    place.extra_argv = []
    second = place.launch()
    await until(lambda: not is_alive(second))
    assert f"A broker runs on {place.folder} already (process {pid})" in place.log
    assert is_alive(pid)
    assert (await place.client.status())["leases"] == []


async def test_a_lost_ledger_is_rebuilt_from_the_running_containers(place: Place) -> None:
    await place.start()
    await place.server().spawn()
    await place.settled("anna")
    before = (await place.client.status())["devices"]
    await place.kill_broker()
    for file in place.folder.glob("ledger.sqlite*"):
        file.unlink()
    await place.restart()
    await place.settled("anna")
    after = (await place.client.status())["devices"]
    for device in (*before, *after):
        del device["since"]
    assert after == before


async def test_a_container_of_an_unknown_lease_that_clashes_is_stopped(place: Place) -> None:
    place.settings = ONE
    await place.start()
    server = place.server()
    async with server.spawning() as grant:
        stray = place.server("eve")
        patch = grant.patch
        patch.labels.update({"gpuspawner.lease": uuid.uuid4().hex, "gpuspawner.user": "eve"})
        place.engine.start(await asyncio.to_thread(stray.create, patch))
    await place.settled("anna")
    assert "Stopping a running container whose lease is unknown" in place.log


async def test_a_container_of_another_broker_is_left_alone(place: Place) -> None:
    await place.start()
    server = place.server()
    async with server.spawning() as grant:
        foreign = place.server("eve")
        grant.patch.labels.update({"gpuspawner.lease": uuid.uuid4().hex, "gpuspawner.broker": "/elsewhere"})
        container = await asyncio.to_thread(foreign.create, grant.patch)
    await asyncio.sleep(2.5)
    assert place.engine.inspect_container(container)["State"]["Status"] == "created"
    remove(place.engine, container)


async def test_a_late_container_of_a_closed_lease_is_removed(place: Place) -> None:
    await place.start()
    server = place.server()
    async with server.spawning() as grant:
        pass
    remove(place.engine, server.name)
    await place.settled()
    grant.patch = replace(grant.patch, mounts=())  # its folder is gone, so Docker would refuse the mount
    place.engine.start(await asyncio.to_thread(server.create, grant.patch))
    await place.settled()


async def test_confirm_refuses_what_is_not_held(place: Place) -> None:
    await place.start()
    request = GpuRequest(uuid.uuid4().hex, "hub", "anna", "", "gpu", Want(1))
    with pytest.raises(LeaseConflict):
        await place.client.confirm(request.lease_id)
    async with place.client.acquire(request, lambda *_: None):
        await place.client.confirm(request.lease_id)
    await place.settled()
    with pytest.raises(LeaseConflict):
        await place.client.confirm(request.lease_id)


async def test_no_broker_is_a_sentence(place: Place) -> None:
    with pytest.raises(BrokerUnavailable, match=r"the GPU broker isn't running\. A CPU server still starts"):
        await place.server().spawn()


async def test_a_withdrawn_device_is_told_to_its_holder_and_given_to_nobody(place: Place) -> None:
    place.settings = ONE
    await place.start()
    server = place.server()
    await server.spawn()
    await place.settled("anna")
    (place.folder / "simulated_faults").write_text("0 it fell off the bus\n")

    async def told() -> bool:
        return bool((await place.client.status())["leases"][0]["notice"])

    await until(told)
    notice = place.folder / "leases" / server.lease_id / "notice"
    await until(lambda: "it fell off the bus" in notice.read_text())
    ben = place.server("ben")
    remove(place.engine, server.name)
    task = asyncio.create_task(ben.spawn())
    await until(lambda: ben.queued)
    await asyncio.sleep(0.5)
    assert await place.leases() == {"ben": ("waiting", 0)}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
