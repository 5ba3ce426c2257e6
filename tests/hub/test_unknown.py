"""A server that the hub doesn't know any more: it is marked within a minute or so, and an admin ends it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.hub.hubprocess import HubProcess, eventually

pytestmark = [pytest.mark.docker, pytest.mark.slow]
MARKED_SECONDS = 90.0


async def test_a_renamed_user_s_gpu_is_freed_by_an_admin(hub: HubProcess) -> None:
    """JupyterHub renames a user whose server runs; nobody's page shows that server under its old name."""
    await hub.add_users("before", "other")
    assert (await hub.spawn("before", {"profile": "gpu"})).ready
    assert (await hub.spawn("other", {"profile": "gpu"})).ready
    assert (await hub.call("PATCH", "/users/before", {"name": "after"}))[0] == 200
    (lease,) = [each for each in (await hub.broker_status())["leases"] if each["user"] == "before"]
    path = f"/services/gpu/api/leases/{lease['id']}/end"

    async def end() -> tuple[int, Any]:
        async with hub.session() as session, session.post(path, json={"reason": "renamed"}) as answer:
            return answer.status, await answer.text()

    assert (await end())[0] == 409  # not marked yet: the hub may know it

    async def marked() -> bool:
        leases = (await hub.broker_status())["leases"]
        return [each["user"] for each in leases if each["unknown_to_hub"]] == ["before"]

    await eventually(marked, MARKED_SECONDS)
    assert (await end())[0] == 204

    async def freed() -> bool:
        return all(each["user"] != "before" for each in (await hub.broker_status())["leases"])

    await eventually(freed)
    assert hub.containers("before") == []
    assert [each["user"] for each in (await hub.broker_status())["leases"]] == ["other"]
    await hub.stop_server("other")
