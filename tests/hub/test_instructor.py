"""The role for instructors that docs/admins.md shows reaches the members of the class alone."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from tests.hub.hubprocess import HubProcess
from tests.recipes import PAGE, blocks

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module", autouse=True)
def role(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The hub of this module has the page's example."""
    found = blocks("Who may see the GPU page", "python", PAGE.with_name("admins.md"))
    (example,) = [block for block in found if '"instructor"' in block]
    site = tmp_path_factory.mktemp("instructor") / "site.py"
    site.write_text(example)
    request.module.HUB_ENVIRONMENT = {"GPUSPAWNER_TEST_MORE": str(site)}


async def test_an_instructor_reaches_the_class_and_nobody_else(hub: HubProcess) -> None:
    await hub.add_users("eve")
    status, made = await hub.call("POST", "/users/ines/tokens", {})
    assert status == 201, made
    assert (await hub.spawn("ada", {"profile": "cpu"})).ready
    assert (await hub.spawn("eve", {"profile": "cpu"})).ready

    async def asked(method: str, path: str) -> tuple[int, Any]:
        headers = {"Authorization": f"token {made['token']}"}
        async with (
            aiohttp.ClientSession(hub.url, headers=headers) as session,
            session.request(method, path) as answer,
        ):
            return answer.status, await answer.json() if answer.status == 200 else None

    status, users = await asked("GET", "/hub/api/users")
    assert (status, {user["name"] for user in users}) == (200, {"ada", "ben"})
    assert (await asked("DELETE", "/hub/api/users/eve/server"))[0] in (403, 404)
    assert (await asked("GET", "/services/gpu/api/classes/cs231n"))[0] == 200
    assert (await asked("GET", "/services/gpu/api/classes/instructors"))[0] in (403, 404)
    assert (await asked("DELETE", "/hub/api/users/ada/server"))[0] in (202, 204)
    running = await hub.server("eve")
    assert running is not None
    assert running["ready"]
    await hub.stop_server("eve")
    await hub.stop_server("ada")
