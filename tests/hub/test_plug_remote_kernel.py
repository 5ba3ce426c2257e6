"""A kernel from elsewhere, with a token that may do no more than it needs.

The requests are those of a remote client of Jupyter's server, as VS Code's extensions are: the kinds of
kernels, a session, the kernel's websocket; and before them, at the hub, its version, a start and the user's
servers. The token is in the header; in the address alone JupyterHub ignores it. VS Code itself is not run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.hub.remote_client import (
    KERNELS,
    SERVERS,
    logged_in,
    make_token,
    remote,
    run,
    scopes,
    status_of,
    until_ready,
)
from tests.running import System, running_system

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A hub with the real lab-base and one simulated GPU, and a service that may make tokens."""
    folder: Path = tmp_path_factory.mktemp("remote")
    with running_system(folder, GPUSPAWNER_SIMULATED="1 x H100 80GB") as running:
        yield running


async def test_a_token_for_servers_starts_one_with_a_gpu_and_computes(system: System) -> None:
    async with logged_in(system, "ada") as browser:
        token = await make_token(browser, system, "ada", scopes(SERVERS, "ada"))
    async with remote(system, token) as session:
        assert await status_of(session, "GET", "hub/api/") == 200
        assert await status_of(session, "POST", "hub/api/users/ada/server", {"profile": "gpu"}) in (201, 202)
        await until_ready(session, "ada")
        assert (
            await run(session, "ada", "import os; print(os.environ['GPUSPAWNER_TIER'], 6 * 7)") == "gpu 42\n"
        )


async def test_a_token_for_kernels_alone_computes_and_no_more(system: System) -> None:
    async with logged_in(system, "ada") as browser:
        token = await make_token(browser, system, "ada", scopes(KERNELS, "ada"))
    async with remote(system, token) as session:
        assert await run(session, "ada", "print('hello')") == "hello\n"
        assert await status_of(session, "DELETE", "hub/api/users/ada/server") == 403
        assert await status_of(session, "GET", "hub/api/users") == 403
        query = f"?token={token}"  # also in the address, as Jupyter's own client library does it
        assert await run(session, "ada", "print('both')", query) == "both\n"
    async with aiohttp.ClientSession(system.url) as session:
        assert await status_of(session, "GET", f"user/ada/api/kernelspecs?token={token}") == 403


async def test_neither_reaches_anybody_elses(system: System) -> None:
    async with logged_in(system, "bob") as browser:
        token = await make_token(browser, system, "bob", scopes(SERVERS, "bob"))
    async with remote(system, token) as session:
        assert await status_of(session, "GET", "user/ada/api/kernelspecs") == 403
        assert await status_of(session, "POST", "hub/api/users/ada/server") in (403, 404)


async def test_it_is_stopped_with_the_same_token(system: System) -> None:
    async with logged_in(system, "ada") as browser:
        token = await make_token(browser, system, "ada", scopes(SERVERS, "ada"))
    async with remote(system, token) as session:
        assert await status_of(session, "DELETE", "hub/api/users/ada/server") in (202, 204)
