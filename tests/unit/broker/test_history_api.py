"""The past by the API: audit log, timeline, guard and doctor, in pages and by scope."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.api.public.history import HistoryTools, history_routes
from gpuspawner.broker.leases.audit import Answer, Asked
from gpuspawner.broker.ledger import EndedProcess
from gpuspawner.broker.observe.checkup import Checkup, Line
from gpuspawner.core.model import GpuRequest
from gpuspawner.core.want import Want

from tests.unit.broker.test_pages_handlers import Pages, serving
from tests.unit.class_bench import ClassBench


@dataclass
class Past:
    """The service with a class behind it."""

    pages: Pages
    bench: ClassBench
    checkup: Checkup

    async def get(self, path: str, who: str = "monitor") -> Any:
        status, _, text = await self.pages.get(f"api/{path}", f"{who}-token")
        assert status == 200, text
        return json.loads(text)

    async def refused(self, path: str, who: str = "monitor") -> tuple[int, str]:
        status, _, text = await self.pages.get(f"api/{path}", f"{who}-token")
        return status, json.loads(text)["message"]

    async def walk(self, path: str, who: str = "monitor", limit: int = 2) -> list[Any]:
        """The entries of all pages, each page with `limit` of them at most."""
        found, cursor = [], ""
        while True:
            page = await self.get(f"{path}limit={limit}{cursor}", who)
            assert len(page["entries"]) <= limit
            found += page["entries"]
            if page["next"] is None:
                return found
            cursor = f"&cursor={page['next']}"


@pytest.fixture
async def past(tmp_path: Path, times: Any) -> AsyncIterator[Past]:
    bench = ClassBench(tmp_path, times)
    await bench.open()
    broker = bench.broker
    checkup = Checkup(lambda: (Line("problem", "Docker", "it is down", "start it"),), times.now)
    tools = HistoryTools(broker.site, broker.rules, broker.endings, broker.ledger, checkup, times.now)
    async with serving(history_routes(tools), lambda url: None) as pages:  # type: ignore[arg-type,return-value]
        yield Past(pages, bench, checkup)
    checkup.close()
    await bench.close()


async def write(past: Past, number: int, author: str = "noether", **document: Any) -> None:
    async def nothing() -> Answer:
        return Answer(sentence="Done.")

    asked = Asked(author, "api", f"action {number % 2}", f"number:{number}", (), document, "why")
    await past.bench.broker.rules.audit.write(asked, nothing)


async def test_the_audit_log_in_pages(past: Past, times: Any) -> None:
    for number in range(5):
        await write(past, number, "ada" if number == 3 else "noether", n=number)
    whole = await past.get("audit")
    assert (whole["next"], len(whole["entries"])) == (None, 5)
    first = whole["entries"][0]
    assert first == {
        "number": 9, "id": first["id"], "at": "2025-03-01T12:00:00Z", "author": "noether", "via": "api",
        "action": "action 0", "subject": "number:4", "groups": [], "details": {"n": 4}, "reason": "why",
        "result": "done", "message": "Done.", "ended_at": "2025-03-01T12:00:00Z",
    }  # fmt: skip
    assert await past.walk("audit?") == whole["entries"]
    subjects = [each["subject"] for each in await past.walk("audit?action=action+1&")]
    assert subjects == ["number:3", "number:1"]
    assert [each["subject"] for each in await past.walk("audit?author=ada&")] == ["number:3"]


async def test_long_details_are_left_out(past: Past) -> None:
    await write(past, 0, calendar="x" * 5000)
    assert (await past.get("audit"))["entries"][0]["details"] is None


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("limit=0", "limit must be a whole number from 1 to 1000."),
        ("limit=1001", "limit must be a whole number from 1 to 1000."),
        ("limit=many", "limit must be a whole number from 1 to 1000."),
        (
            "cursor=4th",
            "cursor must be what the page before has as next; leave it out for the first page.",
        ),
    ],
)
async def test_a_page_that_does_not_exist(past: Past, query: str, sentence: str) -> None:
    for path in ("audit", "timeline", "guard"):
        assert await past.refused(f"{path}?{query}") == (400, sentence)


async def test_what_concerns_everybody_is_for_those_who_see_everybody(past: Past) -> None:
    sentence = (
        "Your account may not see this: it concerns everybody, so it needs the scope custom:gpu:read of the "
        "hub without !group."
    )
    for path in ("audit", "doctor"):
        assert await past.refused(path, "ines") == (403, sentence)
        assert (await past.refused(path, "anna"))[0] == 403


async def stays(past: Past, times: Any) -> None:
    """Ada of the class for an hour from noon, eve of another for an hour from one o'clock, then ada again."""
    bench = past.bench
    for number, (user, group) in enumerate((("ada", "students"), ("eve", "another"), ("ada", "students"))):
        lease_id = await bench.run(number, user, group)
        times.pass_seconds(3600)
        if number < 2:
            await bench.ender.release(lease_id, "it is over")


async def test_who_held_what_in_a_range_of_time(past: Past, times: Any) -> None:
    noon = times.now()
    await stays(past, times)
    whole = await past.get("timeline")
    assert (whole["start"], whole["end"]) == ("2025-02-28T15:00:00Z", "2025-03-01T15:00:00Z")
    assert whole["entries"][1] == {
        "number": 2, "lease_id": f"{1:032x}", "hub": "hub", "user": "eve", "server": "", "tier": "gpu",
        "groups": ["another"], "node": "", "device_uuids": ["GPU-0"], "gpu_fraction": 1.0,
        "started_at": "2025-03-01T13:00:00Z", "ended_at": "2025-03-01T14:00:00Z",
    }  # fmt: skip
    assert [each["ended_at"] is None for each in whole["entries"]] == [True, False, False]
    assert await past.walk("timeline?", limit=1) == whole["entries"]
    end = (noon + timedelta(minutes=30)).isoformat().replace("+00:00", "Z")
    start = (noon + timedelta(minutes=90)).isoformat().replace("+00:00", "Z")
    users = lambda entries: [each["user"] for each in entries]  # noqa: E731
    assert users(await past.walk(f"timeline?end={end}&")) == ["ada"]
    assert users(await past.walk(f"timeline?start={start}&")) == ["ada", "eve"]
    assert users(await past.walk("timeline?user=eve&")) == ["eve"]
    assert users(await past.walk("timeline?device=GPU-0&")) == ["ada", "eve", "ada"]
    assert await past.walk("timeline?device=GPU-1&") == []
    assert await past.refused(f"timeline?start={start}&end={end}") == (400, "start must be before end.")
    assert (await past.refused("timeline?start=yesterday"))[0] == 400


async def test_an_instructor_sees_the_past_of_the_class(past: Past, times: Any) -> None:
    await stays(past, times)
    ledger = past.bench.broker.ledger
    for number, user in enumerate(("ada", "eve")):
        await ledger.record(EndedProcess(
            at=times.now(), offence="memory", lease_id=f"{number:032x}", hub="hub", user=user, server="",
            container_id="c", device_uuid="GPU-0", pid=7, name="python", used_bytes=9, quota_bytes=8,
            over_seconds=2.0, sentence="Your process was ended",
        ))  # fmt: skip
    assert {each["user"] for each in await past.walk("timeline?", "reader")} == {"ada"}
    assert [each["user"] for each in await past.walk("guard?", "reader", 1)] == ["ada"]
    assert [each["user"] for each in await past.walk("guard?", "monitor", 1)] == ["eve", "ada"]
    assert (await past.get("guard"))["entries"][0] == {
        "number": 2, "at": "2025-03-01T15:00:00Z", "offence": "memory", "lease_id": f"{1:032x}", "hub": "hub",
        "user": "eve", "server": "", "container_id": "c", "device_uuid": "GPU-0", "pid": 7, "name": "python",
        "used_bytes": 9, "quota_bytes": 8, "over_seconds": 2.0, "sentence": "Your process was ended",
        "groups": ["another"],
    }  # fmt: skip


async def test_of_a_member_s_other_groups_an_instructor_reads_nothing(past: Past, times: Any) -> None:
    groups = ("another", "students")
    allocator = past.bench.broker.allocator
    await allocator.acquire(GpuRequest("f" * 32, "hub", "ada", "", "gpu", Want(1), groups))
    await allocator.set_running("f" * 32, "c")
    assert (await past.get("timeline", "reader"))["entries"][0]["groups"] == ["students"]
    assert (await past.get("timeline"))["entries"][0]["groups"] == ["another", "students"]


async def test_a_group_of_the_same_name_on_another_hub_is_another_group(past: Past) -> None:
    await past.bench.run(1, "ada", hub="elsewhere")
    assert await past.walk("timeline?", "reader") == []
    assert [each["hub"] for each in await past.walk("timeline?")] == ["elsewhere"]


async def test_what_doctor_found_and_a_new_check(past: Past, times: Any) -> None:
    begun = await past.get("doctor")
    assert begun == {"at": None, "running": True, "fault": "", "findings": []}
    while past.checkup.report.running:
        await asyncio.sleep(0.01)
    finding = {"level": "problem", "subject": "Docker", "text": "it is down", "remedy": "start it"}
    found = {"at": "2025-03-01T12:00:00Z", "running": False, "fault": "", "findings": [finding]}
    assert await past.get("doctor") == found
    headers = {"Authorization": "token noether-token"}
    async with past.pages.client.post(f"{past.pages.url}api/doctor", headers=headers) as answer:
        assert (answer.status, await answer.json()) == (200, {**found, "running": True})
    assert (await past.get("audit"))["entries"][0]["action"] == "check machine"
    while past.checkup.report.running:
        await asyncio.sleep(0.01)
