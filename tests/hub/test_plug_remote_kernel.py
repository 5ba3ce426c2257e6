"""A kernel from elsewhere, with a token that may do no more than it needs.

The requests are those of a remote client of Jupyter's server, as VS Code's extensions are: the kinds of
kernels, a session, the kernel's websocket; and before them, at the hub, its version, a start and the user's
servers. The token is in the header; in the address alone JupyterHub ignores it. `vscode.py` has the requests
of VS Code's two extensions one by one; VS Code itself is not run.
"""

from __future__ import annotations

import asyncio
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
from tests.hub.vscode import VSCode, ask, execute
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


async def test_vs_code_s_extension_jupyter_with_an_address_that_has_a_token(system: System) -> None:
    """It looks at the page, lists, makes a session, and talks to the kernel; restart and interrupt too."""
    async with logged_in(system, "dora") as browser:
        token = await make_token(browser, system, "dora", scopes(SERVERS, "dora"))
    async with remote(system, token) as session:
        assert await status_of(session, "POST", "hub/api/users/dora/server", {"profile": "cpu"}) in (201, 202)
        await until_ready(session, "dora")
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        code = VSCode(session, system.url, "dora", token)
        assert await code.needs_password()  # it then goes on with the token
        made = await code.new_session(await code.validate())
        kernel = made["kernel"]["id"]
        async with await code.connect(kernel) as socket:
            assert socket.protocol == "v1.kernel.websocket.jupyter.org"
            assert await ask(socket, "kernel_info_request", {}) == ""
            assert await execute(socket, "a = 6; print(7 * a)") == "42\n"
            await socket.ping()
            sleeping = asyncio.create_task(execute(socket, "import time; time.sleep(60)"))
            await asyncio.sleep(1)
            assert await code.kernel(kernel, "interrupt") == 204
            assert await sleeping == "KeyboardInterrupt"
            assert await code.kernel(kernel, "restart") == 200
        async with await code.connect(kernel) as socket:
            assert await execute(socket, "print(a)") == "NameError"
        assert await code.end_session(made["id"]) == 204
        wrong = VSCode(session, system.url, "dora", "0" * 32)
        assert await wrong.info("0" * 32) is None


@pytest.mark.parametrize("secret", ["token", "password"])
async def test_vs_code_s_extension_jupyterhub(system: System, secret: str) -> None:
    """It finds the hub, logs in, and starts the server without options: the tier of the last start."""
    user = f"eva-{secret}"
    async with logged_in(system, user) as browser:
        given = await make_token(browser, system, user, scopes(SERVERS, user))
    async with remote(system, given) as session:
        assert await status_of(session, "POST", f"hub/api/users/{user}/server", {"profile": "gpu"}) in (
            201,
            202,
        )
        await until_ready(session, user)
        assert await status_of(session, "DELETE", f"hub/api/users/{user}/server") in (202, 204)
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        code = VSCode(session, system.url, user)
        assert await code.hub_of(f"{system.url}user/{user}/lab") == system.url
        assert await code.log_in("not the password") == ""
        code.token = await code.log_in(given if secret == "token" else system.password(user))
        assert (code.token == given) is (secret == "token")
        assert await code.ensure_running()
        made = await code.new_session(await code.validate())
        async with await code.connect(made["kernel"]["id"]) as socket:
            said = await execute(socket, "import os; print(os.environ['GPUSPAWNER_TIER'])")
        assert said == "gpu\n"
        assert await code.end_session(made["id"]) == 204
    async with remote(system, given) as session:
        assert await status_of(session, "DELETE", f"hub/api/users/{user}/server") in (202, 204)
