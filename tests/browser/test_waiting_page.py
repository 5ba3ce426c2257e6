"""The page of a server that waits, in a browser: what its Stop button stops, and a restart of the hub."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.hub.conftest import docker_proxy, engine, hub, images  # noqa: F401  (fixtures)
from tests.hub.hubprocess import HubProcess, eventually

pytestmark = [pytest.mark.browser, pytest.mark.docker]

SECONDS_MS = 10_000
"""Within this a page says what has happened."""
SILENCE_MS = 20_000
"""Within this it notices that the hub is gone: the hub's empty lines come every 8 s."""
START_MS = 60_000


def wait_for(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`, in a thread of its own: playwright's loop runs in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def log_in(browser: Browser, hub: HubProcess, user: str) -> Page:  # noqa: F811
    """A window of its own in which `user` is logged in."""
    page = browser.new_context().new_page()
    page.goto(f"{hub.url}/hub/login?next=/hub/home")
    page.fill("#username_input", user)
    page.fill("#password_input", hub.admin_password if user == "admin" else hub.password)
    page.click("#login_submit")
    page.wait_for_url("**/hub/home")
    return page


@pytest.fixture
def waiting(hub: HubProcess, browser: Browser) -> Iterator[Page]:  # noqa: F811
    """Ada's window: her default server runs without a GPU, her server "train" waits for one of two."""
    for user in ("one", "two"):
        wait_for(hub.add_users(user))
        assert wait_for(hub.spawn(user, {"profile": "gpu"})).ready
    page = log_in(browser, hub, "ada")
    assert wait_for(hub.spawn("ada", {"profile": "cpu"})).ready
    page.goto(f"{hub.url}/hub/spawn/ada/train")
    page.check("input[name=profile][value=gpu]")
    page.click("#spawn_form [type=submit]")
    expect(page.locator("#progress-message")).to_contain_text("in line", timeout=START_MS)
    yield page
    page.context.close()
    for user in ("ada", "one", "two"):
        wait_for(hub.stop_server(user))


def leases_settle(hub: HubProcess, wanted: list[tuple[str, str, str]]) -> None:  # noqa: F811
    async def settled() -> bool:
        return await hub.leases("ada") == wanted

    wait_for(eventually(settled))


def test_stop_stops_the_server_that_the_page_is_about(waiting: Page, hub: HubProcess) -> None:  # noqa: F811
    expect(waiting.locator("main, body")).to_contain_text(["Server “train” of ada is starting up."])
    waiting.click("#stop-server-btn")
    leases_settle(hub, [])
    expect(waiting.locator("input[name=profile][value=cpu]")).to_be_visible(timeout=SECONDS_MS)
    assert waiting.url == f"{hub.url}/hub/spawn/ada/train"
    assert wait_for(hub.server("ada"))["ready"]  # the default server goes on


def test_an_admin_stops_what_the_page_of_somebody_else_is_about(
    waiting: Page,
    hub: HubProcess,  # noqa: F811
    browser: Browser,
) -> None:
    admin = log_in(browser, hub, "admin")
    assert wait_for(hub.spawn("admin", {"profile": "cpu"})).ready
    admin.goto(f"{hub.url}/hub/spawn-pending/ada/train")
    expect(admin.locator("#progress-message")).to_contain_text("in line", timeout=SECONDS_MS)
    admin.click("#stop-server-btn")
    leases_settle(hub, [])
    assert wait_for(hub.server("admin"))["ready"]
    assert wait_for(hub.server("ada"))["ready"]
    # The page that Ada has open learns it as well, and doesn't go to a server that isn't there.
    expect(waiting.locator("#progress-message")).to_have_text("The start was cancelled.", timeout=SECONDS_MS)
    expect(waiting.locator("#start-again")).to_be_visible(timeout=SECONDS_MS)
    admin.context.close()
    wait_for(hub.stop_server("admin"))


def test_after_a_restart_of_the_hub_an_open_page_says_that_the_start_has_ended(
    waiting: Page,
    hub: HubProcess,  # noqa: F811
) -> None:
    hub.kill()
    expect(waiting.locator("#progress-message")).to_contain_text("does not answer", timeout=SILENCE_MS)
    hub.start()
    expect(waiting.locator("#progress-message")).to_contain_text(
        "This start has ended: the hub was restarted", timeout=SECONDS_MS
    )
    expect(waiting.locator("#stop-server-btn")).to_be_hidden()
    leases_settle(hub, [])
    waiting.click("#start-again a")
    expect(waiting.locator("input[name=profile][value=gpu]")).to_be_visible()
    assert waiting.url.endswith("/hub/spawn/ada/train")
