"""Classes at the service's address: who may see and do what, and only with their own class."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.api.access import READ_SCOPE, RESERVE_SCOPE
from gpuspawner.broker.api.public.classes import class_routes
from gpuspawner.broker.api.public.rules import joined, public_rules
from gpuspawner.broker.leases.hub_api import HubServer
from gpuspawner.broker.ledger import Result, Search
from gpuspawner.broker.observe.use import Use

from tests.unit.broker.test_pages_handlers import Pages, serving
from tests.unit.class_bench import GIB, ClassBench

STUDENTS = "classes/students"
INES, DEAN, NOETHER, ANNA, RUDI = (f"{name}-token" for name in ("ines", "dean", "noether", "anna", "reader"))


@dataclass
class Taught:
    """The service with a class behind it."""

    pages: Pages
    bench: ClassBench

    async def ask(self, method: str, path: str, token: str | None, body: Any = None) -> tuple[int, Any]:
        """Status and answer: JSON where it is some."""
        headers = {} if token is None else {"Authorization": f"token {token}"}
        data = None if body is None else json.dumps(body)
        url = f"{self.pages.url}api/{path}"
        async with self.pages.client.request(method, url, data=data, headers=headers) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text else text

    async def log(self) -> list[tuple[str, str, str, tuple[str, ...], Result]]:
        """The audit log, the oldest first."""
        found = await self.bench.broker.ledger.audited(Search())
        return [(w.author, w.action, w.subject, w.groups, w.result) for _, w in reversed(found)]


@pytest.fixture
async def taught(tmp_path: Path, times: Any) -> AsyncIterator[Taught]:
    bench = ClassBench(tmp_path, times)
    await bench.open()
    broker = bench.broker
    routes = joined(class_routes(bench.tools), public_rules(broker.site, broker.rules, broker.endings))
    async with serving(routes) as pages:
        yield Taught(pages, bench)
    await bench.close()


async def test_an_instructor_reads_the_roster_of_her_class(taught: Taught) -> None:
    bench = taught.bench
    ada, bob = await bench.run(1, "ada"), await bench.run(2, "bob")
    await bench.ask(3, "ada", "another", hub="another hub")
    cid = await bench.ask(4, "cid")
    bench.uses = {ada: Use(3 * GIB, 71.0)}
    bench.end_process(bob, "bob")
    status, roster = await taught.ask("GET", STUDENTS, INES)
    assert status == 200
    assert [(row["user"], row["state"], row["lease_id"], row["stuck"]) for row in roster["members"]] == [
        (
            "bob",
            "running",
            bob,
            "Out of GPU memory (used 9.0 GiB, may use 8.0 GiB): kernel ended. "
            "Try a smaller batch, or a tier with more memory.",
        ),
        ("cid", "waiting", cid, ""),
        ("ada", "running", ada, ""),
        ("dan", "never", None, ""),
    ]
    assert roster["members"][2]["memory_used_bytes"] == 3 * GIB
    assert (roster["counts"], roster["stuck_count"], roster["members_fault"], roster["message"]) == (
        {"waiting": 1, "running": 2, "never": 1}, 1, "", None,
    )  # fmt: skip


async def test_a_silent_hub_is_said(taught: Taught) -> None:
    await taught.bench.run(1, "ada")
    taught.bench.hub.fault = "no answer"
    _, roster = await taught.ask("GET", STUDENTS, INES)
    assert [row["user"] for row in roster["members"]] == ["ada"]
    assert roster["members_as_of"] is None
    assert roster["members_fault"] == (
        "The hub's list of members can't be read: no answer. "
        "The hub's list of servers can't be read: no answer."
    )


WRITES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("POST", "stop", {"everybody": True}),
    ("POST", "extend", {"everybody": True, "seconds": 600}),
    ("POST", "message", {"text": "Hi"}),
    ("DELETE", "message", {}),
)


@pytest.mark.parametrize(("method", "what", "body"), WRITES)
async def test_writing_needs_the_scope_for_the_group(
    taught: Taught, method: str, what: str, body: dict[str, Any]
) -> None:
    lab = await taught.bench.run(1, "eve", "another")
    for token in (ANNA, RUDI):
        status, answer = await taught.ask(method, f"{STUDENTS}/{what}", token, body)
        assert (status, answer["message"]) == (
            403, f"Your account may not change this: that needs the scope {RESERVE_SCOPE} of the hub.",
        )  # fmt: skip
    for token in (INES, DEAN):
        status, answer = await taught.ask(method, f"classes/another/{what}", token, body)
        assert (status, answer["reason"]) == (403, "not_allowed")
        assert answer["message"].endswith(f"{RESERVE_SCOPE} with !group=another of the hub.")
    status, answer = await taught.ask(method, f"{STUDENTS}/{what}", None, body)
    assert (status, answer["reason"]) == (401, "login_required")
    tried = [("anna", 0), ("rudi", 0), ("ines", 1), ("dean", 1)]
    assert [(each[0], len(each[3]), each[-1]) for each in await taught.log()] == [
        (*each, Result.REFUSED) for each in tried
    ]
    assert taught.bench.broker.allocator.lease(lab) is not None


async def test_reading_needs_the_scope_for_the_group(taught: Taught) -> None:
    for token in (INES, DEAN, RUDI):
        assert (await taught.ask("GET", STUDENTS, token))[0] == 200
        status, answer = await taught.ask("GET", "classes/another", token)
        assert (status, answer["message"]) == (
            403, "Your account may not see this: that needs the scope "
            f"{READ_SCOPE}, or {READ_SCOPE} with !group=another of the hub.",
        )  # fmt: skip
        assert await taught.ask("GET", "classes", token) == (
            200, {"groups": ["students"], "next": None},
        )  # fmt: skip
    assert (await taught.ask("GET", STUDENTS, ANNA))[0] == 403
    assert (await taught.ask("GET", "classes", ANNA))[0] == 403
    await taught.bench.run(1, "eve", "another")
    both = {"groups": ["another", "students"], "next": None}
    assert await taught.ask("GET", "classes", NOETHER) == (200, both)


async def test_one_some_or_all_are_stopped_and_strangers_stay(taught: Taught) -> None:
    bench = taught.bench
    ada, eve = await bench.run(1, "ada"), await bench.run(2, "eve", "another")
    await bench.ask(3, "bob")
    await bench.ask(4, "cid")
    status, done = await taught.ask("POST", f"{STUDENTS}/stop", INES, {"lease_ids": [ada, eve]})
    assert (status, done) == (200, {
        "done": 1, "refused": ["1 server has ended meanwhile, or is not of this class."],
    })  # fmt: skip
    assert bench.states() == {"eve": "running", "bob": "reserved", "cid": "waiting"}
    status, done = await taught.ask("POST", f"{STUDENTS}/stop", INES, {"everybody": True, "reason": "over"})
    assert (status, done) == (200, {"done": 2, "refused": []})
    assert bench.states() == {"eve": "running"}
    assert bench.ender.ended[0] == ("1", "stopped by ines, who teaches students")
    assert await taught.log() == [("ines", "stop servers", "group:students", ("students",), Result.DONE)] * 2


async def test_somebody_who_left_the_class_is_not_touched(taught: Taught) -> None:
    gone = await taught.bench.run(1, "zoe")  # she was a member when she asked
    status, answer = await taught.ask("POST", f"{STUDENTS}/stop", INES, {"lease_ids": [gone]})
    assert (status, answer) == (409, {
        "reason": "lease_conflict",
        "message": "No server was stopped. 1 server has ended meanwhile, or is not of this class.",
    })  # fmt: skip
    assert taught.bench.states() == {"zoe": "running"}
    assert [each[-1] for each in await taught.log()] == [Result.REFUSED]


async def test_servers_without_a_gpu_are_stopped_by_the_hub(taught: Taught) -> None:
    """With the sender's token; only those of the class, and all of it where everybody is chosen."""
    bench = taught.bench
    ada = await bench.run(1, "ada")
    bench.hub.running = {
        "ada": (HubServer("", "gpu", None), HubServer("notes", "cpu", None)),
        "bob": (HubServer("", "cpu", None),),
        "eve": (HubServer("", "cpu", None),),
    }
    one = {"servers": [{"user": "ada", "server": "notes"}, {"user": "eve"}, {"user": "ada"}]}
    status, done = await taught.ask("POST", f"{STUDENTS}/stop", INES, one)
    assert (status, done) == (200, {
        "done": 1, "refused": ["2 servers have ended meanwhile, or are not of this class."],
    })  # fmt: skip
    assert bench.hub_stop.asked == [(INES, "ada", "notes")]
    del bench.hub.running["ada"]
    status, done = await taught.ask("POST", f"{STUDENTS}/stop", DEAN, {"everybody": True})
    assert (status, done) == (200, {"done": 2, "refused": []})
    assert bench.hub_stop.asked[1:] == [(DEAN, "bob", "")]
    assert bench.broker.allocator.lease(ada) is None
    extend = {"servers": [{"user": "bob"}], "seconds": 600}
    status, answer = await taught.ask("POST", f"{STUDENTS}/extend", INES, extend)
    assert (status, answer["message"]) == (
        409, "No server was extended. bob: without a GPU, a server has no end.",
    )  # fmt: skip


async def test_what_didn_t_work_is_said_for_each(taught: Taught) -> None:
    bench = taught.bench
    ada, _ = await bench.run(1, "ada"), await bench.run(2, "bob")
    bench.ender.stuck = {ada}
    _, done = await taught.ask("POST", f"{STUDENTS}/stop", INES, {"everybody": True})
    assert done == {"done": 1, "refused": ["ada: Docker does not answer"]}
    status, answer = await taught.ask("POST", f"{STUDENTS}/stop", INES, {})
    assert (status, answer["message"]) == (400, "No server was chosen: mark at least one.")


async def test_sessions_are_extended_as_far_as_quotas_allow(taught: Taught) -> None:
    bench = taught.bench
    await bench.broker.rules.change_quota(
        "group:students", {"session_hours": 2, "extend_hours": 1}, "noether", ""
    )
    ada = await bench.run(1, "ada")
    extend = f"{STUDENTS}/extend"
    assert await taught.ask("POST", extend, INES, {"everybody": True, "seconds": 1800}) == (
        200, {"done": 1, "refused": []},
    )  # fmt: skip
    assert bench.broker.rules.rulebook.rules.extended_seconds == {ada: 1800.0}
    await taught.ask("POST", extend, INES, {"lease_ids": [ada], "seconds": 1800})
    status, answer = await taught.ask("POST", extend, INES, {"lease_ids": [ada], "seconds": 1800})
    assert (status, answer["message"]) == (
        409,
        "No server was extended. ada: The quota of ada allows no further extension (1 hour in all): ada has "
        "to save the work.",
    )


async def test_a_message_is_shown_with_its_author_and_taken_back(taught: Taught) -> None:
    body = {"text": "Save your work <b>now</b>.", "minutes": 10, "author": "the dean"}
    assert await taught.ask("POST", f"{STUDENTS}/message", INES, body) == (204, "")
    _, roster = await taught.ask("GET", STUDENTS, RUDI)
    shown = roster["message"]
    assert (shown["text"], shown["author"]) == ("Save your work <b>now</b>.", "ines")
    assert await taught.ask("DELETE", f"{STUDENTS}/message", INES, {}) == (204, "")
    assert (await taught.ask("GET", STUDENTS, RUDI))[1]["message"] is None
    status, answer = await taught.ask("DELETE", f"{STUDENTS}/message", INES, {})
    assert (status, answer["message"]) == (400, "There is no message to group:students.")
    for bad in ({"text": ""}, {"text": "x" * 256}, {"text": "a\nb"}, {"text": "Hi", "minutes": 0}):
        assert (await taught.ask("POST", f"{STUDENTS}/message", INES, bad))[0] == 400


async def test_devices_are_drained_by_admins_alone(taught: Taught) -> None:
    body = {"uuid": "GPU-0", "reason": "new fans"}
    for token in (ANNA, RUDI, INES, DEAN):
        for method in ("POST", "DELETE"):
            assert (await taught.ask(method, "drains", token, body))[0] == 403
    assert await taught.ask("POST", "drains", NOETHER, body) == (204, "")
    _, drains = await taught.ask("GET", "drains", INES)
    assert [(each["uuid"], each["author"], each["reason"]) for each in drains["drains"]] == [
        ("GPU-0", "noether", "new fans")
    ]
    await taught.bench.ask(1, "ada")
    (lease,) = taught.bench.broker.allocator.leases()
    assert lease.device_uuids == ("GPU-1",)
    status, answer = await taught.ask("POST", "drains", NOETHER, {"uuid": "GPU-9"})
    assert (status, answer["message"]) == (
        400, "There is no GPU 'GPU-9' here: see `gpuspawner status` for the UUIDs.",
    )  # fmt: skip
    assert await taught.ask("DELETE", "drains", NOETHER, body) == (204, "")
    assert (await taught.ask("DELETE", "drains", NOETHER, body))[0] == 400
    assert [entry[:3] for entry in await taught.log() if entry[0] == "noether"] == [
        ("noether", "drain device", "device:GPU-0"), ("noether", "drain device", "device:GPU-9"),
        ("noether", "undrain device", "device:GPU-0"), ("noether", "undrain device", "device:GPU-0"),
    ]  # fmt: skip
