"""The rules at the service's address: who may read and change them, and whose name the ledger gets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from gpuspawner.broker.pages import ADMIN_SCOPE, READ_SCOPE, public_rules
from gpuspawner.core.decision import DecisionKind
from yarl import URL

from tests.unit.broker.test_pages_handlers import PREFIX, Pages, serving
from tests.unit.rules_bench import Served

CHANGE = {"subject": "group:students", "values": {"devices": 2}, "reason": "exam week"}
LAB = {
    "name": "cs231n", "group": "students", "tier": "gpu", "seats": 1, "first": "2026-11-30",
    "begins": "10:00", "length_seconds": 7200,
}  # fmt: skip


@dataclass
class Rules:
    """The service with rules behind it."""

    pages: Pages
    broker: Served

    async def ask(
        self, method: str, path: str, token: str | None = None, body: Any = None, **headers: str
    ) -> tuple[int, Any]:
        """Status and answer: JSON where it is some."""
        if token is not None:
            headers["Authorization"] = f"token {token}"
        url = f"{self.pages.url}api/{path}"
        data = None if body is None else body if isinstance(body, str) else json.dumps(body)
        async with self.pages.client.request(method, url, data=data, headers=headers) as answer:
            text = await answer.text()
            is_json = answer.content_type == "application/json" and text
            return answer.status, json.loads(text) if is_json else text

    def authors(self) -> list[tuple[str, str]]:
        """Who decided what, as the ledger has it."""
        book = self.broker.rules.rulebook
        return [(each.author, each.reason) for kind in DECIDED for each in book.history(kind)]


DECIDED = (DecisionKind.QUOTA, DecisionKind.GRANT, DecisionKind.SESSION)


@pytest.fixture
async def rules(tmp_path: Path, times: Any) -> AsyncIterator[Rules]:
    times.wall = times.wall.replace(year=2026, month=11, day=26)
    broker = Served(tmp_path, times)
    await broker.open()
    async with serving(public_rules(broker.site, broker.rules, broker.endings)) as pages:
        yield Rules(pages, broker)
    await broker.close()
    broker.loop.close()


async def test_a_change_has_the_author_that_the_hub_names(rules: Rules) -> None:
    assert await rules.ask("POST", "quotas", "noether-token", CHANGE) == (204, "")
    forged = {"subject": "group:students", "gpu_hours": 5, "reason": "sorry", "author": "the dean"}
    assert await rules.ask("POST", "grants", "noether-token", forged) == (204, "")
    lab = {"session": LAB, "reason": "course"}
    status, taken = await rules.ask("POST", "sessions", "robot-token", lab)
    assert (status, taken["session"]["name"]) == (200, "cs231n")
    assert rules.authors() == [("noether", "exam week"), ("noether", "sorry"), ("service robot", "course")]
    status, shown = await rules.ask("GET", "quotas", "monitor-token")
    (students,) = (each for each in shown["quotas"] if each["subject"] == "group:students")
    assert (status, students["changed"]) == (200, {"devices": 2})
    assert [each["author"] for each in shown["history"]] == ["noether", "noether"]


async def test_what_can_be_read_and_taken_back(rules: Rules) -> None:
    await rules.ask("POST", "quotas", "noether-token", CHANGE)
    await rules.ask("POST", "sessions", "noether-token", {"session": LAB})
    status, report = await rules.ask("GET", "report?by=group", "monitor-token")
    assert (status, report["by"], report["lines"]) == (200, "group", [])
    status, calendar = await rules.ask("GET", "sessions/calendar", "monitor-token")
    assert (status, calendar.splitlines()[0]) == (200, "BEGIN:VCALENDAR")
    imported = {"calendar": calendar.replace("cs231n", "cs224n"), "group": "g", "tier": "gpu", "seats": 1}
    status, _ = await rules.ask("POST", "sessions/calendar", "noether-token", imported)
    assert status == 200
    assert await rules.ask("DELETE", "sessions/cs231n", "noether-token", {"reason": "ill"}) == (204, "")
    body = {"subject": "group:students", "reason": "over"}
    assert await rules.ask("DELETE", "quotas", "noether-token", body) == (204, "")
    _, sessions = await rules.ask("GET", "sessions", "monitor-token")
    assert [each["session"]["name"] for each in sessions["sessions"]] == ["cs224n"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "quotas"), ("GET", "report"), ("GET", "sessions"), ("GET", "sessions/calendar"),
        ("POST", "quotas"), ("DELETE", "quotas"), ("POST", "grants"), ("POST", "sessions"),
        ("DELETE", "sessions/cs231n"), ("POST", "sessions/calendar"),
    ],
)  # fmt: skip
async def test_each_needs_its_scope(rules: Rules, method: str, path: str) -> None:
    scope, does = (READ_SCOPE, "see") if method == "GET" else (ADMIN_SCOPE, "change")
    sentence = f"Your account may not {does} this: that needs the scope {scope} of the hub."
    lacks = "anna-token" if method == "GET" else "monitor-token"
    assert await rules.ask(method, path, lacks) == (403, {"reason": "not_allowed", "message": sentence})
    for token in (None, "wrong-token"):
        status, answer = await rules.ask(method, path, token, CHANGE)
        assert (status, answer["reason"]) == (401, "login_required")
    status, answer = await rules.ask(method, path, "outsider-token", CHANGE)
    assert (status, answer["reason"]) == (403, "not_allowed")
    assert rules.authors() == []


async def test_a_cookie_changes_nothing_without_the_hub_s_xsrf_token(rules: Rules) -> None:
    await rules.pages.log_in("noether")
    assert (await rules.ask("GET", "quotas"))[0] == 200
    status, answer = await rules.ask("POST", "quotas", None, CHANGE)
    assert (status, answer["reason"]) == (403, "xsrf_missing")
    assert rules.authors() == []
    await rules.pages.get("")
    host = f"http://{urlsplit(rules.pages.url).netloc}"
    token = rules.pages.client.cookie_jar.filter_cookies(URL(host + PREFIX))["_xsrf"].value
    assert await rules.ask("POST", "quotas", None, CHANGE, **{"X-XSRFToken": token}) == (204, "")
    assert rules.authors() == [("noether", "exam week")]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ({"values": {}}, "The request lacks 'subject'"),
        ({**CHANGE, "values": {"devices": -1}}, "devices is -1"),
    ],
)
async def test_what_is_not_well_formed_is_a_sentence(rules: Rules, body: Any, words: str) -> None:
    status, answer = await rules.ask("POST", "quotas", "noether-token", body)
    assert (status, answer["reason"]) == (400, "bad_option")
    assert words in answer["message"]
    assert rules.authors() == []


async def test_what_only_the_hub_asks_is_not_there(rules: Rules) -> None:
    for path in ("allowance", "servers", f"leases/{1:032x}/extend"):
        assert (await rules.ask("GET", path, "noether-token"))[0] == 404
