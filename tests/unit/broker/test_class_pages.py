"""The pages of classes and of admins: each role with each page and form, and what they show and do."""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from gpuspawner.broker.api.public.rules import joined
from gpuspawner.broker.leases.audit import Answer, Asked
from gpuspawner.broker.ledger import EndedProcess, Result, Search
from gpuspawner.broker.observe.use import Use
from gpuspawner.broker.pages.admin.base import AdminTools
from gpuspawner.broker.pages.admin.checkup import Checkup, Line
from gpuspawner.broker.pages.admin.handlers import admin_pages
from gpuspawner.broker.pages.admin.map import Readings
from gpuspawner.broker.pages.classes.base import Teaching
from gpuspawner.broker.pages.classes.handlers import class_pages
from gpuspawner.core.disk import Disk
from gpuspawner.node.api import Usage, XidSeen

from tests.unit.broker.test_pages_handlers import Pages, serving
from tests.unit.class_bench import GIB, ClassBench

CLASS = "classes/students/"
HOSTILE = """x"'><script>alert(1)</script>"""


@dataclass
class Staff:
    """The service with a class and a machine behind it."""

    pages: Pages
    bench: ClassBench
    checkup: Checkup

    async def get(self, path: str, who: str | None) -> tuple[int, str]:
        """Status and HTML."""
        status, _, text = await self.pages.get(path, None if who is None else f"{who}-token")
        return status, text

    async def words(self, path: str, who: str) -> str:
        """What the page says, without its tags."""
        status, text = await self.get(path, who)
        assert status == 200
        main = text.split("<main", 1)[1].split("</main>")[0]
        return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", main)).split())

    async def post(self, path: str, who: str | None, **form: Any) -> tuple[int, str]:
        """Status and HTML of a form that was sent; a redirect is not followed."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        if who is not None:
            headers["Authorization"] = f"token {who}-token"
        async with self.pages.client.post(
            self.pages.url + path, data=urlencode(form, doseq=True), headers=headers, allow_redirects=False
        ) as answer:
            return answer.status, await answer.text()

    async def said(self, path: str, who: str, **form: Any) -> str:
        """The result that the page shows after the form."""
        status, text = await self.post(path, who, **form)
        assert status == 303, text
        found = re.search(
            r'<div class="alert alert-\w+" role="status">(.*?)</div>', (await self.get(path, who))[1]
        )
        assert found
        assert 'role="status">' + found[1] not in (await self.get(path, who))[1]  # it is said once
        return html.unescape(found[1])

    async def log(self) -> list[tuple[str, str, str, str, Result]]:
        """The audit log, the oldest first."""
        found = await self.bench.broker.ledger.audited(Search())
        return [(w.author, w.via, w.action, w.subject, w.result) for _, w in reversed(found)]


@pytest.fixture
async def staff(tmp_path: Path, times: Any) -> AsyncIterator[Staff]:
    times.wall = times.wall.replace(year=2026, month=11, day=26)  # a Thursday
    bench = ClassBench(tmp_path, times)
    await bench.open()
    finding = Line("problem", "Docker", "it is down", "start it")
    checkup = Checkup(lambda: (finding,), times.now)

    async def ended(limit: int) -> tuple[EndedProcess, ...]:
        return tuple(bench.ended[:limit])

    readings = Readings(
        {"GPU-0": Usage(12 * GIB, 71.0, None, 64.0, 312.0, 700.0)}, {"GPU-0": (XidSeen(times.now(), 31),)}
    )
    tools = AdminTools(
        allocator=bench.broker.allocator,
        service=bench.ender,
        rules=bench.broker.rules,
        ledger=bench.broker.ledger,
        readings=lambda: readings,
        fault=lambda: "",
        ended=ended,
        disks=lambda: (Disk("homes", "/var/lib/docker", 5 * GIB, 100 * GIB),),
        unknown=lambda: (f"{1:032x}",),
        checkup=checkup,
        clock=times.now,
    )
    teaching = Teaching(bench.classes, bench.broker.rules, clock=times.now)
    async with serving(joined(class_pages(teaching), admin_pages(tools))) as pages:
        yield Staff(pages, bench, checkup)
    checkup.close()
    await bench.close()


# ---- who may what

PAGES = (
    "admin/", "admin/servers/", "admin/timeline/", "admin/log/", "admin/guard/", "admin/rules/",
    "admin/machine/", CLASS, f"{CLASS}sessions/", "classes/another/", "classes/another/sessions/",
)  # fmt: skip
ROLES = ("anna", "outsider", "reader", "ines", "dean", "monitor", "admin", "noether")
"""The tokens of test_pages_handlers: reader, ines and dean have their scope for the class alone."""
EVERYBODY_READS = ("monitor", "noether", "admin")


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("who", [None, *ROLES])
async def test_each_role_reads_only_its_pages(staff: Staff, path: str, who: str | None) -> None:
    of_class = path.startswith(CLASS) and who in ("reader", "ines", "dean")
    allowed = who in EVERYBODY_READS or of_class
    for live in ("", "live"):
        status, _ = await staff.get(path + live, who)
        if who is None:
            assert status == (401 if live else 302)
        else:
            assert status == (200 if allowed else 403)
    if not allowed:
        assert (await staff.get(f"{path}events", who))[0] == (401 if who is None else 403)


FORMS: tuple[tuple[str, dict[str, Any]], ...] = (
    (CLASS, {"do": "stop", "everybody": "yes", "confirmed": "yes"}),
    (CLASS, {"do": "extend", "everybody": "yes", "minutes": "30"}),
    (CLASS, {"do": "message", "text": "Hello", "minutes": "30"}),
    (f"{CLASS}sessions/", {"do": "add", "name": "lab", "when": "Mondays 10-12", "seats": "1", "tier": "gpu"}),
    ("admin/", {"do": "drain", "uuid": "GPU-0"}),
    ("admin/servers/", {"do": "stop", "lease": f"{1:032x}", "confirmed": "yes"}),
    ("admin/rules/", {"do": "change", "subject": "group:students", "key": "devices", "value": "2"}),
)


@pytest.mark.parametrize(("path", "form"), FORMS)
@pytest.mark.parametrize("who", ROLES)
async def test_each_role_sends_only_its_forms(
    staff: Staff, path: str, form: dict[str, Any], who: str
) -> None:
    await staff.bench.run(1, "ada")
    of_class = path.startswith(CLASS) and who in ("ines", "dean")
    status, _ = await staff.post(path, who, **form)
    assert status == (303 if who == "noether" or of_class else 403)
    assert len(await staff.log()) == (status == 303)


@pytest.mark.parametrize(("path", "form"), FORMS)
async def test_a_form_without_the_xsrf_token_does_nothing(
    staff: Staff, path: str, form: dict[str, Any]
) -> None:
    await staff.pages.log_in("noether")
    assert (await staff.get(path, None))[0] == 200
    status, text = await staff.post(path, None, **form)
    assert (status, "XSRF token" in html.unescape(text)) == (403, True)
    assert await staff.log() == []


async def test_an_instructor_of_one_class_does_nothing_in_another(staff: Staff) -> None:
    lease_id = await staff.bench.run(1, "eve", "another")
    for path, form in FORMS[:4]:
        status, _ = await staff.post(path.replace("students", "another"), "ines", **form)
        assert status == 403
    await staff.said(CLASS, "ines", do="stop", lease=lease_id, confirmed="yes")
    assert staff.bench.states() == {"eve": "running"}


# ---- a class


async def test_who_waits_longest_and_who_is_stuck_are_said_first(staff: Staff) -> None:
    bench = staff.bench
    ada, bob = await bench.run(1, "ada"), await bench.run(2, "bob")
    bench.uses = {ada: Use(76 * GIB, 71.0)}
    bench.end_process(bob, "bob")
    await bench.ask(3, "cid")
    bench.times.pass_seconds(600)
    words = await staff.words(CLASS, "reader")
    assert "Stuck bob 11 minutes Out of GPU memory (9.0 GiB of 8.0 GiB): kernel ended." in words
    assert "Waits longest cid 10 minutes 1st in line" in words
    assert "4 members 2 with a GPU 1 waiting 1 never started" in words
    assert "76 GiB of 80 GiB" in words
    assert "Message to the class" not in words  # rudi may only look
    _, text = await staff.get(CLASS, "ines")
    assert text.count('name="lease"') == 3


async def test_a_silent_hub_is_said_and_no_class_looks_empty(staff: Staff) -> None:
    await staff.bench.run(1, "ada")
    staff.bench.hub.fault = "no answer"
    words = await staff.words(CLASS, "ines")
    assert "The hub's list of members can't be read: no answer." in words
    assert "Shown are only those who have a server with a GPU or wait for one." in words
    assert "ada" in words
    assert "no members" not in words


async def test_stopping_asks_back_and_says_what_was_done(staff: Staff) -> None:
    ada = await staff.bench.run(1, "ada")
    await staff.bench.run(2, "bob")
    status, text = await staff.post(CLASS, "ines", do="stop", lease=ada)
    assert status == 200
    assert "Stop 1 server of students?" in html.unescape(text)
    assert f'name="lease" value="{ada}"' in text
    assert staff.bench.states() == {"ada": "running", "bob": "running"}
    assert await staff.said(CLASS, "ines", do="stop", lease=ada, confirmed="yes") == "1 server stopped."
    assert staff.bench.states() == {"bob": "running"}
    assert await staff.said(CLASS, "ines", do="stop") == "No server was chosen: mark at least one."
    assert await staff.log() == [("ines", "page", "stop servers", "group:students", Result.DONE)]


async def test_a_change_of_no_server_is_none_in_the_audit_log(staff: Staff) -> None:
    sentence = await staff.said(CLASS, "ines", do="extend", lease=f"{9:032x}", minutes="30")
    assert sentence.startswith("No server was extended. ")
    assert await staff.log() == [("ines", "page", "extend servers", "group:students", Result.REFUSED)]


async def test_a_message_is_shown_and_taken_back(staff: Staff) -> None:
    await staff.said(CLASS, "ines", do="message", text=HOSTILE, minutes="15")
    _, text = await staff.get(CLASS, "reader")
    assert "<script>alert" not in text
    assert html.escape(HOSTILE, quote=True).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in text
    assert await staff.said(CLASS, "ines", do="message-back") == "The message is gone."
    assert "alert(1)" not in (await staff.get(CLASS, "reader"))[1]
    assert "up to 255" in await staff.said(CLASS, "ines", do="message", text=" ", minutes="15")
    assert (await staff.post(CLASS, "ines", do="what"))[0] == 400


async def test_sessions_are_added_moved_and_cancelled_with_the_same_checks(staff: Staff) -> None:
    page = f"{CLASS}sessions/"
    add = {"do": "add", "name": "lab", "when": "Fridays 10-12", "from": "2026-11-26", "tier": "gpu"}
    sentence = await staff.said(page, "ines", **add, seats="9")
    assert sentence.startswith("The session 'lab' needs 9 places of the tier 'gpu'")
    assert (await staff.said(page, "ines", **add, seats="2")).startswith(
        "lab was added. It meets Fridays 10:00–12:00"
    )
    assert "already" in await staff.said(page, "ines", **add, seats="2")
    assert "lab 10:00–12:00 2 × gpu" in await staff.words(page, "reader")
    move = {
        "do": "move",
        "session": "lab",
        "on": "2026-11-27",
        "to": "2026-11-28",
        "begins": "14:00",
        "ends": "15:30",
    }
    assert (await staff.said(page, "ines", **move)).startswith("lab was moved to 2026-11-28 14:00-15:30.")
    words = await staff.words(page, "ines")
    assert "Moved to Sat 28 Nov, 14:00." in words
    assert "Moved here from Fri 27 Nov." in words
    status, text = await staff.post(page, "ines", do="skip", session="lab", on="2026-12-04")
    assert (status, "will not meet on 2026-12-04" in text) == (200, True)
    await staff.said(page, "ines", do="skip", session="lab", on="2026-12-04", confirmed="yes")
    assert "Doesn't meet on this day." in await staff.words(f"{page}?week=2026-12-01", "ines")
    assert (await staff.post(page, "ines", do="cancel", session="lab"))[0] == 200
    assert await staff.said(page, "ines", do="cancel", session="lab", confirmed="yes") == "lab was cancelled."
    assert staff.bench.broker.rules.sessions() == []
    assert {entry[2] for entry in await staff.log()} == {"save lab session", "cancel lab session"}


async def test_another_class_s_session_is_not_changed_here(staff: Staff) -> None:
    other = {
        "name": "ml", "group": "another", "tier": "gpu", "seats": 1, "first": "2026-11-30",
        "begins": "10:00", "length_seconds": 3600,
    }  # fmt: skip
    await staff.bench.broker.rules.save_session(other, "noether", "")
    page = f"{CLASS}sessions/"
    assert await staff.said(page, "ines", do="cancel", session="ml", confirmed="yes") == (
        "The class students has no lab session 'ml'."
    )
    add = {"do": "add", "name": "ml", "when": "Fridays 10-12", "seats": "1", "tier": "gpu"}
    assert "already" in await staff.said(page, "ines", **add)
    assert "ml" not in await staff.words(page, "ines")


async def test_gpu_hours_of_the_class(staff: Staff) -> None:
    await staff.bench.broker.rules.change_quota(
        "group:students", {"gpu_hours": 10, "period": "week"}, "noether", ""
    )
    await staff.bench.run(1, "ada")
    staff.bench.times.pass_seconds(9000)
    words = await staff.words(f"{CLASS}sessions/", "reader")
    assert "GPU-hours this week: 2.5 Each member may use 10. ada 2.5 h" in words


async def test_one_class_alone_is_opened_at_once(staff: Staff) -> None:
    status, headers, _ = await staff.pages.get("classes/", "ines-token")
    assert (status, headers["Location"].endswith("/classes/students/")) == (302, True)
    await staff.bench.run(1, "eve", "another")
    assert "another students" in await staff.words("classes/", "noether")


# ---- the machine


async def test_the_map_says_what_is_held_used_and_wrong(staff: Staff) -> None:
    await staff.bench.run(1, "ada")
    await staff.bench.run(2, HOSTILE)
    words = await staff.words("admin/", "noether")
    assert "The hub doesn't know 1 server that holds a GPU. See and end" in words
    assert "Disk of homes: 5.0 GiB of 100 GiB free at /var/lib/docker: low" in words
    assert "0 of 2 GPUs free, nobody waits." in words
    assert "H100 80GB #0 XID 31 ada 71 % busy 64 °C 312 of 700 W" in words
    _, text = await staff.get("admin/?gpu=GPU-0", "noether")
    assert "<script>alert" not in text
    assert "XIDs since the broker started: 31" in text


async def test_a_device_is_drained_and_given_back(staff: Staff) -> None:
    await staff.bench.run(1, "ada")
    drained = await staff.said("admin/?gpu=GPU-0", "noether", do="drain", uuid="GPU-0", reason="new fans")
    assert drained == "Nothing new is placed on this device. What runs there goes on."
    words = await staff.words("admin/?gpu=GPU-0", "noether")
    assert "drained: by noether: new fans" in words
    assert "Place servers here again" in words
    assert staff.bench.states() == {"ada": "running"}
    await staff.said("admin/?gpu=GPU-0", "noether", do="undrain", uuid="GPU-0")
    assert staff.bench.broker.rules.rulebook.rules.drained == {}
    assert "There is no GPU 'x'" in await staff.said("admin/", "noether", do="drain", uuid="x")
    assert "Drain: place nothing new here" not in await staff.words("admin/?gpu=GPU-0", "monitor")


async def test_servers_are_found_sorted_and_stopped(staff: Staff) -> None:
    ada = await staff.bench.run(1, "ada")
    await staff.bench.run(2, "bob", "another")
    await staff.bench.ask(3, "cid")
    words = await staff.words("admin/servers/?sort=user&descending=1", "noether")
    assert re.findall(r"\b(ada|bob|cid)\b(?= (?:students|another))", words) == ["cid", "bob", "ada"]
    assert "1 to 1 of 1 servers" in await staff.words("admin/servers/?search=another", "noether")
    status, text = await staff.post("admin/servers/", "noether", do="stop", lease=ada)
    assert (status, "Stop 1 server?" in text) == (200, True)
    form = {"do": "stop", "lease": ada, "confirmed": "yes", "reason": "too hot"}
    assert await staff.said("admin/servers/", "noether", **form) == "1 server ends."
    assert staff.bench.states() == {"bob": "running", "cid": "reserved"}
    assert await staff.log() == [("noether", "page", "stop servers", "servers", Result.DONE)]
    words = await staff.words("admin/log/", "noether")
    assert "noether page stop servers servers Details" in words
    assert "too hot" in words


async def test_the_timeline_shows_the_last_day(staff: Staff) -> None:
    ada = await staff.bench.run(1, "ada")
    staff.bench.times.pass_seconds(3600)
    await staff.bench.ender.release(ada, "stopped")
    _, text = await staff.get("admin/timeline/", "monitor")
    assert "<title>ada, gpu: Thu 13:00 to 14:00</title>" in text
    assert 'aria-label="H100 80GB #0: held 4.2 % of the last day by ada"' in text


async def test_the_log_is_read_page_by_page_and_by_author(staff: Staff) -> None:
    async def nothing() -> Answer:
        return Answer()

    for number in range(55):
        author = "ada" if number == 2 else "noether"
        asked = Asked(author=author, via="api", action="count", subject=f"number:{number}")
        await staff.bench.broker.rules.audit.write(asked, nothing)
    _, text = await staff.get("admin/log/", "noether")
    found = re.search(r'rel="next" href="(.*?)"', text)
    assert found
    assert re.findall(r"number:(\d+)", text) == [str(number) for number in range(54, 4, -1)]
    _, text = await staff.get(f"admin/log/{html.unescape(found[1])}", "noether")
    assert re.findall(r"number:(\d+)", text) == ["4", "3", "2", "1", "0"]
    assert 'rel="next"' not in text
    _, text = await staff.get("admin/log/?author=ada", "noether")
    assert re.findall(r"number:(\d+)", text) == ["2"]
    assert "Nothing was changed yet that fits" in await staff.words("admin/log/?author=nobody", "noether")


async def test_quotas_are_changed_and_taken_back(staff: Staff) -> None:
    change = {"do": "change", "subject": "group:students", "key": "devices", "value": "2", "reason": "exam"}
    assert await staff.said("admin/rules/", "noether", **change) == "group:students: devices is 2 now."
    assert "group:students devices 2 devices 2" in await staff.words("admin/rules/", "monitor")
    refused = await staff.said("admin/rules/", "noether", **{**change, "value": "many"})
    assert "devices" in refused
    assert "group:students devices 2 devices 2" in await staff.words("admin/rules/", "monitor")
    back = await staff.said("admin/rules/", "noether", do="reset", subject="group:students")
    assert back == "group:students: what the settings say holds again."


async def test_what_the_guard_did(staff: Staff) -> None:
    ada = await staff.bench.run(1, "ada")
    staff.bench.end_process(ada, "ada")
    words = await staff.words("admin/guard/", "monitor")
    assert "1 minute ago ada python (7) #0 Your process was ended" in words


async def test_the_machine_is_checked_once_on_request_and_the_result_kept(staff: Staff) -> None:
    await staff.words("admin/machine/", "monitor")
    while staff.checkup.report.running:
        await asyncio.sleep(0.01)
    words = await staff.words("admin/machine/", "monitor")
    assert "1 problem needs a look." in words
    assert "problem Docker : it is down start it" in words
    assert "Disk space homes 5.0 GiB of 100 GiB free at /var/lib/docker: low" in words


async def test_a_check_that_fails_is_said(times: Any) -> None:
    def broken() -> tuple[Line, ...]:
        raise ValueError("doctor said: no")

    checkup = Checkup(broken, times.now)
    checkup.begin()
    while checkup.report.running:
        await asyncio.sleep(0.01)
    assert checkup.report.fault == "The check failed: ValueError: doctor said: no"
    checkup.close()
