"""Each role with each page and each call: allowed or refused. A route that isn't in the table fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from gpuspawner.broker.api.public.actions import Actions
from gpuspawner.broker.api.public.base import Route
from gpuspawner.broker.api.public.classes import class_routes
from gpuspawner.broker.api.public.feed import feed_routes
from gpuspawner.broker.api.public.history import HistoryTools, history_routes
from gpuspawner.broker.api.public.hub_servers import HubServers
from gpuspawner.broker.api.public.images import image_routes
from gpuspawner.broker.api.public.limits import WriteLimits
from gpuspawner.broker.api.public.rules import joined, public_rules
from gpuspawner.broker.observe.checkup import Checkup
from gpuspawner.broker.observe.sampler import Sampler
from gpuspawner.broker.pages.admin.base import AdminTools
from gpuspawner.broker.pages.admin.handlers import admin_pages
from gpuspawner.broker.pages.admin.map import Readings
from gpuspawner.broker.pages.classes.base import Teaching
from gpuspawner.broker.pages.classes.handlers import class_pages
from gpuspawner.broker.pages.own.desk import BrokerDesk
from gpuspawner.broker.pages.routes import make_handlers
from gpuspawner.broker.pages.unknown.handlers import unknown_pages
from gpuspawner.core.model import Tier
from gpuspawner.core.want import Want
from tornado.web import RequestHandler

from tests.unit.broker.test_pages_handlers import PREFIX, FakeBroker, Pages, serving
from tests.unit.class_bench import ClassBench

ROLES = ("nobody", "outsider", "anna", "reader", "ines", "dean", "monitor", "noether")
"""Without a login; without access to the service; a student; who may read of the class, change it, administer
it; who reads everything; an admin. `another` is a class that none of the three in the middle has.
"""
EVERYBODY = frozenset(ROLES)
USERS = EVERYBODY - {"nobody", "outsider"}
READERS = USERS - {"anna"}
RESERVERS = frozenset({"ines", "dean", "noether"})
CLASS_ADMINS = frozenset({"dean", "noether"})
ALL_READERS = frozenset({"monitor", "noether"})
ADMINS = frozenset({"noether"})
NOBODY: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Call:
    """A request to a route; LEASE in it stands for a server of ada, who is in the class `students`."""

    method: str
    pattern: str
    path: str
    allowed: frozenset[str]
    body: Any = None
    form: dict[str, str] | None = None


def pages() -> Iterator[Call]:
    """A page, its live parts, and its address without the slash, which says nothing but where the page is."""
    of_class = "classes/([^/]+)/"
    for pattern, path, who in (
        ("", "", USERS),
        ("classes/", "classes/", READERS),
        (of_class, "classes/students/", READERS),
        (f"{of_class}sessions/", "classes/students/sessions/", READERS),
        *((f"admin/{name}", f"admin/{name}", ALL_READERS) for name in ADMIN_PAGES),
    ):
        for live in ("", "live", "events"):
            yield Call("get", pattern + live, path + live, who)
        if pattern:
            yield Call("get", pattern.rstrip("/"), path.rstrip("/"), EVERYBODY)
    for path in ("classes/another/", "classes/another/sessions/"):
        for live in ("", "live", "events"):
            yield Call("get", path.replace("another", "([^/]+)") + live, path + live, ALL_READERS)


ADMIN_PAGES = ("", "servers/", "timeline/", "log/", "guard/", "rules/", "machine/", "unknown/")
ADD = {"do": "add", "name": "lab", "when": "Mondays 10-12", "seats": "1", "tier": "gpu"}
LAB = {
    "name": "lab", "group": "students", "tier": "gpu", "seats": 1, "first": "2026-11-30", "begins": "10:00",
    "length_seconds": 3600,
}  # fmt: skip
QUOTA = {"subject": "group:students", "values": {"devices": 2}, "reason": "r"}
ALL = {"everybody": True}


def forms() -> Iterator[Call]:
    """The pages' forms, each with a change that works."""
    one = "classes/([^/]+)/"
    stop = {"do": "stop", "everybody": "yes", "confirmed": "yes"}
    yield Call("post", one, "classes/students/", RESERVERS, form=stop)
    yield Call("post", one, "classes/another/", ADMINS, form={"do": "message", "text": "a", "minutes": "15"})
    yield Call("post", f"{one}sessions/", "classes/students/sessions/", RESERVERS, form=ADD)
    yield Call("post", f"{one}sessions/", "classes/another/sessions/", ADMINS, form=ADD)
    yield Call("post", "admin/", "admin/", ADMINS, form={"do": "drain", "uuid": "GPU-1"})
    lease = {"do": "stop", "lease": "LEASE", "confirmed": "yes"}
    yield Call("post", "admin/servers/", "admin/servers/", ADMINS, form=lease)
    change = {"do": "change", "subject": "group:students", "key": "devices", "value": "2"}
    yield Call("post", "admin/rules/", "admin/rules/", ADMINS, form=change)
    yield Call("post", "admin/machine/", "admin/machine/", ALL_READERS, form={"do": "check"})
    end = {"do": "end", "lease": "a", "confirmed": "yes"}
    yield Call("post", "admin/unknown/", "admin/unknown/", ADMINS, form=end)
    for path in ("classes/", "admin/log/", "admin/timeline/", "admin/guard/"):  # pages that have no form
        yield Call("post", path, path, NOBODY, form={"do": "what"})
    buttons = "own/([0-9a-f]{32})/(stop|cpu|extend|wake|yield)"
    for action in ("stop", "cpu", "extend", "wake", "yield"):
        yield Call("post", buttons, f"own/LEASE/{action}", RESERVERS, form={})
    yield Call("get", buttons, "own/LEASE/stop", USERS)  # back to the page
    for method in ("get", "post"):  # the hub decides who may, by the sender's own token
        yield Call(method, "own/stop/", "own/stop/", USERS, form={} if method == "post" else None)


def calls() -> Iterator[Call]:
    """The API."""
    for path, who in (
        ("status", USERS), ("tiers", USERS), ("openapi.json", USERS), ("images", READERS),
        ("quotas", READERS), ("drains", READERS), ("report", READERS), ("sessions", READERS),
        ("sessions/calendar", READERS), ("classes", READERS), ("timeline", READERS), ("guard", READERS),
        ("audit", ALL_READERS), ("doctor", ALL_READERS),
    ):  # fmt: skip
        yield Call("get", f"api/{path}", f"api/{path}", who)
    yield Call("post", "api/doctor", "api/doctor", ALL_READERS, {})
    address = "api/sessions/calendar/address"
    yield Call("get", address, address, ALL_READERS)
    yield Call("get", address, f"{address}?group=students", READERS)
    yield Call("get", address, f"{address}?group=another", ALL_READERS)
    lease = "api/leases/([0-9a-f]{32})"
    yield Call("delete", lease, "api/leases/LEASE", RESERVERS, {})
    yield Call("post", f"{lease}/extend", "api/leases/LEASE/extend", RESERVERS, {"seconds": 60})
    yield Call("post", f"{lease}/cpu", "api/leases/LEASE/cpu", RESERVERS, {})
    yield Call("post", f"{lease}/end", "api/leases/LEASE/end", ADMINS, {})
    for action in ("wake", "yield"):
        yield Call("post", f"{lease}/{action}", f"api/leases/LEASE/{action}", RESERVERS, {})
    yield Call("post", "api/quotas", "api/quotas", CLASS_ADMINS, QUOTA)
    yield Call("post", "api/quotas", "api/quotas", ADMINS, {**QUOTA, "subject": "group:another"})
    yield Call("delete", "api/quotas", "api/quotas", CLASS_ADMINS, {"subject": "group:students"})
    grant = {"subject": "group:students", "gpu_hours": 1, "reason": "r"}
    yield Call("post", "api/grants", "api/grants", CLASS_ADMINS, grant)
    yield Call("post", "api/grants", "api/grants", ADMINS, {**grant, "subject": "user:ada"})
    yield Call("post", "api/drains", "api/drains", ADMINS, {"uuid": "GPU-1"})
    yield Call("delete", "api/drains", "api/drains", ADMINS, {"uuid": "GPU-1"})
    yield Call("post", "api/sessions", "api/sessions", RESERVERS, {"session": LAB})
    yield Call("post", "api/sessions", "api/sessions", ADMINS, {"session": {**LAB, "group": "another"}})
    name = "api/sessions/([a-z0-9][a-z0-9._-]{0,62})"
    yield Call("delete", name, "api/sessions/theirs", RESERVERS, {})
    calendar = {"calendar": ICAL, "group": "students", "tier": "gpu", "seats": 1}
    yield Call("post", "api/sessions/calendar", "api/sessions/calendar", RESERVERS, calendar)
    for group, reads, writes in (("students", READERS, RESERVERS), ("another", ALL_READERS, ADMINS)):
        one, path = "api/classes/([^/]+)", f"api/classes/{group}"
        yield Call("get", one, path, reads)
        yield Call("post", f"{one}/message", f"{path}/message", writes, {"text": "Hi"})
        yield Call("delete", f"{one}/message", f"{path}/message", writes, {})
        yield Call("post", f"{one}/extend", f"{path}/extend", writes, {**ALL, "seconds": 60})
        yield Call("post", f"{one}/stop", f"{path}/stop", writes, ALL)


ICAL = (
    "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:x\r\nBEGIN:VEVENT\r\nUID:1\r\nDTSTART:20261207T100000Z\r\n"
    "DTEND:20261207T110000Z\r\nSUMMARY:imported\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"
)


def others() -> Iterator[Call]:
    """What is neither a page nor of the API."""
    yield Call("get", "health", "health", EVERYBODY)
    yield Call("get", "static/(.*)", "static/gpu.css", EVERYBODY)
    yield Call("get", "hub-static/(.*)", "hub-static/favicon.ico", EVERYBODY)
    feed = r"calendar/([0-9a-f]{40})\.ics"
    yield Call("get", feed, f"calendar/{'0' * 40}.ics", NOBODY)
    yield Call("get", "metrics", "metrics", ALL_READERS)
    for method in ("get", "post", "delete"):
        yield Call(method, "api/.*", "api/what", NOBODY)
    yield Call("get", ".*", "what", NOBODY)


TABLE = (*pages(), *forms(), *calls(), *others())
BY_HUB = {("get", "oauth_callback")}
"""The hub redirects a browser to it, with a code that only it can make."""


def take_turn(lease_id: str, action: str) -> dict[str, Any]:
    """Every server has turns."""
    return {"turn": action}


@dataclass
class Site:
    """The whole service."""

    pages: Pages
    bench: ClassBench
    routes: list[Route]
    number: int = field(default=0)

    async def scene(self) -> str:
        """Ada has a running server, eve of `another` too, there is a session, and GPU-1 may be drained."""
        broker, self.number = self.bench.broker, self.number + 2
        for lease in broker.allocator.leases():
            await self.bench.ender.release(lease.id, "the next request")
        rules = broker.rules
        for group in ("students", "another"):
            values = {"session_hours": 2, "extend_hours": 1, "devices": 5}
            await rules.change_quota(f"group:{group}", values, "test", "")
            if f"group:{group}" not in map(str, rules.rulebook.rules.messages):
                await rules.announce(f"group:{group}", "a", self.bench.times.now().replace(year=2027), "test")
        for name in ("lab", "imported"):
            if name in rules.rulebook.rules.sessions:
                await rules.cancel_session(name, "test", "")
        await rules.save_session({**LAB, "name": "theirs", "begins": "15:00"}, "test", "")
        if "GPU-1" in rules.rulebook.rules.drained:
            await rules.undrain("GPU-1", "test", "")
        lease_id = await self.bench.run(self.number, "ada")
        await self.bench.run(self.number + 1, "eve", "another")
        await rules.drain("GPU-1", "test", "")
        broker.unknown = {lease_id}
        return lease_id

    async def ask(self, call: Call, who: str, lease_id: str) -> int:
        """The status, without following a redirect or reading a stream."""
        headers = {} if who == "nobody" else {"Authorization": f"token {who}-token"}
        data: Any = None
        options: dict[str, Any] = {}
        if call.form is not None:
            data = urlencode({key: text.replace("LEASE", lease_id) for key, text in call.form.items()})
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        elif call.body is not None:
            options["json"] = call.body
        url = self.pages.url + call.path.replace("LEASE", lease_id)
        if not call.path and call.pattern == "":
            url = self.pages.url
        async with self.pages.client.request(
            call.method.upper(), url, data=data, headers=headers, allow_redirects=False, **options
        ) as answer:
            if answer.status == 302 and "oauth2/authorize" in answer.headers["Location"]:
                return 401  # to the login
            return answer.status


@pytest.fixture
async def site(tmp_path: Path, times: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(WriteLimits, "wait_seconds", lambda self, sender: 0.0)
    times.wall = times.wall.replace(year=2026, month=11, day=26)
    bench = ClassBench(tmp_path, times)
    await bench.open()
    broker = bench.broker
    checkup = Checkup(tuple, times.now)

    async def ended(limit: int) -> tuple[Any, ...]:
        return ()

    async def end(lease_id: str, author: str) -> None:
        return None

    tools = AdminTools(
        allocator=broker.allocator, service=bench.ender, rules=broker.rules, ledger=broker.ledger,
        readings=Readings, fault=lambda: "", ended=ended, disks=tuple, unknown=tuple, checkup=checkup,
        clock=times.now,
    )  # fmt: skip
    more = joined(
        public_rules(broker.site, broker.rules, broker.endings),
        feed_routes(broker.rules),
        class_routes(bench.tools),
        image_routes(tuple),
        history_routes(
            HistoryTools(broker.site, broker.rules, broker.endings, broker.ledger, checkup, times.now)
        ),
        class_pages(Teaching(bench.classes, broker.rules, clock=times.now)),
        unknown_pages(broker.rules.audit, end),
        admin_pages(tools),
    )

    def make_desk(api_url: str) -> BrokerDesk:
        tiers = (Tier("gpu", "One GPU", want=Want(1)), Tier("cpu", "CPU"))
        actions = Actions(broker.rules, HubServers(api_url), broker.allocator.lease, tiers, take_turn)
        return BrokerDesk(broker.rules, broker.ledger, Sampler(dict), actions)

    broken: Any = object()
    routes = make_handlers(
        UnknownToHub(), PREFIX, desk=make_desk("http://127.0.0.1:9"), hub_auth=broken, more=more
    )
    async with serving(more, make_desk, UnknownToHub()) as served:
        yield Site(served, bench, routes)
    checkup.close()
    await bench.close()


class UnknownToHub(FakeBroker):
    """The hub doesn't know the first server."""

    def status(self) -> dict[str, Any]:
        status = super().status()
        status["leases"][0]["unknown_to_hub"] = True
        return status


async def test_each_route_and_method_is_in_the_table(site: Site) -> None:
    served = set()
    for pattern, handler, *_ in site.routes:
        for method in ("get", "post", "delete", "put", "patch"):
            if getattr(handler, method) is not getattr(RequestHandler, method):
                served.add((method, pattern.removeprefix(PREFIX.rstrip("/")).removeprefix("/")))
    assert served == {(call.method, call.pattern) for call in TABLE} | BY_HUB


@pytest.mark.parametrize("who", ROLES)
async def test_each_role_gets_what_the_table_says(site: Site, who: str) -> None:
    wrong = []
    for call in TABLE:
        lease_id = await site.scene()
        status = await site.ask(call, who, lease_id)
        allowed = status in (200, 202, 204, 302, 303)
        refused = status in (400, 401, 403, 404, 409)
        if allowed is not (who in call.allowed) or refused is allowed:
            wrong.append((call.method, call.path, status))
    assert wrong == []
