"""Users and services on domains of their own, below a base URL: with real hub, broker, Docker and JupyterLab.

The pages and the labs then have other origins than the hub: links, cookies, events and buttons go from one to
another. What the buttons of "My GPU" do goes through the real hub here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request, expect

from tests.browser.login import log_in
from tests.running import System, running_system

pytestmark = [pytest.mark.browser, pytest.mark.docker]

CONFIG = Path(__file__).with_name("subdomain_config.py")
READY_MS = 120_000


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    settings = {"GPUSPAWNER_CONFIG": str(CONFIG), "GPUSPAWNER_SIMULATED": "1 x H100 80GB"}
    if image := os.environ.get("GPUSPAWNER_IMAGE"):
        settings["GPUSPAWNER_IMAGE"] = image
    folder = tmp_path_factory.mktemp("sd")
    running = running_system(folder, config=CONFIG, base_url="/jupyter/", domain="hub.localhost", **settings)
    with running as found:
        yield found


@pytest.fixture(scope="module")
def ada(browser: Browser, system: System) -> Iterator[Page]:
    """Ada's window, in which her server starts with the GPU. One story: each test goes on with it."""
    page = window(browser, system, "ada")
    page.goto(f"{system.url}hub/spawn")
    page.check("input[name=profile][value=gpu]")
    page.click("#spawn_form [type=submit]")
    yield page
    page.context.close()


def window(browser: Browser, system: System, user: str, javascript: bool = True) -> Page:
    """A window in which the user is logged in."""
    page = browser.new_context(java_script_enabled=javascript).new_page()
    return log_in(page, system.url, user, system.password(user))


def test_the_lab_is_on_the_user_s_domain_and_leads_to_my_gpu(ada: Page, system: System) -> None:
    ada.wait_for_url(re.compile(r"http://ada\.hub\.localhost:\d+/jupyter/user/ada/lab"), timeout=READY_MS)
    bar = ada.locator("#gpuspawner-status")
    expect(bar).to_have_text(re.compile(r"GPU simulated · (2 h 0|1 h 59) min left"), timeout=READY_MS)
    with ada.expect_popup() as opened:
        bar.click()
    page = opened.value
    page.wait_for_url(system.service_url)
    expect(page.locator("#gpu-mine h2")).to_contain_text("H100 80GB")
    page.close()


def test_my_gpu_follows_by_events_and_looks_like_the_hub(ada: Page, system: System) -> None:
    problems: list[str] = []
    ada.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page = re.compile(rf"{re.escape(system.url)}|{re.escape(system.service_url)}")

    def note_failure(request: Request) -> None:
        if page.match(request.url):  # what JupyterLab had just asked for is cut off when one leaves it
            problems.append(f"failed: {request.url}")

    ada.on("requestfailed", note_failure)
    with ada.expect_response("**/services/gpu/events") as events:
        ada.goto(system.service_url)
    assert events.value.status == 200
    expect(ada.locator(".navbar")).to_have_css("display", "flex")
    assert [each for each in problems if "/events" not in each] == []


def test_the_session_is_extended_through_the_hub(ada: Page) -> None:
    before = ada.locator(".gpu-end time").get_attribute("datetime")
    ada.get_by_role("button", name="Extend by 1 hour").click()
    expect(ada.locator("main > [role=status]")).to_have_text("Extended by 60 minutes.")
    expect(ada.locator(".gpu-end time")).not_to_have_attribute("datetime", before or "", timeout=30_000)
    expect(ada.get_by_role("button", name=re.compile("Extend"))).to_have_count(0)


def test_who_waits_leaves_the_queue_without_javascript(ada: Page, browser: Browser, system: System) -> None:
    page = window(browser, system, "ben", javascript=False)
    page.goto(f"{system.url}hub/spawn")
    page.check("input[name=profile][value=gpu]")
    page.click("#spawn_form [type=submit]")
    expect(page.locator("h1")).to_contain_text("Your server waits for a GPU", timeout=READY_MS)
    page.click("#gpu-cancel")
    assert page.url.startswith(system.service_url)
    page.click("#gpu-stop")
    page.wait_for_url(re.compile(rf"{re.escape(system.url)}hub/spawn"))
    page.context.close()


def test_a_server_goes_on_with_cpu_through_the_hub(ada: Page, system: System) -> None:
    ada.goto(system.service_url)
    ada.get_by_text("Continue on CPU…").click()
    ada.get_by_role("button", name="Give the GPU back and continue on CPU").click()
    expect(ada.locator("main > [role=status]")).to_contain_text(
        re.compile("Your server starts with CPU|When it has stopped"), timeout=READY_MS
    )
    expect(ada.get_by_role("heading", name="You hold no GPU")).to_be_visible(timeout=READY_MS)
    ada.goto(f"{system.url}hub/spawn")
    ada.wait_for_url(re.compile(r"http://ada\.hub\.localhost:\d+/jupyter/user/ada/"), timeout=READY_MS)


def test_an_admin_reaches_the_map_from_the_hub_s_admin_page(browser: Browser, system: System) -> None:
    page = window(browser, system, "admin")
    page.goto(f"{system.url}hub/admin")
    page.click("#gpu-admin-link")
    page.wait_for_url(f"{system.service_url}admin/")
    expect(page.locator("#admin-devices tbody tr")).to_have_count(1)
    page.context.close()
