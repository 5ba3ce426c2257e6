"""The page of a server that starts, in a browser: its steps, what it can do, how it ends, who can use it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.login import log_in
from tests.browser.looks import check_looks, take_picture, take_picture_without_script
from tests.hub.conftest import docker_proxy, engine, hub, images  # noqa: F401  (fixtures)
from tests.hub.hubprocess import HubProcess, eventually

pytestmark = [pytest.mark.browser, pytest.mark.docker]

SECONDS_MS = 30_000
"""Within this a page says what has happened."""
SILENCE_MS = 40_000
"""Within this it notices that the hub is gone: the hub's empty lines come every 8 s."""
START_MS = 60_000
FIRST = re.compile("1st (in line|of)")
SECOND = re.compile("2nd (in line|of)")
"""With the likely wait, once servers have ended here: "2nd of 3 for a simulated GPU: likely between ..."."""


def wait_for(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`, in a thread of its own: playwright's loop runs in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def window(browser: Browser, hub: HubProcess, user: str, javascript: bool = True) -> Page:  # noqa: F811
    """A window of its own in which `user` is logged in."""
    page = browser.new_context(java_script_enabled=javascript).new_page()
    return log_in(page, f"{hub.url}/", user, hub.admin_password if user == "admin" else hub.password)


@pytest.fixture
def waiting(hub: HubProcess, browser: Browser) -> Iterator[Page]:  # noqa: F811
    """Ada's window: her default server runs without a GPU, her server "train" waits for one of two."""
    for user in ("one", "two"):
        wait_for(hub.add_users(user))
        assert wait_for(hub.spawn(user, {"profile": "gpu"})).ready
    page = window(browser, hub, "ada")
    assert wait_for(hub.spawn("ada", {"profile": "cpu"})).ready
    page.goto(f"{hub.url}/hub/spawn/ada/train")
    page.check("input[name=profile][value=gpu]")
    page.click("#spawn_form [type=submit]")
    expect(page.locator("#progress-message")).to_contain_text(FIRST, timeout=START_MS)
    yield page
    page.context.close()
    wait_for(hub.stop_server("ada", "train"))
    for user in ("ada", "one", "two"):
        wait_for(hub.stop_server(user))


def leases_settle(hub: HubProcess, wanted: list[tuple[str, str, str]]) -> None:  # noqa: F811
    async def settled() -> bool:
        return await hub.leases("ada") == wanted

    wait_for(eventually(settled))


def test_stop_stops_the_server_that_the_page_is_about(waiting: Page, hub: HubProcess) -> None:  # noqa: F811
    expect(waiting.locator("h1")).to_have_text(re.compile("Your server waits for a GPU"))
    expect(waiting.locator("main")).to_contain_text("One GPU · server “train” of ada")
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
    admin = window(browser, hub, "admin")
    assert wait_for(hub.spawn("admin", {"profile": "cpu"})).ready
    admin.goto(f"{hub.url}/hub/spawn-pending/ada/train")
    expect(admin.locator("#progress-message")).to_contain_text(FIRST, timeout=SECONDS_MS)
    admin.click("#stop-server-btn")
    leases_settle(hub, [])
    assert wait_for(hub.server("admin"))["ready"]
    assert wait_for(hub.server("ada"))["ready"]
    # The page that Ada has open learns it as well, and doesn't go to a server that isn't there.
    expect(waiting.locator("#progress-message")).to_have_text(
        "The start was cancelled, and its place in the queue given up.", timeout=SECONDS_MS
    )
    expect(waiting.locator("#start-again")).to_be_visible(timeout=SECONDS_MS)
    admin.context.close()
    wait_for(hub.stop_server("admin"))


def test_after_a_restart_of_the_hub_an_open_page_says_that_the_start_has_ended(
    waiting: Page,
    hub: HubProcess,  # noqa: F811
) -> None:
    hub.kill()
    expect(waiting.locator("#progress-message")).to_contain_text("does not answer", timeout=SILENCE_MS)
    for promise in ("#gpu-promise", "#gpu-until", "#gpu-kept"):
        expect(waiting.locator(promise)).to_be_hidden()
    hub.start()
    expect(waiting.locator("#progress-message")).to_contain_text(
        "This start has ended: the hub was restarted", timeout=SECONDS_MS
    )
    expect(waiting.locator("#stop-server-btn")).to_be_hidden()
    leases_settle(hub, [])
    waiting.click("#start-again a")
    expect(waiting.locator("input[name=profile][value=gpu]")).to_be_visible()
    assert waiting.url.endswith("/hub/spawn/ada/train")


def test_who_leaves_while_the_hub_is_busy_is_not_told_of_a_failure(
    waiting: Page,
    hub: HubProcess,  # noqa: F811
) -> None:
    """The page asks for its events again after ten silent seconds; the start has ended by then."""
    os.kill(hub.pid, signal.SIGSTOP)
    try:
        waiting.click("#stop-server-btn")
        expect(waiting.locator("#stop-server-status")).to_contain_text("Cancelling the start")
        waiting.wait_for_timeout(12_000)
        expect(waiting.locator("#gpu-problem")).to_be_hidden()
    finally:
        os.kill(hub.pid, signal.SIGCONT)
    waiting.wait_for_url(f"{hub.url}/hub/spawn/ada/train", timeout=START_MS)
    leases_settle(hub, [])


def choose(page: Page, tier: str) -> None:
    """Chooses a tier on the spawn page that is shown, and starts."""
    page.check(f"input[name=profile][value={tier}]")
    page.click("#spawn_form [type=submit]")


def states(page: Page) -> list[tuple[str, str]]:
    """The steps that are shown, each with its state."""
    items = page.locator("#gpu-steps > li:visible")
    return [
        (item.get_attribute("data-step") or "", item.get_attribute("data-state") or "")
        for item in items.all()
    ]


def test_who_waits_sees_the_steps_and_everybody_can_use_the_page(waiting: Page) -> None:
    assert states(waiting) == [
        ("image", "done"), ("gpu", "active"), ("container", "todo"), ("server", "todo"),
    ]  # fmt: skip
    expect(waiting.locator("[data-step=gpu]")).to_contain_text(FIRST)
    expect(waiting.locator("[data-step=gpu]")).to_contain_text("Waiting since")
    expect(waiting).to_have_title("Waiting for a GPU · JupyterHub")
    expect(waiting.get_by_text("is starting")).to_be_hidden()
    expect(waiting.locator("#gpu-until")).to_have_text(
        re.compile("^If no GPU is free by .*, the wait ends and your server does not start")
    )
    check_looks(waiting, "queue")


def test_the_home_page_says_who_waits_and_leads_there(waiting: Page, hub: HubProcess) -> None:  # noqa: F811
    waiting.goto(f"{hub.url}/hub/home")
    expect(waiting.locator("#gpu-pending p")).to_have_count(1)
    sentence = re.compile(r"Your server “train”\s+waits for a GPU: 1st (in line|of 1) for a simulated GPU")
    expect(waiting.locator("#gpu-pending p")).to_contain_text(sentence)
    waiting.get_by_role("link", name="See progress").click()
    expect(waiting.locator("[data-step=gpu]")).to_contain_text(FIRST)


def test_a_server_without_a_gpu_starts_meanwhile_and_the_place_stays(
    waiting: Page,
    hub: HubProcess,  # noqa: F811
) -> None:
    waiting.get_by_role("link", name="Start a server on CPU meanwhile").click()
    waiting.wait_for_url(f"{hub.url}/user/ada/cpu/**", timeout=START_MS)
    leases_settle(hub, [("ada", "train", "waiting")])
    waiting.goto(f"{hub.url}/hub/spawn-pending/ada/train")
    expect(waiting.locator("[data-step=gpu]")).to_contain_text(FIRST)
    wait_for(hub.stop_server("ada", "cpu"))


def test_the_page_after_a_cancelled_start_says_that_it_was_cancelled(
    waiting: Page,
    hub: HubProcess,  # noqa: F811
) -> None:
    waiting.click("#stop-server-btn")
    waiting.wait_for_url(f"{hub.url}/hub/spawn/ada/train", timeout=SECONDS_MS)
    waiting.goto(f"{hub.url}/hub/spawn-pending/ada/train")
    expect(waiting.locator("h1")).to_have_text("Your server isn't running")
    expect(waiting.locator("main")).to_contain_text(
        "The start was cancelled, and its place in the queue given up."
    )
    check_looks(waiting)
    take_picture(waiting, "not-running")
    waiting.get_by_role("link", name="Start it").click()
    expect(waiting.locator("input[name=profile][value=gpu]")).to_be_visible()


def test_a_second_browser_is_shown_the_start_of_the_first(
    waiting: Page,
    hub: HubProcess,  # noqa: F811
    browser: Browser,
) -> None:
    wait_for(hub.add_users("zoe"))
    first, second = window(browser, hub, "zoe"), window(browser, hub, "zoe")
    for page in (first, second):
        page.goto(f"{hub.url}/hub/spawn")
    choose(first, "gpu")
    expect(first.locator("#progress-message")).to_contain_text(SECOND, timeout=START_MS)
    choose(second, "cpu")
    expect(second.locator("h1")).to_have_text("Your server is already starting")
    check_looks(second)
    take_picture(second, "already-starting")
    second.get_by_role("link", name="Show it").click()
    expect(second.locator("#progress-message")).to_contain_text(SECOND)
    waiting.click("#stop-server-btn")  # the place moves up, and both see how
    expect(second.locator("[data-step=gpu]")).to_contain_text(
        re.compile("number 2 in line then, number 1 now"), timeout=SECONDS_MS
    )
    for page in (first, second):
        page.context.close()
    wait_for(hub.stop_server("zoe"))


def test_without_javascript_the_page_loads_again_and_keeps_its_words(
    waiting: Page,
    hub: HubProcess,  # noqa: F811
    browser: Browser,
) -> None:
    wait_for(hub.add_users("nora"))
    page = window(browser, hub, "nora", javascript=False)
    page.goto(f"{hub.url}/hub/spawn")
    choose(page, "gpu")
    page.wait_for_url("**/hub/spawn-pending/nora**")
    page.wait_for_url("**/hub/spawn-pending/nora**")
    expect(page.locator("[data-step=gpu]")).to_contain_text(SECOND, timeout=START_MS)
    expect(page.locator("h1")).to_contain_text("Your server waits for a GPU")
    expect(page.locator("#stop-server-btn")).to_be_hidden()
    take_picture_without_script(page, "queue-no-javascript")
    waiting.click("#stop-server-btn")
    expect(page.locator("[data-step=gpu]")).to_contain_text(FIRST, timeout=2 * SECONDS_MS)
    page.context.close()
    wait_for(hub.stop_server("nora"))


def test_without_javascript_a_start_is_cancelled_and_a_server_stopped(
    waiting: Page,
    hub: HubProcess,  # noqa: F811
    browser: Browser,
) -> None:
    wait_for(hub.add_users("nora"))
    page = window(browser, hub, "nora", javascript=False)
    page.goto(f"{hub.url}/hub/spawn/nora/train")
    choose(page, "gpu")
    page.wait_for_url("**/hub/spawn-pending/nora/train**")
    expect(page.locator("h1")).to_contain_text("Your server waits for a GPU", timeout=START_MS)
    page.click("#gpu-cancel")
    expect(page.locator("h1")).to_have_text("Stop this server?")
    expect(page.locator("main")).to_contain_text("Server “train” stops, or its start is cancelled.")
    waiting.goto(f"{hub.url}/services/gpu/own/stop/?user=ada&server=train")
    check_looks(waiting, "stop-server", clip="main")  # axe-core needs a script
    page.click("#gpu-stop")
    page.wait_for_url("**/hub/spawn**/nora/train")
    assert wait_for(hub.leases("nora")) == []
    assert wait_for(hub.spawn("nora", {"profile": "cpu"})).ready
    page.goto(f"{hub.url}/hub/home")
    page.get_by_role("link", name="Stop the default server").click()
    page.click("#gpu-stop")
    page.wait_for_url("**/hub/spawn**/nora")

    async def gone() -> bool:
        return not (await hub.server("nora") or {}).get("ready")

    wait_for(eventually(gone))
    page.context.close()


def test_a_start_that_fails_says_what_happened_with_the_log_folded_away(
    hub: HubProcess,  # noqa: F811
    browser: Browser,
) -> None:
    wait_for(hub.add_users("gina"))
    page = window(browser, hub, "gina")
    page.goto(f"{hub.url}/hub/spawn")
    choose(page, "mute")
    problem = page.locator("#gpu-problem")
    expect(problem).to_contain_text(
        "The container started, but the server in it didn't answer within 10 seconds.", timeout=START_MS
    )
    assert states(page) == [("image", "done"), ("container", "done"), ("server", "failed")]
    expect(page.get_by_text("warming up")).to_be_hidden()
    page.get_by_text("Last log lines").first.click()
    expect(problem.locator("pre")).to_have_text("warming up")
    check_looks(page)
    take_picture(page, "start-failed")
    page.reload()  # JupyterHub's page of a server whose last start failed
    expect(page.locator("h1")).to_have_text("Your server did not start")
    expect(page.get_by_role("link")).to_contain_text(["Try again", "Choose again"])
    check_looks(page)
    page.get_by_role("link", name="Choose again").click()
    expect(page.locator("input[name=profile][value=mute]")).to_be_checked()
    page.context.close()


def test_hostile_names_are_only_text(hub: HubProcess, browser: Browser) -> None:  # noqa: F811
    user, shown = (
        "<script>document.title='taken' \"שלום",
        'Mein <script>alert(1)</script> "שלום' + "y" * 200,
    )
    page = window(browser, hub, user)
    page.goto(f"{hub.url}/hub/spawn/{quote(user)}/s?{urlencode({'display_name': shown})}")
    expect(page.locator("#tier-odd-title")).to_contain_text("<script>document.title = 'taken'</script>")
    expect(page.locator("form")).to_contain_text(f"For your server {shown}")
    expect(page).to_have_title("Start a server · JupyterHub")
    check_looks(page)
    choose(page, "mute")
    expect(page.locator("main")).to_contain_text(f"A server that never answers · server “{shown}” of {user}")
    check_looks(page)
    page.click("#stop-server-btn")
    page.wait_for_url("**/hub/spawn/**", timeout=SECONDS_MS)
    page.goto(page.url.replace("hub/spawn", "hub/spawn-pending"))
    expect(page.locator("main")).to_contain_text(f"Server “{shown}” of {user}")
    check_looks(page)
    page.context.close()
