"""The spawn page in a browser, under a base URL: what it says of each tier, and who can use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from running import System, running_system

from tests.browser.looks import check_looks
from tests.hub.conftest import engine, images  # noqa: F401  (fixtures)

pytestmark = [pytest.mark.browser, pytest.mark.docker]

CONFIG = Path(__file__).with_name("choosing_config.py")
SETTINGS = {"GPUSPAWNER_IMAGE": "gpuspawner-hubtest/lab", "GPUSPAWNER_CONFIG": str(CONFIG)}


@pytest.fixture(scope="module")
def system(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:  # noqa: F811
    folder = tmp_path_factory.mktemp("c")
    with running_system(folder, config=CONFIG, base_url="/jupyter/", **SETTINGS) as found:
        yield found


def log_in(system: System, browser: Browser, user: str, **options: object) -> Page:
    """A window of its own in which `user` is logged in."""
    page = browser.new_context(viewport={"width": 1280, "height": 800}, **options).new_page()  # type: ignore[arg-type]
    page.goto(f"{system.url}hub/login?next=/jupyter/hub/spawn")
    page.fill("#username_input", user)
    page.fill("#password_input", system.password(user))
    page.click("#login_submit")
    page.wait_for_url("**/hub/spawn**")
    return page


def test_it_looks_right(system: System, browser: Browser) -> None:
    page = log_in(system, browser, "anna")
    check_looks(page, "spawn-form")
