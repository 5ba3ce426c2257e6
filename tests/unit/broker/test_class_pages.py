"""The pages of classes and of admins: each role with each page and form, and what they show and do."""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from gpuspawner.broker.api.public.rules import joined
from gpuspawner.broker.leases.audit import Answer, Asked
from gpuspawner.broker.leases.hub_api import HubServer
from gpuspawner.broker.ledger import EndedProcess, Result, Search
from gpuspawner.broker.observe.checkup import Checkup, Line
from gpuspawner.broker.observe.use import Use
from gpuspawner.broker.pages.admin.base import AdminTools
from gpuspawner.broker.pages.admin.handlers import admin_pages
from gpuspawner.broker.pages.admin.map import Readings
from gpuspawner.broker.pages.classes.base import Teaching
from gpuspawner.broker.pages.classes.handlers import class_pages
from gpuspawner.broker.pages.classes.schedule import usual_seats
from gpuspawner.core.disk import Disk
from gpuspawner.node.api import Usage, XidSeen
from gpuspawner.protocol.pulls import ImageDocument, PullMessage

from tests.unit.broker.test_pages_handlers import Pages, serving
from tests.unit.class_bench import GIB, ClassBench

CLASS = "classes/students/"
HOSTILE = """x"'><script>alert(1)</script>"""


PULL = "Pulling image lab:2: 3 of 7 layers, 120 of 840 MB, 14 %"
IMAGES = (
    ImageDocument(image="lab:1", here=True, size_bytes=5_200_000_000, pull=None),
    ImageDocument(
        image="lab:2", here=False, size_bytes=None,
        pull=PullMessage(image="lab:2", message=PULL, percent=14, waiting=2),
    ),
    ImageDocument(image=HOSTILE, here=False, size_bytes=None, pull=None),
)  # fmt: skip


def words_of(text: str) -> str:
    """What a page says, without its tags."""
    main = text.split("<main", 1)[1].split("</main>")[0]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", main)).split())


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
        return words_of(text)

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
        return await self._alert(path, who, (await self.get(path, who))[1])

    async def refused(self, path: str, who: str, **form: Any) -> str:
        """Why the form was refused, as the page says it that answers."""
        status, text = await self.post(path, who, **form)
        assert status in (400, 403, 409, 503), text
        return await self._alert(path, who, text)

    async def _alert(self, path: str, who: str, text: str) -> str:
        found = re.search(r'<div class="alert alert-\w+" role="status">(.*?)</div>', text)
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
        images=lambda: IMAGES,
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
NAMES = {"reader": "rudi"}


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
    if form["do"] == "extend":
        await staff.bench.broker.rules.change_quota(
            "group:students", {"session_hours": 2, "extend_hours": 1}, "noether", ""
        )
    status, _ = await staff.post(path, who, **form)
    assert status == (303 if who == "noether" or of_class else 403)
    if who == "outsider":  # may not use the service at all: that is in the broker's log
        assert await staff.log() == []
        return
    ((author, via, action, _, result),) = await staff.log()  # refused or not
    assert (author.removeprefix("service "), via) == (NAMES.get(who, who), "page")
    assert action
    assert result is (Result.DONE if status == 303 else Result.REFUSED)


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
    await staff.refused(CLASS, "ines", do="stop", lease=lease_id, confirmed="yes")
    assert staff.bench.states() == {"eve": "running"}


# ---- what a refused form said


def field(text: str, name: str) -> str | None:
    """The value of the form's field with this id."""
    found = re.search(rf'<input [^>]*id="{name}"[^>]*>', text)
    assert found, name
    value = re.search(r' value="([^"]*)"', found[0])
    return None if value is None else html.unescape(value[1])


def chosen(text: str, name: str) -> list[str]:
    """The options of a choice that are selected."""
    found = re.search(rf'<select [^>]*id="{name}".*?</select>', text, re.DOTALL)
    assert found
    return re.findall(r"<option[^>]* selected>([^<]*)", found[0])


async def test_a_refused_session_is_not_typed_again(staff: Staff) -> None:
    page = f"{CLASS}sessions/"
    form = {
        "do": "add", "name": "evening", "when": "daily 19-21", "from": "2026-12-01", "until": "2026-12-24",
        "seats": "999", "lead": "15", "tier": "gpu", "_xsrf": "x",
    }  # fmt: skip
    status, text = await staff.post(page, "ines", **form)
    assert status == 409
    shown = {name: field(text, f"add-{name}") for name in form if name not in ("do", "tier", "_xsrf")}
    assert shown == {name: value for name, value in form.items() if name in shown}
    assert field((await staff.get(page, "ines"))[1], "add-name") == ""
    status, text = await staff.post(page, "ines", **{**form, "name": HOSTILE})
    assert (status, field(text, "add-name"), "<script>alert" in text) == (400, HOSTILE, False)


async def test_a_refused_move_stays_open_with_what_was_typed(staff: Staff) -> None:
    page = f"{CLASS}sessions/"
    for name, when in (("lab", "Fridays 10-12"), ("lab2", "Mondays 10-12")):
        add = {"do": "add", "name": name, "when": when, "from": "2026-11-26", "tier": "gpu", "seats": "1"}
        await staff.said(page, "ines", **add)
    move = {"do": "move", "session": "lab2", "on": "2026-12-07", "to": "2026-12-08"}
    status, text = await staff.post(page, "ines", **move, begins="14:00", ends="never")
    assert status == 400
    assert [field(text, f"{name}-{n}") for n in (1, 2) for name in ("to", "begins", "ends")] == [
        "", "", "", "2026-12-08", "14:00", "never",
    ]  # fmt: skip
    assert chosen(text, "on-2") == ["Mon 07 Dec, 10:00"]
    assert re.findall(r"<details( open)?><summary[^>]*>Move or cancel (\w+)", text) == [
        ("", "lab"), (" open", "lab2"),
    ]  # fmt: skip


async def test_a_refused_message_quota_drain_and_stop_keep_what_was_typed(staff: Staff) -> None:
    _, text = await staff.post(CLASS, "ines", do="message", text="Hi there", minutes="7")
    assert field(text, "class-text") == "Hi there"
    change = {"do": "change", "subject": "group:students", "key": "weight", "value": "many", "reason": "exam"}
    status, text = await staff.post("admin/rules/", "noether", **change)
    assert (status, field(text, "quota-value"), field(text, "quota-reason")) == (400, "many", "exam")
    assert (field(text, "quota-subject"), chosen(text, "quota-key")) == ("group:students", ["weight"])
    page = "admin/?gpu=GPU-0"
    _, text = await staff.post(page, "noether", do="undrain", uuid="GPU-0", reason="it is well")
    assert field(text, "drain-reason") == "it is well"
    ada, bob = await staff.bench.run(1, "ada"), await staff.bench.run(2, "bob")
    status, text = await staff.post(CLASS, "ines", do="extend", lease=[ada], minutes="120")
    assert (status, field(text, f"mark-{ada}")) == (409, ada)
    assert re.findall(r'id="mark-(\w+)"[^>]* checked>', text) == [ada]
    assert re.findall(r"<option[^>]* selected>(\d+ min)<", text) == ["120 min"]
    _, text = await staff.post("admin/servers/", "noether", do="stop", lease=[bob], reason="too hot")
    assert (field(text, "confirm-reason"), text.count(f'value="{bob}"')) == ("too hot", 1)


# ---- a class


async def test_who_waits_longest_and_who_is_stuck_are_said_first(staff: Staff) -> None:
    bench = staff.bench
    ada, bob = await bench.run(1, "ada"), await bench.run(2, "bob")
    bench.uses = {ada: Use(76 * GIB, 71.0)}
    bench.end_process(bob, "bob")
    await bench.ask(3, "cid")
    bench.times.pass_seconds(600)
    words = await staff.words(CLASS, "reader")
    why = "Out of GPU memory (used 9.0 GiB, may use 8.0 GiB): kernel ended. Try a smaller batch, or a tier"
    assert f"Stuck bob for 11 minutes {why} with more memory." in words
    assert "Waits longest cid for 10 minutes 1st in line" in words
    assert "4 members 2 with a GPU 1 waiting 1 never started" in words
    assert "76 GiB of 80 GiB" in words
    assert "Message to the class" not in words  # rudi may only look
    _, text = await staff.get(CLASS, "ines")
    assert text.count('name="lease"') == 3


async def test_a_member_with_several_servers_counts_once(staff: Staff) -> None:
    await staff.bench.run(1, "ada")
    staff.bench.hub.running = {"ada": (HubServer("plain", "cpu", None),)}
    words = await staff.words(CLASS, "ines")
    assert "4 members 1 with a GPU 3 never started" in words


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
    assert await staff.refused(CLASS, "ines", do="stop") == "No server was chosen: mark at least one."
    assert await staff.log() == [("ines", "page", "stop servers", "group:students", Result.DONE)]


async def test_a_server_on_cpu_is_stopped_through_the_hub_with_the_sender_s_token(staff: Staff) -> None:
    bench = staff.bench
    await bench.run(1, "ada")
    bench.hub.running = {"bob": (HubServer("a b", "cpu", None),), "zoe": (HubServer("", "cpu", None),)}
    _, text = await staff.get(CLASS, "ines")
    assert re.findall(r'name="server" value="(.*?)"', text) == ["bob/a%20b"]
    _, text = await staff.post(CLASS, "ines", do="stop", server="bob/a%20b", reason="it hangs")
    assert "bob, server “a b”, on CPU" in html.unescape(text)
    assert 'name="server" value="bob/a%20b"' in text
    bench.hub_stop.refuse = True
    form = {"do": "stop", "server": ["bob/a%20b", "zoe/"], "confirmed": "yes", "reason": "it hangs"}
    assert await staff.refused(CLASS, "ines", **form) == (
        "No server was stopped. bob, server 'a b': the hub says no "
        "1 server has ended meanwhile, or is not of this class."
    )
    bench.hub_stop.refuse = False
    assert (
        await staff.said(CLASS, "ines", do="stop", everybody="yes", confirmed="yes") == "2 servers stopped."
    )
    assert bench.hub_stop.asked == [("ines-token", "bob", "a b")] * 2
    assert "bob" not in bench.states()
    assert [each[-1] for each in await staff.log()] == [Result.REFUSED, Result.DONE]
    for mark in ("bob", "/x"):
        sentence = await staff.refused(CLASS, "ines", do="stop", server=mark, confirmed="yes")
        assert sentence == "A mark is USER/SERVER, as on the page: reload it."
    bench.hub.running = {}
    bench.times.pass_seconds(60)
    assert "has ended meanwhile" in await staff.refused(CLASS, "ines", do="stop", everybody="yes")


async def test_a_server_that_has_just_stopped_is_not_on_cpu(staff: Staff) -> None:
    """The hub's list is kept for some seconds; one from before the lease's end is asked for again."""
    bench = staff.bench
    await bench.run(1, "ada")
    bench.hub.running = {"ada": (HubServer("", "gpu", None),)}
    assert "on CPU" not in await staff.words(CLASS, "ines")
    bench.times.pass_seconds(1)
    await bench.ender.release(f"{1:032x}", "stopped")
    bench.hub.running = {"ada": (HubServer("", "gpu", None, ready=False, ending=True),)}
    words = await staff.words(CLASS, "ines")
    assert "on CPU" not in words
    assert "ada ends gpu" in words


async def test_a_server_that_the_class_stopped_is_not_on_cpu_until_the_hub_knows(staff: Staff) -> None:
    """The broker ends the lease and its container; the hub sees it at its next look at the server."""
    bench = staff.bench
    bench.hub.running = {"ada": (HubServer("", "gpu", bench.times.now()),)}
    await bench.run(1, "ada")
    bench.times.pass_seconds(60)
    form = {"do": "stop", "lease": f"{1:032x}", "confirmed": "yes"}
    assert await staff.said(CLASS, "ines", **form) == "1 server stopped."
    assert "on CPU" not in await staff.words(CLASS, "ines")
    bench.times.pass_seconds(60)
    assert "has ended meanwhile" in await staff.refused(CLASS, "ines", do="stop", everybody="yes")
    bench.hub.running = {"ada": (HubServer("", "cpu", bench.times.now()),)}
    bench.times.pass_seconds(60)
    assert "ada on CPU" in await staff.words(CLASS, "ines")


async def test_a_mark_stays_with_its_server_when_rows_move(staff: Staff) -> None:
    bench = staff.bench
    bench.hub.running = {name: (HubServer("", "cpu", None),) for name in ("bob", "cid")}
    _, text = await staff.get(CLASS, "ines")
    before = dict(re.findall(r'name="server" value="(\w+)/" id="(mark-\w+)"', text))
    bench.hub.running = {"cid": (HubServer("", "cpu", None),)}
    bench.times.pass_seconds(60)
    _, text = await staff.get(CLASS, "ines")
    after = dict(re.findall(r'name="server" value="(\w+)/" id="(mark-\w+)"', text))
    assert after == {"cid": before["cid"]}


async def test_a_change_of_no_server_is_none_in_the_audit_log(staff: Staff) -> None:
    sentence = await staff.refused(CLASS, "ines", do="extend", lease=f"{9:032x}", minutes="30")
    assert sentence.startswith("No server was extended. ")
    assert await staff.log() == [("ines", "page", "extend servers", "group:students", Result.REFUSED)]


async def test_a_message_is_shown_and_taken_back(staff: Staff) -> None:
    await staff.said(CLASS, "ines", do="message", text=HOSTILE, minutes="15")
    _, text = await staff.get(CLASS, "reader")
    assert "<script>alert" not in text
    assert html.escape(HOSTILE, quote=True).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in text
    assert await staff.said(CLASS, "ines", do="message-back") == "The message is gone."
    assert "alert(1)" not in (await staff.get(CLASS, "reader"))[1]
    assert "up to 255" in await staff.refused(CLASS, "ines", do="message", text=" ", minutes="15")
    assert (await staff.post(CLASS, "ines", do="what"))[0] == 400


async def test_sessions_are_added_moved_and_cancelled_with_the_same_checks(staff: Staff) -> None:
    page = f"{CLASS}sessions/"
    add = {"do": "add", "name": "lab", "when": "Fridays 10-12", "from": "2026-11-26", "tier": "gpu"}
    sentence = await staff.refused(page, "ines", **add, seats="9")
    assert sentence.startswith("The session 'lab' needs 9 places of the tier 'gpu'")
    assert (await staff.said(page, "ines", **add, seats="2")).startswith(
        "lab was added. It meets Fridays 10:00–12:00"
    )
    assert "already" in await staff.refused(page, "ines", **add, seats="2")
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


async def test_the_list_of_sessions_has_changed_dates_and_goes_to_the_next_one(staff: Staff) -> None:
    page = f"{CLASS}sessions/"
    add = {"do": "add", "name": "lab", "when": "Mondays 10-12", "from": "2027-01-04", "tier": "gpu"}
    await staff.said(page, "ines", **add, seats="2")
    _, text = await staff.get(page, "reader")
    assert '<a href="?week=2027-01-04">Mon 04 Jan, 10:00</a>' in text
    move = {"do": "move", "session": "lab", "on": "2027-01-11", "to": "2027-01-12"}
    await staff.said(page, "ines", **move, begins="14:00", ends="16:00")
    longer = {"do": "move", "session": "lab", "on": "2027-01-18", "to": "2027-01-18"}
    await staff.said(page, "ines", **longer, begins="10:00", ends="13:00")
    await staff.said(page, "ines", do="skip", session="lab", on="2027-01-04", confirmed="yes")
    words = await staff.words(page, "reader")
    assert "next Tue 12 Jan, 14:00 Mon 04 Jan cancelled; Mon 11 Jan moved to Tue 12 Jan, 14:00; " in words
    assert "Mon 18 Jan not as long as usual, or longer" in words
    assert "lab 10:00–12:00 2 × gpu" in await staff.words(f"{page}?week=2027-01-25", "reader")
    staff.bench.times.wall = staff.bench.times.wall.replace(year=2027, month=1, day=20)
    assert "cancelled;" not in await staff.words(page, "reader")


async def test_the_form_of_a_session_begins_with_what_fits_and_says_its_rule(staff: Staff) -> None:
    _, text = await staff.get(f"{CLASS}sessions/", "ines")
    assert field(text, "add-seats") == "2"
    rule = "Use lower-case letters, digits, “-”, “_” and “.”; the first is a letter or a digit."
    (name,) = re.findall(r'<input [^>]*id="add-name"[^>]*>', text)
    assert f' title="{rule}"' in name


@pytest.mark.parametrize(
    ("total", "each", "seats"), [(2, 1, 2), (40, 1, 8), (9, 2, 4), (1, 2, 1), (0, 1, 1), (None, 0, 1)]
)
def test_as_many_places_as_there_can_be(total: int | None, each: int, seats: int) -> None:
    cpu = {"name": "cpu", "device_count": 0, "total": None}
    assert usual_seats([cpu, {"name": "gpu", "device_count": each, "total": total}]) == seats


async def test_the_instructor_of_a_class_can_subscribe_to_its_sessions(staff: Staff) -> None:
    page = f"{CLASS}sessions/"
    assert 'id="class-feed"' not in (await staff.get(page, "ines"))[1]  # there is nothing to read
    add = {"do": "add", "name": "lab", "when": "Fridays 10-12", "from": "2026-11-26", "tier": "gpu"}
    await staff.said(page, "ines", **add, seats="2")
    address = staff.bench.broker.rules.feeds.address("students")
    assert f'<a id="class-feed" href="{address}">' in (await staff.get(page, "ines"))[1]
    assert "calendar/" not in (await staff.get(page, "reader"))[1]


async def test_another_class_s_session_is_not_changed_here(staff: Staff) -> None:
    other = {
        "name": "ml", "group": "another", "tier": "gpu", "seats": 1, "first": "2026-11-30",
        "begins": "10:00", "length_seconds": 3600,
    }  # fmt: skip
    await staff.bench.broker.rules.save_session(other, "noether", "")
    page = f"{CLASS}sessions/"
    assert await staff.refused(page, "ines", do="cancel", session="ml", confirmed="yes") == (
        "The class students has no lab session 'ml'."
    )
    add = {"do": "add", "name": "ml", "when": "Fridays 10-12", "seats": "1", "tier": "gpu"}
    assert "already" in await staff.refused(page, "ines", **add)
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


async def test_addresses_without_the_final_slash_lead_to_their_pages(staff: Staff) -> None:
    for path in PAGES:
        status, headers, _ = await staff.pages.get(path.removesuffix("/") + "?page=2", "noether-token")
        assert (status, headers["Location"]) == (302, f"/base/services/gpu/{path}?page=2")


# ---- the machine


async def test_the_map_says_what_is_held_used_and_wrong(staff: Staff) -> None:
    await staff.bench.run(1, "ada")
    await staff.bench.run(2, HOSTILE)
    words = await staff.words("admin/", "noether")
    assert "The hub doesn't know 1 server that holds a GPU. See and end" in words
    assert "Disk of homes: 5.0 GiB of 100 GiB free at /var/lib/docker: low" in words
    assert "0 of 2 simulated GPUs free, nobody waits." in words
    xid = "XID 31: error of a program, GPU stays in service"
    assert f"H100 80GB #0 ada {xid} 71 % busy 64 °C 312 of 700 W" in words
    _, text = await staff.get("admin/?gpu=GPU-0", "noether")
    assert "<script>alert" not in text
    assert "XIDs since the broker started: 31" in text


async def test_a_device_is_drained_and_given_back(staff: Staff) -> None:
    await staff.bench.run(1, "ada")
    drained = await staff.said("admin/?gpu=GPU-0", "noether", do="drain", uuid="GPU-0", reason="new fans")
    assert drained == "Nothing new is placed on this device. What runs there goes on."
    words = await staff.words("admin/?gpu=GPU-0", "noether")
    assert "drained by noether: new fans, held by ada" in words
    assert "Place servers here again" in words
    assert staff.bench.states() == {"ada": "running"}
    await staff.said("admin/?gpu=GPU-0", "noether", do="undrain", uuid="GPU-0")
    assert staff.bench.broker.rules.rulebook.rules.drained == {}
    assert "There is no GPU 'x'" in await staff.refused("admin/", "noether", do="drain", uuid="x")
    assert "Drain: place nothing new here" not in await staff.words("admin/?gpu=GPU-0", "monitor")


async def test_a_drain_names_the_lab_session_that_needs_the_device(staff: Staff) -> None:
    rules = staff.bench.broker.rules
    devices = len(staff.bench.broker.allocator.snapshot().devices)
    tomorrow = staff.bench.times.now() + timedelta(days=1)
    lab = {
        "name": "cs231n", "group": "class", "tier": "gpu", "seats": devices, "timezone": "UTC",
        "first": tomorrow.date().isoformat(), "begins": "10:00", "length_seconds": 7200,
    }  # fmt: skip
    await rules.save_session(lab, "noether", "")
    said = await staff.said("admin/?gpu=GPU-0", "noether", do="drain", uuid="GPU-0", reason="new fans")
    assert said.startswith(
        "Nothing new is placed on this device. What runs there goes on. Lab sessions that "
    )
    assert f"cs231n ({devices} places, " in said
    assert rules.drain_warning() in said
    await staff.said("admin/?gpu=GPU-0", "noether", do="undrain", uuid="GPU-0")
    assert rules.drain_warning() == ""


async def test_servers_are_found_sorted_and_stopped(staff: Staff) -> None:
    ada = await staff.bench.run(1, "ada")
    await staff.bench.run(2, "bob", "another")
    await staff.bench.ask(3, "cid")
    words = await staff.words("admin/servers/?sort=user&descending=1", "noether")
    assert re.findall(r"\b(ada|bob|cid)\b(?= (?:students|another))", words) == ["cid", "bob", "ada"]
    assert "1 server Reason" in await staff.words("admin/servers/?search=another", "noether")
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
    rulebook = staff.bench.broker.rules.rulebook
    tiers = tuple(replace(tier, title=f"Title of {tier.name}") for tier in rulebook.known.tiers)
    rulebook.known = replace(rulebook.known, tiers=tiers)
    ada = await staff.bench.run(1, "ada")
    staff.bench.times.pass_seconds(3600)
    await staff.bench.ender.release(ada, "stopped")
    _, text = await staff.get("admin/timeline/", "monitor")
    assert "<title>ada, Title of gpu: Thu 13:00 to 14:00</title>" in text
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
    refused = await staff.refused("admin/rules/", "noether", **{**change, "value": "many"})
    assert "devices" in refused
    assert "group:students devices 2 devices 2" in await staff.words("admin/rules/", "monitor")
    back = await staff.said("admin/rules/", "noether", do="reset", subject="group:students")
    assert back == "group:students: what the settings say holds again."


async def test_a_quota_ends_servers_only_where_the_box_is_checked_and_it_is_confirmed(staff: Staff) -> None:
    change = {"do": "change", "subject": "user:ada", "key": "devices", "value": "2", "reason": "a class"}
    await staff.said("admin/rules/", "noether", **change)
    first = await staff.bench.run(1, "ada")
    second = await staff.bench.run(2, "ada", server="train")
    rules = staff.bench.broker.rules.rulebook
    change["value"] = "1"
    assert await staff.said("admin/rules/", "noether", **change) == "user:ada: devices is 1 now."
    assert rules.rules.to_end == {}
    boxed = {**change, "end_servers": "yes"}
    status, text = await staff.post("admin/rules/", "noether", **boxed)
    assert (status, words_of(text).count("End 1 running server?")) == (200, 1)
    assert "ada, train (gpu)" in words_of(text)
    assert (
        "user:ada gets devices = 1. 1 running server is over that limit and ends in 15 minutes"
        in words_of(text)
    )
    assert rules.rules.to_end == {}
    said = await staff.said("admin/rules/", "noether", **boxed, confirmed="yes")
    assert said == "user:ada: devices is 1 now. 1 server is warned and will end."
    assert rules.rules.to_end.keys() == {second}
    said = await staff.said("admin/rules/", "noether", **{**boxed, "value": "2"})  # nobody ends: not asked
    assert said == "user:ada: devices is 2 now. No running server is over it."
    assert rules.rules.to_end == {}
    assert {lease.id for lease in staff.bench.broker.allocator.leases()} == {first, second}
    refused = await staff.refused("admin/rules/", "noether", **{**boxed, "value": "many"})
    assert "devices" in refused
    _, text = await staff.post("admin/rules/", "noether", **{**boxed, "value": "many"})
    assert 'name="end_servers" value="yes" checked' in text
    assert " checked" not in (await staff.get("admin/rules/", "noether"))[1]


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
    assert "Images lab:1 on this machine, 5.2 GB lab:2 being pulled 3 of 7 layers, 120 of 840 MB" in words
    assert "14 %; 2 starts wait for it" in words
    assert "</script> not on this machine" in words
    _, text = await staff.get("admin/machine/", "monitor")
    assert 'aria-label="Pull of lab:2" aria-valuenow="14"' in text
    assert "<script>alert" not in text
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
