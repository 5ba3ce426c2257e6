"""A site with one tier: a link into a server starts it, and nobody stops at a form with nothing to choose."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest

from tests.hub.hubprocess import HubProcess, eventually
from tests.hub.test_spawn import Browser, ready

pytestmark = pytest.mark.docker

HUB_ENVIRONMENT = {"GPUSPAWNER_TEST_MORE": str(Path(__file__).with_name("single_tier.py"))}


async def test_a_link_into_the_server_starts_it_and_leads_there(hub: HubProcess) -> None:
    login = f"{hub.url}/hub/login?next={quote('/hub/user-redirect/lab/tree/work.ipynb', safe='')}"
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        async with session.get(login) as page:
            token = Browser.xsrf(await page.text())
        form = {"username": "uma", "password": hub.password, "_xsrf": token}
        async with session.post(login, data=form) as answer:
            assert answer.url.path == "/user/uma/lab/tree/work.ipynb"
    await eventually(lambda: ready(hub, "uma"))
    assert await hub.leases("uma") == [("uma", "", "running")]
    await hub.stop_server("uma")
