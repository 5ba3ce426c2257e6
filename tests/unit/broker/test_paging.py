"""Lists in pages: each entry on exactly one, and no document of the API with more than its limit."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.api.paging import Part, cut
from gpuspawner.broker.api.public.actions import Actions
from gpuspawner.broker.api.public.classes import class_routes
from gpuspawner.broker.api.public.history import HistoryTools, history_routes
from gpuspawner.broker.api.public.hub_servers import HubServers
from gpuspawner.broker.api.public.images import image_routes
from gpuspawner.broker.api.public.rules import joined, public_rules
from gpuspawner.broker.api.query import Page
from gpuspawner.broker.ledger import EndedProcess, Write
from gpuspawner.broker.observe.checkup import Checkup
from gpuspawner.broker.observe.sampler import Sampler
from gpuspawner.broker.pages.own.desk import BrokerDesk
from gpuspawner.core.errors import BadOption
from gpuspawner.core.model import Lease, LeaseState
from gpuspawner.core.want import Want
from gpuspawner.protocol.paging import MOST
from gpuspawner.protocol.public_openapi import OPERATIONS
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.broker.test_pages_handlers import FakeBroker, Pages, device, lease, serving
from tests.unit.class_bench import ClassBench
from tests.unit.rules_bench import Machine

NAMES = st.lists(st.text(min_size=1, max_size=3), unique=True, max_size=9)


def walk(lists: dict[str, list[str]], limit: int, between: Any = lambda: None) -> dict[str, list[str]]:
    """What all pages have together; `between` them something happens."""
    found: dict[str, list[str]] = {name: [] for name in lists}
    cursor = ""
    while True:
        page = cut([Part(name, entries, str) for name, entries in lists.items()], Page(limit, cursor))
        assert sum(map(len, page.lists.values())) <= limit
        for name, entries in page.lists.items():
            found[name] += entries
        if page.next is None:
            return found
        cursor = page.next
        between()


@given(st.tuples(NAMES, NAMES, NAMES), st.integers(1, 5))
def test_each_entry_is_on_one_page(lists: tuple[list[str], ...], limit: int) -> None:
    named = dict(zip("abc", lists, strict=True))
    found = walk(named, limit)
    assert {name: sorted(entries) for name, entries in found.items()} == {
        name: sorted(entries) for name, entries in named.items()
    }
    if sum(map(len, lists)) <= limit:
        assert found == named  # in their own order


@given(NAMES, NAMES, st.integers(1, 3), st.data())
def test_what_exists_all_the_time_is_listed_once(
    stays: list[str], changing: list[str], limit: int, data: st.DataObject
) -> None:
    """Others come and go, and all change their places."""
    changing = [each for each in changing if each not in stays]
    now = data.draw(st.permutations([*stays, *changing]))
    lists = {"a": list(now), "b": ["x"]}

    def between() -> None:
        there = data.draw(st.lists(st.sampled_from(changing), unique=True) if changing else st.just([]))
        lists["a"] = data.draw(st.permutations([*stays, *there]))

    found = walk(lists, limit, between)
    assert sorted(each for each in found["a"] if each in stays) == sorted(stays)
    assert len(set(found["a"])) == len(found["a"])
    assert found["b"] == ["x"]


@pytest.mark.parametrize("cursor", ["c:1", "a", "", ":"])
def test_a_cursor_of_another_document(cursor: str) -> None:
    parts = [Part("a", ["1", "2"], str)]
    if cursor in ("", "a"):  # the begin
        assert cut(parts, Page(5, cursor)).lists["a"] == ("1", "2")
    else:
        with pytest.raises(BadOption, match="cursor must be what the page before has as next"):
            cut(parts, Page(5, cursor))


USERS, DEVICES = 5000, 1000


class BigBroker(FakeBroker):
    """1,000 devices, 5,000 leases, 2,000 of whose users wait."""

    def status(self) -> dict[str, Any]:
        place = {"user": "u", "server": "", "hub": "h", "tier": "gpu", "since": None, "groups": []}
        return {
            **super().status(),
            "devices": [device(number) for number in range(DEVICES)],
            "leases": [lease(f"{number:032x}", f"u{number}", "GPU-0") for number in range(USERS)],
            "queue": [{**place, "id": f"{n:032x}", "position": n + 1} for n in range(2000)],
        }


@pytest.fixture
async def big(tmp_path: Path, times: Any) -> AsyncIterator[Pages]:
    """A site with 5,000 users: in the class, with quotas, and with a past."""
    quotas = [{"user": f"u{number}", "devices": 1} for number in range(USERS)]
    bench = ClassBench(tmp_path, times, Machine(quotas=quotas))
    bench.hub.groups["students"] = [f"u{number}" for number in range(USERS)]
    await bench.open()
    broker, checkup = bench.broker, Checkup(tuple, times.now)
    await fill(bench, times)
    tools = HistoryTools(broker.site, broker.rules, broker.endings, broker.ledger, checkup, times.now)
    more = joined(
        public_rules(broker.site, broker.rules, broker.endings),
        class_routes(bench.tools),
        image_routes(tuple),
        history_routes(tools),
    )

    def make_desk(api_url: str) -> BrokerDesk:
        actions = Actions(broker.rules, HubServers(api_url), broker.allocator.lease, ())
        return BrokerDesk(broker.rules, broker.ledger, Sampler(dict), actions)

    async with serving(more, make_desk, BigBroker()) as pages:
        yield pages
    checkup.close()
    await bench.close()


async def fill(bench: ClassBench, times: Any) -> None:
    """Everybody had a GPU for a minute by now, wrote something, and had a process ended."""
    now, ledger = times.now(), bench.broker.ledger
    want = Want(1)
    running = tuple(
        Lease(
            f"{number:032x}", "hub", f"u{number}", "", "gpu", LeaseState.RUNNING, want, now, now,
            ("GPU-0",), groups=("students",),
        )
        for number in range(USERS)
    )  # fmt: skip
    await ledger.save(*running, at=now)
    times.pass_seconds(60)
    await ledger.audit(
        *(Write(f"{n:032x}", now, "noether", "api", "count", f"number:{n}") for n in range(USERS))
    )
    await ledger.record(*(_ended(number, times) for number in range(USERS)))


def _ended(number: int, times: Any) -> EndedProcess:
    return EndedProcess(
        at=times.now(), offence="memory", lease_id=f"{number:032x}", hub="hub", user=f"u{number}", server="",
        container_id="c", device_uuid="GPU-0", pid=7, name="python", used_bytes=9, quota_bytes=8,
        over_seconds=2.0, sentence="Your process was ended",
    )  # fmt: skip


def entries_in(document: dict[str, Any]) -> int:
    return sum(len(value) for value in document.values() if isinstance(value, list))


LONG = {
    "/status": DEVICES + USERS + 2000, "/quotas": USERS, "/classes/students": USERS, "/report": USERS,
    "/audit": USERS, "/timeline": USERS, "/guard": USERS,
}  # fmt: skip


async def test_no_document_lists_everything_at_once(big: Pages) -> None:
    """Whatever reads as JSON: without parameters, with the largest limit, and all pages together."""
    found = {}
    for operation in OPERATIONS:
        if operation.method != "get" or isinstance(operation.answer, str):
            continue
        path = operation.path.replace("{group}", "students")
        first = await read(big, path)
        assert entries_in(first) <= 500, path
        if "cursor" not in operation.query:
            continue
        total, cursor = 0, ""
        while True:
            page = await read(big, f"{path}?limit={MOST}{cursor}")
            assert entries_in(page) <= MOST, path
            total += entries_in(page)
            if page["next"] is None:
                break
            cursor = f"&cursor={page['next']}"
        found[path] = total
    assert {path: total for path, total in found.items() if total > 500} == LONG


async def read(pages: Pages, path: str) -> dict[str, Any]:
    url = f"{pages.url}api{path}"
    async with pages.client.get(url, headers={"Authorization": "token monitor-token"}) as answer:
        assert answer.status == 200, path
        document: dict[str, Any] = json.loads(await answer.text())
        return document
