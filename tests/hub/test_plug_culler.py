"""jupyterhub-idle-culler beside ours: a silent computation isn't idle, with or without a GPU."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

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
from tests.recipes import adapted, blocks
from tests.running import System, system_with

pytestmark = [pytest.mark.docker, pytest.mark.slow]

HEADING = "Servers that nobody uses"
IDLE_SECONDS = 60
COMPUTE_SECONDS = 100


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A hub with the recipe, and a minute instead of an hour."""
    folder: Path = tmp_path_factory.mktemp("culler")
    (hook,), (service,) = blocks(HEADING, "culler"), blocks(HEADING, "python")
    own = f'make_cull_arbiter("{folder}/broker.sock", hub_id=NAME)'
    (folder / "culler_config.py").write_text(
        "import os\nNAME = os.environ['HUB_NAME']\n" + adapted(hook, {"make_cull_arbiter()": own})
    )
    faster = f'"--timeout={IDLE_SECONDS}", "--cull-every=5"'
    settings = adapted(service, {'"--timeout=3600"': faster, "/srv/": f"{folder}/"})
    name = '{"environment": {"HUB_NAME": c.GpuDockerSpawner.hub_id}}'
    settings += f"\nc.JupyterHub.services[-1].update({name})\n"
    with system_with(folder, settings, GPUSPAWNER_SIMULATED="1 x H100 80GB") as running:
        yield running


async def compute_then_rest(system: System, tier: str) -> None:
    """A silent computation of more than the culler's time goes on; a server that does nothing is ended."""
    user = f"of-{tier}"
    async with logged_in(system, user) as browser:
        token = await make_token(browser, system, user, scopes(SERVERS, user))
    async with remote(system, token) as session:
        path = f"hub/api/users/{user}/server"
        assert await status_of(session, "POST", path, {"profile": tier}) in (201, 202)
        await until_ready(session, user)
        begin = time.monotonic()
        code = f"import time; time.sleep({COMPUTE_SECONDS}); print('done')"
        assert await run(session, user, code, keep=True) == "done\n"
        assert time.monotonic() - begin >= COMPUTE_SECONDS
        async with asyncio.timeout(IDLE_SECONDS + 60):
            while True:
                async with session.get(f"hub/api/users/{user}") as answer:
                    if not (await answer.json()).get("servers"):
                        return
                await asyncio.sleep(1)


async def test_who_computes_goes_on_and_who_does_nothing_is_ended(system: System) -> None:
    await asyncio.gather(*(compute_then_rest(system, tier) for tier in ("cpu", "gpu")))
