"""The rules at the service's address: who may read and change them, and whose name the ledger gets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from gpuspawner.broker.api.access import ADMIN_SCOPE, READ_SCOPE, RESERVE_SCOPE
from gpuspawner.broker.api.public.limits import BURST
from gpuspawner.broker.api.public.rules import public_rules
from gpuspawner.broker.ledger import Result, Search
from gpuspawner.core.decision import DecisionKind
from gpuspawner.core.model import GpuRequest, LeaseState
from gpuspawner.core.want import Want
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
    changing = RESERVE_SCOPE if path.startswith("sessions") else ADMIN_SCOPE
    scope, does = (READ_SCOPE, "see") if method == "GET" else (changing, "change")
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


async def test_a_repeated_request_is_carried_out_once(rules: Rules) -> None:
    grant = {"subject": "group:students", "gpu_hours": 5, "reason": "sorry"}
    named = {"Idempotency-Key": "grant-1"}
    for _ in range(2):
        assert await rules.ask("POST", "grants", "noether-token", grant, **named) == (204, "")
    assert rules.authors() == [("noether", "sorry")]
    status, answer = await rules.ask("POST", "grants", "noether-token", {**grant, "gpu_hours": 6}, **named)
    assert (status, answer["reason"]) == (409, "request_conflict")
    lab = {"session": LAB, "reason": "course"}
    answers = [
        await rules.ask("POST", "sessions", "robot-token", lab, **{"Idempotency-Key": "lab"}) for _ in "ab"
    ]
    assert answers[0] == answers[1]
    status, answer = await rules.ask(
        "POST", "grants", "noether-token", grant, **{"Idempotency-Key": "x" * 129}
    )
    assert (status, answer["message"]) == (400, "Idempotency-Key must have 1 to 128 characters.")


async def test_each_change_is_in_the_audit_log(rules: Rules) -> None:
    await rules.ask("POST", "quotas", "noether-token", CHANGE)
    await rules.ask("POST", "sessions", "robot-token", {"session": {**LAB, "seats": 7}})
    await rules.ask("POST", "quotas", "anna-token", CHANGE)  # may not
    await rules.ask("POST", "quotas", "dean-token", {**CHANGE, "subject": "group:phd"})  # not for this group
    found = await rules.broker.ledger.audited(Search())
    assert [
        (each.author, each.via, each.action, each.subject, each.groups, each.result) for _, each in found
    ] == [
        ("dean", "api", "change quota", "group:phd", ("phd",), Result.REFUSED),
        ("anna", "api", "POST quotas", "api", (), Result.REFUSED),
        ("service robot", "api", "save lab session", "session:cs231n", ("students",), Result.REFUSED),
        ("noether", "api", "change quota", "group:students", ("students",), Result.DONE),
    ]
    assert (found[3][1].document, found[3][1].reason) == (
        {"subject": "group:students", "values": {"devices": 2}, "end_servers": False},
        "exam week",
    )


async def test_who_writes_too_often_waits(rules: Rules) -> None:
    for _ in range(BURST):
        assert (await rules.ask("POST", "quotas", "noether-token", "{"))[0] == 400
    url = f"{rules.pages.url}api/quotas"
    headers = {"Authorization": "token noether-token"}
    async with rules.pages.client.post(url, data=json.dumps(CHANGE), headers=headers) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (429, "2")
        assert (await answer.json())["reason"] == "too_many_requests"
    assert (await rules.ask("GET", "quotas", "noether-token"))[0] == 200
    assert (await rules.ask("POST", "quotas", "robot-token", CHANGE))[0] == 204


OWN = {"session": LAB, "reason": ""}
OTHERS = {"session": {**LAB, "name": "other", "group": "phd"}, "reason": ""}
STUDENTS = {"subject": "group:students", "values": {"devices": 2}, "gpu_hours": 1, "reason": "r"}


@pytest.mark.parametrize(
    ("token", "method", "path", "body", "status"),
    [
        ("reader-token", "GET", "quotas", None, 200),
        ("reader-token", "POST", "sessions", OWN, 403),
        ("ines-token", "POST", "sessions", OWN, 200),
        ("ines-token", "POST", "sessions", OTHERS, 403),
        ("ines-token", "DELETE", "sessions/of-phd", {"reason": ""}, 403),
        ("ines-token", "POST", "sessions", {"session": {**LAB, "name": "of-phd"}, "reason": ""}, 403),
        ("ines-token", "POST", "quotas", {k: v for k, v in STUDENTS.items() if k != "gpu_hours"}, 403),
        ("dean-token", "POST", "quotas", {k: v for k, v in STUDENTS.items() if k != "gpu_hours"}, 204),
        ("dean-token", "POST", "grants", {"subject": "group:phd", "gpu_hours": 1, "reason": "r"}, 403),
        ("dean-token", "POST", "grants", {"subject": "user:anna", "gpu_hours": 1, "reason": "r"}, 403),
        ("dean-token", "POST", "grants", {"subject": "everybody", "gpu_hours": 1, "reason": "r"}, 403),
        ("dean-token", "POST", "grants", {"subject": "group:students", "gpu_hours": 1, "reason": "r"}, 204),
    ],
)
async def test_a_scope_for_a_group_is_for_that_group(
    rules: Rules, token: str, method: str, path: str, body: Any, status: int
) -> None:
    other = {"session": {**LAB, "name": "of-phd", "group": "phd", "begins": "15:00"}, "reason": ""}
    assert (await rules.ask("POST", "sessions", "noether-token", other))[0] == 200
    before = rules.authors()
    found, answer = await rules.ask(method, path, token, body)
    assert (found, answer.get("reason") if found == 403 else "") == (
        status,
        "not_allowed" if found == 403 else "",
    )
    assert (rules.authors() == before) == (method == "GET" or status == 403)


async def test_what_a_reader_of_one_group_sees(rules: Rules) -> None:
    for name, group, begins in (("cs231n", "students", "10:00"), ("of-phd", "phd", "15:00")):
        session = {**LAB, "name": name, "group": group, "begins": begins}
        assert (await rules.ask("POST", "sessions", "noether-token", {"session": session}))[0] == 200
    await rules.ask("POST", "quotas", "noether-token", CHANGE)
    await rules.ask("POST", "quotas", "noether-token", {**CHANGE, "subject": "group:phd"})
    _, sessions = await rules.ask("GET", "sessions", "reader-token")
    assert [each["session"]["name"] for each in sessions["sessions"]] == ["cs231n"]
    _, calendar = await rules.ask("GET", "sessions/calendar", "reader-token")
    assert ("cs231n" in calendar, "of-phd" in calendar) == (True, False)
    _, quotas = await rules.ask("GET", "quotas", "reader-token")
    assert {each["subject"] for each in quotas["quotas"]} <= {"everybody", "group:students"}
    assert [each["subject"] for each in quotas["history"]] == ["group:students"]
    assert (await rules.ask("GET", "report?by=user", "reader-token"))[0] == 200


async def test_an_admin_ends_a_server_that_the_hub_does_not_know(rules: Rules) -> None:
    """Through the release path of every other end; one that the hub knows is the hub's to stop."""
    allocator, lease_id = rules.broker.allocator, f"{1:032x}"
    await allocator.acquire(GpuRequest(lease_id, "hub", "ada", "train", "gpu", Want(1), ("students",)))
    await allocator.set_running(lease_id, "c1")
    path, body = f"leases/{lease_id}/end", {"reason": "renamed"}
    status, answer = await rules.ask("POST", path, "noether-token", body)
    assert (status, answer["message"]) == (
        409,
        "The hub knows this server: stop it on the hub's admin page.",
    )
    rules.broker.unknown = {lease_id}
    status, answer = await rules.ask("POST", path, "monitor-token", body)
    assert (status, answer["reason"]) == (403, "not_allowed")
    assert (lease := allocator.lease(lease_id)) is not None
    assert lease.state is LeaseState.RUNNING
    assert await rules.ask("POST", path, "noether-token", body) == (204, "")
    assert (lease := allocator.lease(lease_id)) is not None
    assert (lease.state, lease.reason) == (
        LeaseState.RELEASING,
        "ended by noether: the hub doesn't know it",
    )
    (_, write), (_, tried) = await rules.broker.ledger.audited(Search())
    assert (tried.action, tried.author, tried.result) == (
        f"POST leases/{lease_id}/end", "service monitor", Result.REFUSED,
    )  # fmt: skip
    assert (write.action, write.subject, write.author, write.reason, write.result) == (
        "end", "user:ada", "noether", "renamed", Result.DONE,
    )  # fmt: skip
    status, answer = await rules.ask("POST", f"leases/{2:032x}/end", "noether-token", body)
    assert (status, answer["reason"]) == (409, "lease_conflict")
