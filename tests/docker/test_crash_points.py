"""kill -9 of broker, hub and both, before and after every commit, Docker call and step of a spawn.

The points are walked, not sampled: numbers go up until one is not reached, which ends the walk.
After a restart no lease may be lost, doubled or leaked: a running container keeps its lease and
device, and everything else is gone within 5 s.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from gpuspawner.core.errors import BrokerUnavailable

from tests.docker.faulty_docker import Rule
from tests.docker.life import STEPS
from tests.docker.place import ON_BOTH, Place, is_alive, kill
from tests.soon import until

pytestmark = pytest.mark.docker

COMMITS = 4
"""A life has four: reserved, running, releasing, closed."""
USUAL_CALLS = 14
DOCKER_CALLS = 20
"""More than a life has, on a busy machine too: the walk must end before."""
QUIET = {"GpuBroker": {"reconcile_seconds": 60.0}}
"""No round of the timer between: only the life's own Docker calls are counted."""
POINTS = [(step, when) for step in STEPS for when in ("before", "after")]


@asynccontextmanager
async def always_a_broker(place: Place) -> AsyncIterator[None]:
    """Restarts the broker whenever it dies, as systemd or the hub would; with the timer's default."""
    place.settings = {}
    keeper = asyncio.create_task(place.keep_restarting())
    try:
        yield
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)


async def live(place: Place) -> None:
    """A whole life whatever happens to the broker: spawn, run, container killed, free.

    The time in which all must be settled begins anew with a broker that had to be started.
    """
    while True:
        server = place.server()
        try:
            await server.spawn()
            break
        except BrokerUnavailable:  # it died just before it was asked: the user tries again
            continue
    await place.settled("anna")
    place.engine.kill(server.container_id)
    await place.settled()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", range(1, COMMITS + 1))
@ON_BOTH
async def test_broker_dies_at_a_commit(place: Place, number: int, when: str) -> None:
    pid = await place.start(commit=(number, when))
    async with always_a_broker(place):
        await live(place)
    assert not is_alive(pid)


async def test_a_life_has_no_further_commit(place: Place) -> None:
    pid = await place.start(commit=(COMMITS + 1, "before"))
    await live(place)
    assert is_alive(pid)


@pytest.mark.parametrize("when", ["before", "after"])
@ON_BOTH
async def test_broker_dies_at_a_commit_of_the_queue(place: Place, when: str) -> None:
    """The commit that closes one lease and gives its device to the next in line is one transaction."""
    place.settings = {"GpuSite": {"simulated_devices": "1 x H100 80GB"}}
    # 1 reserved, 2 running, 3 the second waits, 4 releasing, 5 closed and the second reserved
    pid = await place.start(commit=(5, when))
    anna, ben = place.server(), place.server("ben")
    await anna.spawn()
    await place.settled("anna")
    waiting = asyncio.create_task(ben.spawn())
    await until(lambda: ben.queued)
    place.engine.kill(anna.container_id)
    await until(lambda: not is_alive(pid))
    await place.restart()
    await waiting
    await place.settled("ben")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, marks=[pytest.mark.slow] * (number > USUAL_CALLS))
        for number in range(1, DOCKER_CALLS + 1)
    ],
)
async def test_broker_dies_at_a_docker_call(place: Place, number: int, when: str) -> None:
    place.settings = dict(QUIET)

    def die() -> None:
        kill(place.broker_pid)

    rule = Rule(
        "^(?!GET /version)", nth=number, **{when: die}
    )  # /version: docker-py's, before the first call
    place.proxy.rules.append(rule)
    await place.start()
    pid = place.broker_pid
    async with always_a_broker(place):
        await live(place)
    assert is_alive(pid) == (not rule.hits)
    assert rule.hits or number > 7, f"a life has only {rule.seen} Docker calls"
    assert not rule.hits or number < DOCKER_CALLS, "a life may have more calls: raise DOCKER_CALLS"


@pytest.mark.parametrize(("step", "when"), POINTS)
async def test_hub_dies_at_a_step(place: Place, step: str, when: str) -> None:
    await place.start()
    pid, _ = place.launch_hub("anna", kill_at=(step, when))
    await until(lambda: not is_alive(pid))
    await place.settled(*_survivors(step, when))


@pytest.mark.parametrize(("step", "when"), POINTS)
async def test_hub_and_broker_die_at_a_step(place: Place, step: str, when: str) -> None:
    await place.start()
    pid, _ = place.launch_hub("anna", kill_at=(step, when))
    await until(lambda: not is_alive(pid))
    await place.kill_broker()
    await place.restart()
    await place.settled(*_survivors(step, when))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", ["DELETE .*/containers/", "POST .*/containers/create", "POST .*/start"])
async def test_hub_dies_in_the_middle_of_a_docker_call(place: Place, call: str, when: str) -> None:
    """Docker does it, and the hub never hears of it."""
    await place.start()
    pid, dead = 0, []

    def die() -> None:
        dead.append(kill(pid))

    place.proxy.rules.append(Rule(call, **{when: die}))
    pid, _ = place.launch_hub("anna")
    await until(lambda: dead)
    await place.settled(*(["anna"] if "start" in call and when == "after" else []))


async def test_hub_dies_while_it_waits(place: Place) -> None:
    place.settings = {"GpuSite": {"simulated_devices": "1 x H100 80GB"}}
    await place.start()
    await place.server().spawn()
    pid, lease_id = place.launch_hub("ben")

    async def waits() -> bool:
        return [entry["id"] for entry in (await place.client.status())["queue"]] == [lease_id]

    await until(waits)
    kill(pid)
    await place.settled("anna")


async def test_hub_and_broker_die_while_it_waits(place: Place) -> None:
    place.settings = {"GpuSite": {"simulated_devices": "1 x H100 80GB"}}
    await place.start()
    await place.server().spawn()
    pid, _ = place.launch_hub("ben")

    async def waits() -> bool:
        return len((await place.client.status())["queue"]) == 1

    await until(waits)
    kill(pid)
    await place.kill_broker()
    await place.restart()
    await place.settled("anna")


async def test_the_container_dies_while_the_broker_is_dead(place: Place) -> None:
    await place.start()
    server = place.server()
    await server.spawn()
    await place.settled("anna")
    await place.kill_broker()
    place.engine.kill(server.container_id)
    await place.restart()
    await place.settled()


async def test_a_running_server_outlives_hub_and_broker(place: Place) -> None:
    await place.start()
    pid, _ = place.launch_hub("anna")
    await place.settled("anna")
    kill(pid)
    await place.kill_broker()
    await place.restart()
    await asyncio.sleep(3.5)  # longer than a hub has to take up its holds again
    await place.settled("anna")


def _survivors(step: str, when: str) -> list[str]:
    """Whose container runs after the hub died there: a spawn that came past `start`."""
    return ["anna"] if POINTS.index((step, when)) > POINTS.index(("start", "before")) else []
