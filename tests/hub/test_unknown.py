"""A server that the hub doesn't know any more: it is marked within a minute or so, and an admin ends it."""

from __future__ import annotations

import pytest

from tests.hub.hubprocess import HubProcess, eventually

pytestmark = [pytest.mark.docker, pytest.mark.slow]
MARKED_SECONDS = 90.0


async def end(hub: HubProcess, lease_id: str) -> int:
    """An admin ends the server with the lease; the status."""
    path = f"/services/gpu/api/leases/{lease_id}/end"
    async with hub.session() as session, session.post(path, json={"reason": "lost"}) as answer:
        await answer.read()
        return answer.status


async def lease_of(hub: HubProcess, user: str) -> str:
    """The id of the user's only lease."""
    (lease,) = [each for each in (await hub.broker_status())["leases"] if each["user"] == user]
    return str(lease["id"])


async def marked_and_ended(hub: HubProcess, lease_id: str) -> None:
    """Of all servers this one is marked, and freed after an admin has ended it."""

    async def marked() -> bool:
        leases = (await hub.broker_status())["leases"]
        return [each["id"] for each in leases if each["unknown_to_hub"]] == [lease_id]

    await eventually(marked, MARKED_SECONDS)
    assert await end(hub, lease_id) == 204

    async def freed() -> bool:
        return all(each["id"] != lease_id for each in (await hub.broker_status())["leases"])

    await eventually(freed)
    found = hub.engine.containers(all=True, filters={"label": f"gpuspawner.lease={lease_id}"})
    assert found == []


async def test_a_renamed_user_s_gpu_is_freed_by_an_admin(hub: HubProcess) -> None:
    """JupyterHub renames a user whose server runs; nobody's page shows that server under its old name."""
    await hub.add_users("before", "other")
    assert (await hub.spawn("before", {"profile": "gpu"})).ready
    assert (await hub.spawn("other", {"profile": "gpu"})).ready
    assert (await hub.call("PATCH", "/users/before", {"name": "after"}))[0] == 200
    lease = await lease_of(hub, "before")
    assert await end(hub, lease) == 409  # not marked yet: the hub may know it
    await marked_and_ended(hub, lease)
    assert [each["user"] for each in (await hub.broker_status())["leases"]] == ["other"]
    await hub.stop_server("other")


async def test_a_renamed_container_s_gpu_is_freed_by_an_admin(hub: HubProcess) -> None:
    """The hub finds a server's container by its name: for the hub this server has ended."""
    assert (await hub.spawn("moved", {"profile": "gpu"})).ready
    lease = await lease_of(hub, "moved")
    hub.engine.rename(hub.inspect("moved")["Id"], f"{hub.inspect('moved')['Name'].lstrip('/')}-elsewhere")
    await marked_and_ended(hub, lease)


async def test_a_gpu_of_a_hub_that_lost_its_database_is_freed_by_an_admin(hub: HubProcess) -> None:
    assert (await hub.spawn("lost", {"profile": "gpu"})).ready
    lease = await lease_of(hub, "lost")
    hub.stop()
    for file in hub.folder.glob("jupyterhub.sqlite*"):
        file.unlink()
    hub.start()
    await marked_and_ended(hub, lease)
