"""Names of groups, tiers and users that somebody chose to do harm are only text, on each page and call."""

from __future__ import annotations

import html
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from gpuspawner.broker.api.public.classes import class_routes
from gpuspawner.broker.api.public.rules import joined, public_rules
from gpuspawner.broker.decide.when.calendar import Defaults, from_ical, to_ical
from gpuspawner.broker.observe.checkup import Checkup
from gpuspawner.broker.observe.metrics import Metrics
from gpuspawner.broker.pages.admin.base import AdminTools
from gpuspawner.broker.pages.admin.handlers import admin_pages
from gpuspawner.broker.pages.admin.map import Readings
from gpuspawner.broker.pages.classes.base import Teaching
from gpuspawner.broker.pages.classes.handlers import class_pages
from gpuspawner.config.sessions import session_from_json
from gpuspawner.core.errors import BadOption
from gpuspawner.core.text import plain
from icalendar import Calendar
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.broker.test_pages_handlers import Pages, serving
from tests.unit.class_bench import ClassBench
from tests.unit.rules_bench import Machine

PRINTABLE = (
    "<script>alert(1)</script>", """x"'`${1}&amp;""", "שלום", "a/../b", "../..", "=1+1", "👩🏽🏫", "x" * 240,
    "{{ 7*7 }}", "BEGIN:VEVENT;,\\n",
)  # fmt: skip
UNPRINTABLE = ("\u202egnol", "\u2069\u202egnol", "a\nSUMMARY:b", "\x1b[2J", "ml\u200d")
DIRECTIONS = re.compile("[\u202a-\u202e\u2066\u2067]")
"""Characters that turn what stands after them; isolates of our own (U+2068, U+2069) are in pairs."""


class Words(HTMLParser):
    """The main part of a page as a browser reads it: texts, elements, and attributes that run code."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.elements: list[str] = []
        self.handlers: list[str] = []
        self._depth = 0
        self.feed("<main" + text.split("<main", 1)[1].split("</main>")[0] + "</main>")
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.handlers += [
            value for name, value in attrs if name == "href" and (value or "").startswith("java")
        ]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@dataclass
class Class:
    """The service whose class, tier and members have these names."""

    pages: Pages
    bench: ClassBench
    group: str

    async def page(self, path: str) -> Words:
        status, _, text = await self.pages.get(path, "noether-token")
        assert status == 200, (path, text)
        return Words(text)

    async def send(self, path: str, **form: Any) -> Words:
        """The page that answers the form, after the redirect."""
        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Authorization": "token noether-token",
        }
        async with self.pages.client.post(
            self.pages.url + path, data=urlencode(form, doseq=True), headers=headers, allow_redirects=False
        ) as answer:
            assert answer.status in (200, 303), await answer.text()
            return Words(await answer.text()) if answer.status == 200 else await self.page(path)


@pytest.fixture(params=(*PRINTABLE, *UNPRINTABLE), ids=ascii)
async def named(request: pytest.FixtureRequest, tmp_path: Path, times: Any) -> AsyncIterator[Class]:
    name = request.param
    tiers = [{"name": "cpu"}, {"name": "gpu", "title": name, "description": name, "devices": 1}]
    bench = ClassBench(tmp_path, times, Machine(tiers=tiers, quotas=[{"devices": 1}]))
    await bench.open()
    bench.hub.groups[name] = ["ada", "bob", name]
    await bench.run(1, "ada", name)
    await bench.run(2, name, name)
    await bench.ask(3, "bob", name)
    await bench.ask(4, "eve", "another")
    times.pass_seconds(600)
    tools = AdminTools(
        allocator=bench.broker.allocator, service=bench.ender, rules=bench.broker.rules,
        ledger=bench.broker.ledger, readings=Readings, fault=str, ended=none_ended, disks=tuple,
        unknown=tuple, checkup=Checkup(tuple), clock=times.now,
    )  # fmt: skip
    broker = bench.broker
    routes = joined(
        public_rules(broker.site, broker.rules, broker.endings),
        class_routes(bench.tools),
        class_pages(Teaching(bench.classes, broker.rules, clock=times.now)),
        admin_pages(tools),
    )
    async with serving(routes) as pages:
        yield Class(pages, bench, name)
    tools.checkup.close()
    await bench.close()


async def none_ended(limit: int) -> tuple[()]:
    return ()


def class_path(named: Class, rest: str = "") -> str:
    """A group's page: a browser writes dots and slashes in its address like this, too."""
    return f"classes/{quote(named.group, safe='').replace('.', '%2E')}/{rest}"


async def test_each_page_shows_it_as_text(named: Class) -> None:
    shown = plain(named.group)
    for path in ("admin/", "admin/servers/", "admin/timeline/", "admin/rules/", "classes/"):
        words = await named.page(path)
        assert not {"script", "img", "iframe"} & set(words.elements), path
        assert words.handlers == []
        assert not [text for text in words.texts if DIRECTIONS.search(text)], path
        if path != "admin/rules/":
            assert any(shown in text for text in words.texts), path


async def test_the_page_of_a_class_shows_it_and_stops_its_servers(named: Class) -> None:
    page = class_path(named)
    for path in (page, f"{page}sessions/"):
        words = await named.page(path)
        assert "script" not in words.elements
        assert not [text for text in words.texts if DIRECTIONS.search(text)]
        assert any(plain(named.group) in text for text in words.texts), path
    question = await named.send(page, do="stop", everybody="yes")
    heading = "".join(question.texts)
    assert f"Stop 3 servers of {isolated_or_plain(named.group)}?" in heading
    await named.send(page, do="stop", everybody="yes", confirmed="yes")
    assert named.bench.states() == {"eve": "reserved"}  # of another group
    log = await named.page("admin/log/")
    assert any(f"group:{plain(named.group)}" in text for text in log.texts)
    assert not [text for text in log.texts if DIRECTIONS.search(text)]


def isolated_or_plain(name: str) -> str:
    return f"\u2068{name}\u2069" if name == "שלום" else plain(name)


async def test_the_api_gives_it_back_as_it_is(named: Class) -> None:
    path = f"api/{class_path(named).rstrip('/')}"
    status, headers, text = await named.pages.get(path, "noether-token")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    document = json.loads(text)
    assert document["group"] == named.group
    assert sorted(member["user"] for member in document["members"]) == sorted(["ada", "bob", named.group])
    assert text.isascii() or named.group.isprintable()


async def test_a_report_by_group_has_it_as_a_name(named: Class, times: Any) -> None:
    times.pass_seconds(3600)
    status, _, text = await named.pages.get("api/report?by=group&timezone=UTC", "noether-token")
    assert (status, [line["name"] for line in json.loads(text)["lines"]]) == (200, [named.group])


def lab(group: str) -> dict[str, Any]:
    return {
        "name": "lab", "group": group, "tier": "gpu", "seats": 1, "first": "2026-11-30", "begins": "10:00",
        "length_seconds": 3600, "timezone": "UTC",
    }  # fmt: skip


@pytest.mark.parametrize("group", PRINTABLE, ids=ascii)
async def test_a_calendar_keeps_it_whole(group: str, tmp_path: Path, times: Any) -> None:
    """No part of a name becomes a line of the calendar; imported again it is the same name."""
    bench = ClassBench(tmp_path, times)
    await bench.open()
    session = session_from_json(lab(group), bench.broker.rules.rulebook.known)
    text = to_ical([session], times.now())
    (event,) = Calendar.from_ical(text).walk("VEVENT")
    assert str(event["DESCRIPTION"]) == f"1 places of the tier gpu for {group}"
    assert from_ical(text, Defaults("other", "gpu", 2)) == [session]
    await bench.close()


@pytest.mark.parametrize("group", UNPRINTABLE, ids=ascii)
async def test_a_session_for_what_can_t_be_printed_is_refused_with_a_sentence(
    group: str, tmp_path: Path, times: Any
) -> None:
    bench = ClassBench(tmp_path, times)
    await bench.open()
    with pytest.raises(BadOption, match="give a name of the hub") as refused:
        session_from_json(lab(group), bench.broker.rules.rulebook.known)
    assert str(refused.value).isprintable()
    await bench.close()


async def test_a_metric_s_label_is_the_name_and_no_further_line(named: Class, times: Any) -> None:
    metrics, allocator = Metrics(("gpu",)), named.bench.broker.allocator
    metrics.lease_times.adopt(allocator.leases())
    text = metrics.text(allocator.snapshot(), times.now()).decode()
    samples = [
        sample for family in text_string_to_metric_families(text) for sample in family.samples
        if sample.name == "gpuspawner_gpu_seconds_total"
    ]  # fmt: skip
    assert [sample.labels for sample in samples] == [{"group": named.group}]
    assert all(sample.value > 0 for sample in samples)


def test_the_reader_of_these_tests_finds_what_it_looks_for() -> None:
    bad = Words(f"<main><script>x</script><a onclick='x' href='javascript:x'>{html.escape('<b>')}</a></main>")
    assert bad.elements == ["main", "script", "a"]
    assert bad.handlers == ["onclick", "javascript:x"]
    assert bad.texts == ["x", "<b>"]
