"""Logging in as a user does, on the hub's own page: what each test with a browser begins with."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

from playwright.sync_api import Page


def log_in(page: Page, hub_url: str, user: str, password: str = "any", then: str = "hub/home") -> Page:
    """Logs in and returns the page, which is then at `then`, an address below the hub's base URL.

    `hub_url` has that base URL and ends with a slash. The dummy authenticator takes any password.
    """
    page.goto(f"{hub_url}hub/login?next={quote(urlsplit(hub_url).path + then, safe='')}")
    fill_login(page, user, password)
    page.wait_for_url(f"{hub_url}{then}**")
    return page


def fill_login(page: Page, user: str, password: str) -> None:
    """Fills the login form that the page shows, and sends it: a link has led there."""
    page.fill("#username_input", user)
    page.fill("#password_input", password)
    page.click("#login_submit")
