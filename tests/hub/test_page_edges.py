"""What a browser or a program asks of the pages in an unusual way, through a real proxy and a real hub."""

from __future__ import annotations

import html
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from gpuspawner.broker.pages.routes import TOKEN_SECONDS
from yarl import URL

from tests.hub.hubprocess import SOON_SECONDS, HubProcess, eventually
from tests.hub.lecture_page import WaitingPage, xsrf_of

pytestmark = pytest.mark.docker

PAGE = "/services/gpu/"


@pytest.mark.parametrize(
    ("method", "path", "status", "head"),
    [
        ("GET", f"{PAGE}static/%00", 404, {}),
        ("HEAD", f"{PAGE}health", 200, {}),
        ("PUT", f"{PAGE}health", 405, {"Allow": "GET, HEAD"}),
        ("GET", "/services/gpu", 302, {"Location": PAGE}),
        ("GET", "/services/gpu?from=menu", 302, {"Location": f"{PAGE}?from=menu"}),
    ],
)
async def test_addresses_without_a_login(
    hub: HubProcess, method: str, path: str, status: int, head: dict[str, str]
) -> None:
    async with hub.session() as session:
        address = URL(hub.url + path, encoded=True)
        async with session.request(
            method, address, headers={"Authorization": ""}, allow_redirects=False
        ) as answer:
            assert (answer.status, {name: answer.headers.get(name) for name in head}) == (status, head)
    assert "Traceback" not in hub.log


async def test_who_is_logged_in_and_sends_no_xsrf_token_is_told_that(hub: HubProcess) -> None:
    async with logged_in(hub, "ada") as page:
        async with page.session.get(PAGE) as answer:
            assert answer.status == 200
        same_origin = {"Origin": hub.url, "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
        async with page.session.post(f"{PAGE}own/{'a' * 32}/stop", data={}, headers=same_origin) as answer:
            text = await answer.text()
            assert answer.status == 403
            assert (
                "lacks the page's XSRF token".replace("'", "&#39;") in text
                or "lacks the page's XSRF token" in text
            )
            assert "Log in first" not in text


async def test_a_token_that_was_revoked_is_refused_soon(hub: HubProcess) -> None:
    await hub.add_users("ben")
    status, made = await hub.call("POST", "/users/ben/tokens", {"note": "program", "expires_in": 600})
    assert status == 201

    async def status_of_a_request() -> int:
        headers = {"Authorization": f"token {made['token']}"}
        async with hub.session() as session, session.get(f"{PAGE}api/status", headers=headers) as answer:
            return answer.status

    assert await status_of_a_request() == 200
    assert (await hub.call("DELETE", f"/users/ben/tokens/{made['id']}"))[0] == 204

    async def refused() -> bool:
        return await status_of_a_request() in (401, 403)

    await eventually(refused, TOKEN_SECONDS + SOON_SECONDS)


async def test_a_parameter_of_somebody_else_is_let_through_and_one_like_ours_is_not(hub: HubProcess) -> None:
    async with logged_in(hub, "carl") as page:
        assert (await spawned(page, "/hub/spawn?opt-profil=cpu"))[0] == 400
        _, where, _ = await spawned(page, "/hub/spawn?opt-profile=cpu&fbclid=1")
        assert where.path in ("/hub/spawn-pending/carl", "/user/carl/"), where  # the lab may be there already
        await hub.progress("carl")
        await hub.stop_server("carl")


async def test_after_a_refusal_the_start_without_a_gpu_leads_where_the_user_wanted_to_go(
    hub: HubProcess,
) -> None:
    async with logged_in(hub, "dora") as page:
        wanted = "/hub/user-redirect/tree/course"
        address = f"/hub/spawn/dora?next={wanted}"
        async with page.session.get(URL(hub.url + address, encoded=True)) as answer:
            token = xsrf_of(html.unescape(await answer.text()))
        form_address = URL(f"{hub.url}{address}&_xsrf={token}", encoded=True)
        async with page.session.post(form_address, data={"profile": "big"}) as answer:
            text = await answer.text()
        assert "CPU" in text
        assert "next=%2Fhub%2Fuser-redirect%2Ftree%2Fcourse" in text, text


@asynccontextmanager
async def logged_in(hub: HubProcess, user: str) -> AsyncIterator[WaitingPage]:
    """A browser of this user."""
    await hub.add_users(user)
    page = WaitingPage(hub.url, user, hub.password)
    try:
        await page.log_in()
        yield page
    finally:
        await page.close()


async def spawned(page: WaitingPage, path: str) -> tuple[int, Any, str]:
    """Status, address and text of the page to which a link leads."""
    async with page.session.get(URL(page.url + path, encoded=True)) as answer:
        return answer.status, answer.url, await answer.text()
