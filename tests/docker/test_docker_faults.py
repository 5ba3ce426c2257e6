"""Docker answers 409, 500 or nothing, loses the answer, is down: nothing is freed on a guess or leaks."""

from __future__ import annotations

import asyncio

import docker.errors
import pytest
import requests
from gpuspawner.core.errors import BrokerUnavailable

from tests.docker.faulty_docker import Action, Rule
from tests.docker.life import remove
from tests.docker.place import Place, is_alive, kill
from tests.soon import until

pytestmark = pytest.mark.docker

ONE = {"GpuSite": {"simulated_devices": "1 x H100 80GB"}}
LIST = r"GET \S*/containers/json"
INSPECT = r"GET \S*/containers/[0-9a-f]+/json"
REMOVE = r"DELETE \S*/containers/"
FAULTS: list[Action] = ["409", "500", "refuse", "lose"]


@pytest.mark.parametrize("action", FAULTS)
@pytest.mark.parametrize("call", [LIST, INSPECT, REMOVE])
async def test_a_fault_delays_the_release_and_frees_nothing_before(
    place: Place, call: str, action: Action
) -> None:
    await place.start()
    server = place.server()
    await server.spawn()
    await place.settled("anna")
    rule = Rule(call, action, times=2)
    place.proxy.rules.append(rule)
    place.engine.kill(server.container_id)
    await place.settled()
    assert rule.hits > 0


@pytest.mark.parametrize("action", ["409", "500", "refuse"])
async def test_nothing_is_free_while_docker_cannot_tell(place: Place, action: Action) -> None:
    place.settings = ONE
    await place.start()
    server, ben = place.server(), place.server("ben")
    await server.spawn()
    await place.settled("anna")
    rule = Rule(LIST, action, times=10_000)
    place.proxy.rules.append(rule)
    remove(place.engine, server.name)
    waiting = asyncio.create_task(ben.spawn())
    await until(lambda: ben.queued)
    await asyncio.sleep(2.5)
    states = {user: state for user, (state, _) in (await place.leases()).items()}
    assert states == {"anna": "running", "ben": "waiting"}
    assert rule.hits > 1
    place.proxy.rules.clear()
    await waiting
    await place.settled("ben")


async def test_a_silent_docker_is_not_waited_for_for_ever(place: Place) -> None:
    await place.start()
    server = place.server()
    await server.spawn()
    await place.settled("anna")
    place.proxy.rules.append(Rule(LIST, "silence", times=2))
    place.engine.kill(server.container_id)
    await asyncio.sleep(0.5)
    assert (await place.client.status())["leases"][0]["user"] == "anna"  # it answers meanwhile
    await place.settled()


async def test_a_container_that_cannot_be_removed_holds_up_nobody_else(place: Place) -> None:
    await place.start()
    stuck = place.server("stuck")
    await stuck.spawn()
    await place.settled("stuck")
    place.proxy.rules.append(Rule(REMOVE + stuck.container_id, "500", times=10_000))
    place.engine.kill(stuck.container_id)
    await until(lambda: "could not be ended" in place.log and "made up 500" in place.log)
    anna = place.server()
    await anna.spawn()

    async def agree() -> bool:
        return await place.leases() == {"stuck": ("releasing", 1), "anna": ("running", 1)}

    await until(agree)
    await place.kill_broker()
    await place.restart()
    ben = place.server("ben")
    waiting = asyncio.create_task(ben.spawn())
    await until(lambda: ben.queued)  # refused would raise; both devices are held
    assert place.log.count("made up 500") < 8, "a fault is told once, not every round"
    place.proxy.rules.clear()
    await waiting
    await place.settled("anna", "ben")


async def test_a_start_without_docker_recovers_by_itself(place: Place) -> None:
    await place.start()
    await place.server().spawn()
    await place.settled("anna")
    await place.kill_broker()
    await place.proxy.down()
    await place.restart()
    assert await place.leases() == {"anna": ("running", 1)}
    with pytest.raises(BrokerUnavailable, match="can't reach Docker yet"):
        await place.server("ben").spawn()
    assert await place.leases() == {"anna": ("running", 1)}
    await place.proxy.up()
    await until(lambda: "compared again" in place.log)
    await place.server("ben").spawn()
    await place.settled("anna", "ben")


async def test_docker_goes_and_comes_back(place: Place) -> None:
    await place.start()
    anna, ben = place.server(), place.server("ben")
    await anna.spawn()
    await ben.spawn()
    await place.settled("anna", "ben")
    await place.proxy.down()
    place.engine.kill(anna.container_id)
    await asyncio.sleep(2.5)
    assert await place.leases() == {"anna": ("running", 1), "ben": ("running", 1)}
    assert place.log.count("can't be compared") == 1
    await place.proxy.up()
    await place.settled("ben")


async def test_what_waits_in_a_restart_without_docker_keeps_its_place(place: Place) -> None:
    place.settings = ONE
    await place.start()
    await place.server().spawn()
    await place.settled("anna")
    ben = place.server("ben")
    waiting = asyncio.create_task(ben.spawn())
    await until(lambda: ben.queued)
    await place.proxy.down()
    await place.kill_broker()
    await place.restart()
    await until(lambda: len(ben.queued) == 2)
    await asyncio.sleep(3.5)  # longer than a hub has to take up its holds again
    assert await place.leases() == {"anna": ("running", 1), "ben": ("waiting", 0)}
    await place.proxy.up()
    remove(place.engine, place.name_of("anna"))
    await waiting
    await place.settled("ben")


@pytest.mark.parametrize("action", ["409", "500", "refuse", "lose"])
@pytest.mark.parametrize("call", ["POST .*/containers/create", "POST .*/start"])
async def test_the_hubs_failed_docker_call_leaks_nothing(place: Place, call: str, action: Action) -> None:
    await place.start()
    server = place.server()
    server.engine = docker.APIClient(base_url=place.proxy.host, version="1.41")
    place.proxy.rules.append(Rule(call, action))
    with pytest.raises((docker.errors.APIError, requests.exceptions.ConnectionError)):
        await server.spawn()
    if action == "lose" and "start" in call:  # it runs: a failed start ends with the hub's stop
        await place.client.release(server.lease_id)
    await place.settled()
    await asyncio.to_thread(server.engine.close)


async def test_the_former_container_is_removed_before_a_new_lease(place: Place) -> None:
    """Docker fails to: the new spawn is refused with a sentence, and the device stays held."""
    place.settings = ONE
    await place.start()
    old, new = place.server(), place.server()
    await old.spawn()
    await place.settled("anna")
    place.proxy.rules.append(Rule(REMOVE, "500", times=10_000))
    with pytest.raises(BrokerUnavailable, match="still removing this server's previous"):
        await new.spawn()
    assert await place.leases() == {"anna": ("releasing", 1)}
    place.proxy.rules.clear()
    await place.server().spawn()
    await place.settled("anna")


async def test_a_broker_that_hangs_is_taken_for_unavailable(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuspawner.protocol.client.ANSWER_SECONDS", 0.5)
    pid = await place.start()
    kill(pid, 19)  # SIGSTOP
    with pytest.raises(BrokerUnavailable, match="doesn't answer"):
        await place.server().spawn()
    kill(pid, 18)  # SIGCONT
    await place.settled()
    assert is_alive(pid)
