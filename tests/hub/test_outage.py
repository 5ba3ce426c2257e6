"""Broker down, Docker down, Docker failing, the hub killed at each of its Docker calls."""

from __future__ import annotations

import asyncio

import docker
import pytest

from tests.hub.hubprocess import HubProcess, ProxyThread, Rule, eventually, is_leased

pytestmark = pytest.mark.docker

INSPECT = r"GET /v[\d.]+/containers/[^/]+/json"
CALLS = {
    "image": r"GET /v[\d.]+/images/.*/json",
    "leftover": INSPECT,
    "create": r"POST /v[\d.]+/containers/create",
    "start": r"POST /v[\d.]+/containers/[^/]+/start",
    "address": INSPECT,
}
"""The Docker calls of a start, in order; "address" is the second inspection."""
REMOVE = r"DELETE /v[\d.]+/containers/"


def rule(call: str, **changes: object) -> Rule:
    """A rule for one call of a start."""
    return Rule(CALLS[call], nth=2 if call == "address" else 1, **changes)  # type: ignore[arg-type]


async def settled(hub: HubProcess, user: str) -> bool:
    """Whether hub, broker and Docker agree: the server runs with its container, or there is nothing."""
    model = await hub.server(user)
    containers = hub.containers(user)
    leases = await hub.leases(user)
    if model is not None and model["ready"]:
        (container,) = containers
        state = container["State"] == "running"
        return state and leases in ([], [(user, "", "running")])
    return (model is None or not model["pending"]) and containers == [] and leases == []


# Every state that a kill can leave: between two of these points nothing changes but memory.
CRASHES = [
    ("image", "before"), ("create", "before"), ("create", "after"),
    ("start", "before"), ("start", "after"), ("address", "after"),
]  # fmt: skip


@pytest.mark.parametrize("profile", [pytest.param("cpu", marks=pytest.mark.slow), "gpu"])
@pytest.mark.parametrize(("call", "when"), CRASHES)
async def test_the_hub_killed_at_each_docker_call_leaves_nothing_half_done(
    hub: HubProcess, docker_proxy: ProxyThread, call: str, when: str, profile: str
) -> None:
    user = f"kill-{call}-{when}-{profile}"
    await hub.add_users(user)
    with docker_proxy.rule(rule(call, **{when: hub.kill})) as seen:
        assert not (await hub.spawn(user, {"profile": profile})).ready
        assert seen.hits == 1
    hub.start()
    await eventually(lambda: settled(hub, user))
    model = await hub.server(user)
    started = (call, when) in {("start", "after"), ("address", "after")}
    assert (model is not None and model["ready"]) == started
    if not started:
        assert (await hub.spawn(user, {"profile": profile})).ready
    await eventually(lambda: is_leased(hub, user, profile))
    await hub.stop_server(user)
    await eventually(lambda: settled(hub, user))
    assert hub.containers(user) == []


async def test_a_running_server_keeps_its_lease_through_restarts_of_hub_and_broker(hub: HubProcess) -> None:
    assert (await hub.spawn("kept", {"profile": "gpu"})).ready
    before = hub.inspect("kept")
    for end in (hub.kill, hub.stop):
        end()
        hub.start()
        await eventually(lambda: settled(hub, "kept"))
        model = await hub.server("kept")
        assert model is not None
        assert model["ready"]
        assert model["state"]["lease_id"] == before["Config"]["Labels"]["gpuspawner.lease"]
        assert hub.inspect("kept")["State"]["StartedAt"] == before["State"]["StartedAt"]
        await eventually(lambda: is_leased(hub, "kept", "gpu"))
    await hub.stop_server("kept")


async def test_docker_down_while_the_hub_starts_stops_nobody(
    hub: HubProcess, docker_proxy: ProxyThread
) -> None:
    users = {"down-cpu": "cpu", "down-gpu": "gpu"}
    for user, profile in users.items():
        assert (await hub.spawn(user, {"profile": profile})).ready
    assert (await hub.spawn("down-gone", {"profile": "cpu"})).ready
    started = {user: hub.inspect(user)["State"]["StartedAt"] for user in users}
    hub.stop()
    docker_proxy.down()
    hub.engine.remove_container(hub.inspect("down-gone")["Id"], force=True)
    hub.start()

    async def told_apart() -> bool:
        """Who answers is there again although Docker is not; of the other nobody knows."""
        models = [await hub.server(user) for user in users]
        unknown = await hub.server("down-gone")
        assert unknown is not None
        return all(model and model["ready"] for model in models) and unknown["pending"] == "check"

    await eventually(told_apart)
    await asyncio.sleep(2)
    assert await told_apart()
    docker_proxy.up()

    async def known() -> bool:
        model = await hub.server("down-gone")
        return model is None or (not model["ready"] and not model["pending"])

    await eventually(known)
    for user, profile in users.items():
        assert hub.inspect(user)["State"]["StartedAt"] == started[user]
        await eventually(lambda user=user, profile=profile: is_leased(hub, user, profile))
        await hub.stop_server(user)


async def test_docker_down_while_servers_run_and_stop(hub: HubProcess, docker_proxy: ProxyThread) -> None:
    assert (await hub.spawn("calm", {"profile": "gpu"})).ready
    docker_proxy.down()
    try:
        await asyncio.sleep(5)  # two polls of the hub
        model = await hub.server("calm")
        assert model is not None
        assert model["ready"]
        status, message = await hub.post("late")
        assert status == 503
        assert message.startswith("Docker doesn't answer right now")
        stop = asyncio.create_task(hub.call("DELETE", "/users/calm/server"))

        async def stopping() -> bool:
            model = await hub.server("calm")
            return model is not None and model["pending"] == "stop"

        await eventually(stopping)
        await asyncio.sleep(1.5)
        assert await stopping()  # what may be running isn't called stopped
    finally:
        docker_proxy.up()
    await stop
    await eventually(lambda: settled(hub, "calm"))
    assert hub.containers("calm") == []
    assert (await hub.spawn("late")).ready
    await hub.stop_server("late")


# Silence costs the timeout of a call: it is tried where that is 5 s.
FAULTS = [
    *((call, action) for call in CALLS for action in ("500", "409", "refuse", "lose")),
    ("leftover", "silence"),
    ("address", "silence"),
]


@pytest.mark.parametrize(("call", "action"), FAULTS)
async def test_docker_failing_at_each_call_leaves_the_user_free(
    hub: HubProcess, docker_proxy: ProxyThread, call: str, action: str
) -> None:
    user = f"fail-{call}-{action}"
    with docker_proxy.rule(rule(call, action=action)) as seen:
        spawned = await hub.spawn(user, {"profile": "gpu"})
        assert seen.hits == 1
    await eventually(lambda: settled(hub, user))
    if not spawned.ready:
        assert hub.containers(user) == []
        assert (await hub.spawn(user, {"profile": "gpu"})).ready
    await hub.stop_server(user)
    await eventually(lambda: settled(hub, user))


@pytest.mark.parametrize("action", ["500", "409", "refuse", "lose"])
async def test_docker_failing_at_the_removal_delays_the_stop_and_loses_nothing(
    hub: HubProcess, docker_proxy: ProxyThread, action: str
) -> None:
    user = f"remove-{action}"
    assert (await hub.spawn(user, {"profile": "gpu"})).ready
    with docker_proxy.rule(Rule(REMOVE, action=action, times=2)) as seen:  # type: ignore[arg-type]
        await hub.stop_server(user)
        await eventually(lambda: settled(hub, user))
        assert seen.hits >= 1
    assert hub.containers(user) == []


async def test_of_a_killed_lab_the_hub_says_with_which_exit_code(
    hub: HubProcess, engine: docker.APIClient
) -> None:
    assert (await hub.spawn("shot", {"profile": "gpu"})).ready
    engine.kill(hub.inspect("shot")["Id"])

    async def noticed() -> bool:
        return "User shot server stopped, with exit code" in hub.log

    await eventually(noticed)
    assert "User shot server stopped, with exit code: exit code 137" in hub.log

    async def removed() -> bool:  # by the broker, which may look a moment after the hub
        return hub.containers("shot") == []

    await eventually(removed)


async def test_without_a_broker_cpu_starts_and_gpu_is_refused_with_a_sentence(hub: HubProcess) -> None:
    hub.stop()
    hub.environment["GPUSPAWNER_TEST_NO_BROKER"] = "1"
    hub.start()
    try:
        status, message = await hub.post("lone", {"profile": "gpu"})
        assert status == 503
        assert message == (
            "GPUs can't be given out right now: the GPU broker isn't running. A CPU server still starts. "
            "Admin: see the log of the broker, or run 'gpuspawner doctor'."
        )
        assert (await hub.spawn("lone", {"profile": "cpu"})).ready
        await hub.stop_server("lone")
    finally:
        hub.stop()
        del hub.environment["GPUSPAWNER_TEST_NO_BROKER"]
        hub.start()
