"""Each route that changes something: which page may send it, a repetition with its id, and how often."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import pytest
from gpuspawner.broker.api.public.limits import WriteLimits
from gpuspawner.broker.api.public.origin import is_foreign
from gpuspawner.broker.ledger import Search

from tests.unit.broker.test_matrix import TABLE, Call, Site, site

__all__ = ["site"]  # the fixture

WRITES = tuple(call for call in TABLE if call.method != "get" and "noether" in call.allowed)
"""What an admin may do, by form or API."""
CALLS = tuple(call for call in WRITES if call.pattern.startswith("api/"))
FOREIGN = {"Origin": "https://evil.example"}


async def send(
    site: Site, call: Call, lease_id: str, headers: Mapping[str, str]
) -> tuple[int, Mapping[str, str], str]:
    """Status, headers and text of the call with these headers, by cookie if they bring no token."""
    sent = dict(headers)
    if call.form is not None:
        data: Any = urlencode({key: text.replace("LEASE", lease_id) for key, text in call.form.items()})
        sent["Content-Type"] = "application/x-www-form-urlencoded"
    else:
        data = None if call.body is None else json.dumps(call.body)
    url = site.pages.url + call.path.replace("LEASE", lease_id)
    async with site.pages.client.request(
        call.method.upper(), url, data=data, headers=sent, allow_redirects=False
    ) as answer:
        return answer.status, answer.headers, await answer.text()


def test_all_routes_are_walked() -> None:
    patterns = {(call.method, call.pattern) for call in WRITES}
    every = {(call.method, call.pattern) for call in TABLE if call.method != "get" and call.allowed}
    assert patterns == every
    assert len({call.pattern for call in CALLS}) > 15


async def logged_in(site: Site) -> str:
    """An admin's browser; the XSRF token of its page."""
    await site.pages.log_in("noether")
    _, _, page = await site.pages.get("")
    return page.split('xsrf_token: "')[1].split('"')[0]


async def test_without_the_xsrf_token_or_from_another_origin_a_cookie_changes_nothing(site: Site) -> None:
    token = await logged_in(site)
    lease_id = await site.scene()
    writes = len(await site.bench.broker.ledger.audited(Search()))
    state = site.bench.states()
    forged: tuple[tuple[str, dict[str, str]], ...] = (
        ("xsrf_missing", {}),
        ("xsrf_missing", FOREIGN),
        ("xsrf_missing", {"Origin": "null", "Sec-Fetch-Site": "cross-site"}),
        ("xsrf_missing", {"X-XSRFToken": "made-up"}),
        ("foreign_origin", {**FOREIGN, "X-XSRFToken": token}),
        ("foreign_origin", {"Origin": "null", "X-XSRFToken": token}),
        ("foreign_origin", {"Sec-Fetch-Site": "same-site", "X-XSRFToken": token}),
        ("foreign_origin", {"Sec-Fetch-Site": "cross-site", "X-XSRFToken": token}),
    )
    wrong = []
    for call in WRITES:
        for reason, headers in forged:
            status, _, text = await send(site, call, lease_id, headers)
            said = json.loads(text)["reason"] if call in CALLS else reason
            if (status, said) != (403, reason):
                wrong.append((call.method, call.path, headers, status, said))
    assert wrong == []
    assert len(await site.bench.broker.ledger.audited(Search())) == writes
    assert site.bench.states() == state


async def test_the_page_itself_and_a_program_with_a_token_may(site: Site) -> None:
    token = await logged_in(site)
    own = site.pages.url.partition("/base")[0]
    by_page: tuple[dict[str, str], ...] = (
        {"X-XSRFToken": token, "Origin": own, "Sec-Fetch-Site": "same-origin"},
        {"X-XSRFToken": token, "Origin": own},
    )
    by_token = {"Authorization": "token noether-token"}
    wrong = []
    for call in WRITES:
        for headers in (*by_page, by_token, {**by_token, **FOREIGN}):
            lease_id = await site.scene()
            status, _, text = await send(site, call, lease_id, headers)
            if status >= 400:
                wrong.append((call.method, call.path, headers, status, text[:200]))
    assert wrong == []


async def test_a_repeated_request_changes_nothing_and_gets_the_same_answer(site: Site) -> None:
    wrong = []
    ledger = site.bench.broker.ledger
    for number, call in enumerate(CALLS):
        lease_id = await site.scene()
        headers = {"Authorization": "token noether-token", "Idempotency-Key": f"request {number}"}
        before = await ledger.audited(Search(most=1))
        first = await send(site, call, lease_id, headers)
        between = await ledger.audited(Search(most=1))
        second = await send(site, call, lease_id, headers)
        after = await ledger.audited(Search(most=1))
        same = (first[0], first[2]) == (second[0], second[2])
        if first[0] >= 300 or not same or before == between or between != after:
            wrong.append((call.method, call.path, first[0], second[0]))
    assert wrong == []


async def test_a_repetition_is_answered_also_when_its_server_is_gone(site: Site) -> None:
    """The answer to the first one was lost, and the server has ended meanwhile."""
    lease_calls = [call for call in CALLS if "/leases/" in call.pattern]
    wrong = []
    for number, call in enumerate(lease_calls):
        lease_id = await site.scene()
        headers = {"Authorization": "token noether-token", "Idempotency-Key": f"gone {number}"}
        first = await send(site, call, lease_id, headers)
        await site.bench.ender.release(lease_id, "it is over")
        again = await send(site, call, lease_id, headers)
        other = await send(site, call, lease_id, {**headers, "Idempotency-Key": f"another {number}"})
        if first[0] >= 300 or (first[0], first[2]) != (again[0], again[2]) or other[0] != 409:
            wrong.append((call.path, first, again[0], other[0]))
    assert len(lease_calls) == 6
    assert wrong == []


async def test_an_instructor_s_repetition_is_answered_when_the_session_is_gone(site: Site) -> None:
    """Whose class it was isn't known any more."""
    (call,) = [each for each in CALLS if each.method == "delete" and "sessions" in each.pattern]
    lease_id = await site.scene()
    headers = {"Authorization": "token ines-token", "Idempotency-Key": "1"}
    assert [(await send(site, call, lease_id, headers))[0] for _ in range(2)] == [204, 204]
    assert (await send(site, call, lease_id, {**headers, "Idempotency-Key": "2"}))[0] == 403


async def test_who_writes_too_often_waits(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each route counts, also a form of a page; reading doesn't."""
    await logged_in(site)
    lease_id = await site.scene()
    monkeypatch.setattr(WriteLimits, "wait_seconds", lambda self, sender: 6.2)
    wrong = []
    for call in WRITES:
        status, headers, _ = await send(site, call, lease_id, {"Authorization": "token noether-token"})
        if (status, headers.get("Retry-After")) != (429, "7"):
            wrong.append((call.method, call.path, status))
    assert wrong == []
    assert (await site.pages.get("api/status", "noether-token"))[0] == 200


@pytest.mark.parametrize(
    ("headers", "foreign"),
    [
        ({}, False),
        ({"Host": "hub"}, False),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, False),  # the page says no-referrer
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Sec-Fetch-Site": "same-site", "Origin": "https://hub", "Host": "hub"}, True),
        ({"Sec-Fetch-Site": "new-word"}, True),
        ({"Origin": "https://hub.example.org", "Host": "hub.example.org"}, False),
        ({"Origin": "https://HUB.example.org", "Host": "hub.example.org:443"}, False),
        ({"Origin": "http://hub", "Host": "hub:80"}, False),
        ({"Origin": "http://hub:8000", "Host": "hub:8000"}, False),
        ({"Origin": "https://hub:8443", "Host": "hub"}, False),
        ({"Origin": "http://[::1]:8000", "Host": "[::1]:8000"}, False),
        (
            {
                "Origin": "https://hub.example.org",
                "Host": "127.0.0.1:9",
                "X-Forwarded-Host": "a, hub.example.org",
            },
            False,
        ),
        ({"Origin": "http://hub:9999", "Host": "hub:8000"}, True),
        ({"Origin": "https://evil.example", "Host": "hub"}, True),
        ({"Origin": "https://hub.evil.example", "Host": "hub"}, True),
        ({"Origin": "null", "Host": "hub"}, True),
        ({"Origin": "null", "Host": "null"}, True),
        ({"Origin": "", "Host": ""}, True),
        ({"Origin": "https://hub"}, True),
        ({"Origin": "https://[hub", "Host": "[hub"}, True),
        ({"Origin": "https://hub:port", "Host": "hub:port"}, True),
    ],
)
def test_which_origin_is_foreign(headers: dict[str, str], foreign: bool) -> None:
    assert is_foreign(headers) is foreign
