"""A hub behind traefik: pages, the queue's news as they come, kernels, and the routes of labs that go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.hubstart import free_ports
from tests.recipes import adapted, blocks
from tests.running import System, system_with
from tests.webclient import Client, logged_in, start

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A hub with the recipe, and one GPU."""
    folder: Path = tmp_path_factory.mktemp("traefik")
    (recipe,) = blocks("traefik", "python")
    settings = adapted(
        recipe, {"/srv/gpuspawner": str(folder), "localhost:8099": f"localhost:{free_ports(1)}"}
    )
    with system_with(folder, settings, GPUSPAWNER_SIMULATED="1 x H100 80GB") as running:
        yield running


async def test_a_second_user_waits_and_computes_when_the_first_has_gone(system: System) -> None:
    async with AsyncExitStack() as stack:
        ada, ben = [await stack.enter_async_context(logged_in(system, user)) for user in ("ada", "ben")]
        await start(ada, "gpu")
        assert await ada.run_in_kernel("print(6 * 7)") == "42\n"
        assert "ada" in await ada.text("services/gpu/")
        begun = asyncio.Event()
        waiting = asyncio.create_task(begin(ben, begun))
        await asyncio.wait_for(begun.wait(), 30)
        assert not waiting.done()
        await ada.send("DELETE", ada.api_path)
        assert (await waiting)[-1]["ready"]
        assert await ben.run_in_kernel("print('here')") == "here\n"
        async with ada.session.get(ada.url("user/ada/api/status")) as answer:
            assert answer.status == 424  # the hub's own answer for a server that isn't running
        await ben.send("DELETE", ben.api_path)


async def begin(client: Client, begun: asyncio.Event) -> list[dict[str, object]]:
    """Starts a server with a GPU, and follows its progress to the end."""
    answer = await client.submit("hub/spawn", profile="gpu")
    assert answer.url.path == f"/hub/spawn-pending/{client.user}", answer.url
    return await client.progress(begun)
