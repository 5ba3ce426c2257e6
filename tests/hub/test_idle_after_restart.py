"""After a restart of the hub a real JupyterLab's kernels are asked again: what is idle, and what is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from gpuspawner.protocol.client import BrokerClient
from gpuspawner.protocol.rules import ServerDocument, ServersDocument

from tests.hub.remote_client import (
    SERVERS,
    logged_in,
    make_token,
    remote,
    run,
    scopes,
    status_of,
    until_ready,
)
from tests.running import System, restartable_system

pytestmark = pytest.mark.docker

KNOWN_SECONDS = 120.0
"""The hub polls its servers each half minute."""


async def server(system: System) -> ServerDocument:
    """What the broker knows of ada's server."""
    client = BrokerClient(str(system.folder / "broker.sock"))
    try:
        found = await client.ask("/servers", ServersDocument)
    finally:
        await client.close()
    (ada,) = found.servers
    return ada


async def becomes(system: System, wanted: Callable[[ServerDocument], bool]) -> ServerDocument:
    """What the broker knows once it is as wanted."""
    async with asyncio.timeout(KNOWN_SECONDS):
        while not wanted(found := await server(system)):
            await asyncio.sleep(1)
    return found


async def test_the_kernels_of_a_server_are_asked_again_after_a_restart_of_the_hub(tmp_path: Path) -> None:
    """Simulated GPUs: what is known of idleness is what the hub says of the kernels."""
    with restartable_system(tmp_path, GPUSPAWNER_SIMULATED="1 x H100 80GB") as (system, running):
        with running():
            async with logged_in(system, "ada") as browser:
                token = await make_token(browser, system, "ada", scopes(SERVERS, "ada"))
            async with remote(system, token) as session:
                start = await status_of(session, "POST", "hub/api/users/ada/server", {"profile": "gpu"})
                assert start in (201, 202)
                await until_ready(session, "ada")
                assert await run(session, "ada", "print(6 * 7)", keep=True) == "42\n"
                before = await becomes(system, lambda each: each.idle_since is not None)
        with running():
            after = await becomes(system, lambda each: each.idle_since is not None)
            assert after.idle_since == before.idle_since  # the kernel's own time, not that of the restart
            async with remote(system, token) as session:
                busy = asyncio.create_task(run(session, "ada", "import time; time.sleep(75); print('done')"))
                await becomes(system, lambda each: each.idle_since is None)
                assert await busy == "done\n"
            again = await becomes(system, lambda each: each.idle_since is not None)
            assert again.idle_since is not None
            assert after.idle_since is not None
            assert again.idle_since > after.idle_since
