"""What an admin announces is on the hub's pages, on the spawn page and on the GPU page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.login import log_in
from tests.hubstart import free_ports
from tests.recipes import adapted, blocks
from tests.running import System, system_with

pytestmark = [pytest.mark.browser, pytest.mark.docker]

HEADING = "Announcements"
FIXED = "On Friday from 6 pm the GPUs are switched off for an hour."
PAGES = ("hub/home", "hub/spawn", "services/gpu/")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A hub with both recipes, and jupyterhub-announcement beside it."""
    folder: Path = tmp_path_factory.mktemp("news")
    fixed, service = blocks(HEADING, "python")
    (page,) = blocks(HEADING, "html")
    (folder / "announcements" / "templates").mkdir(parents=True)
    (folder / "announcements" / "templates" / "page.html").write_text(page)
    own = {"/srv/": f"{folder}/", "8010": str(free_ports(1))}
    settings = f"{fixed}\n{adapted(service, own)}"
    with system_with(folder, settings, GPUSPAWNER_SIMULATED="1 x H100 80GB") as running:
        yield running


def window(browser: Browser, system: System, user: str) -> Page:
    """A window in which `user` is logged in."""
    page = browser.new_context(viewport={"width": 1200, "height": 700}).new_page()
    return log_in(page, system.url, user, system.password(user))


def test_a_fixed_one_is_everywhere(browser: Browser, system: System) -> None:
    page = window(browser, system, "ada")
    for path in PAGES:
        page.goto(system.url + path)
        expect(page.get_by_text(FIXED)).to_be_visible()
    page.context.close()


def test_one_that_an_admin_writes_is_everywhere(browser: Browser, system: System) -> None:
    admin = window(browser, system, "admin")
    admin.goto(f"{system.url}services/announcement/")
    admin.fill("[name=announcement]", "Room 101 <b>moved</b> to 204.")
    admin.click("form [type=submit]")
    expect(admin.get_by_role("heading", name="Latest Announcement")).to_be_visible()
    page = window(browser, system, "bob")
    for path in PAGES:
        page.goto(system.url + path)
        expect(page.locator("#site-announcement")).to_have_text("Room 101 moved to 204.")
        expect(page.get_by_text(FIXED)).to_be_visible()
    admin.context.close()
    page.context.close()


def test_a_student_can_not_write_one(browser: Browser, system: System) -> None:
    page = window(browser, system, "carla")
    page.goto(f"{system.url}services/announcement/")
    expect(page.get_by_text("Room 101").first).to_be_visible()
    expect(page.locator("[name=announcement]")).to_have_count(0)
    page.context.close()
