"""Addresses at which calendar programs read lab sessions: who gets one, what it shows, a wrong one."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.api.public.feed import feed_routes
from gpuspawner.broker.api.public.rules import joined, public_rules
from gpuspawner.broker.leases.calendar_feeds import ALL, CalendarFeeds, read_key
from gpuspawner.core.errors import ConfigError
from icalendar import Calendar

from tests.unit.broker.test_pages_handlers import serving
from tests.unit.class_bench import ClassBench

SESSION = {"tier": "gpu", "seats": 1, "first": "2026-11-30", "begins": "10:00", "length_seconds": 3600}


def names(text: str) -> list[str]:
    """What meets, as another program reads it."""
    return sorted(str(event["SUMMARY"]) for event in Calendar.from_ical(text).walk("VEVENT"))


async def test_a_calendar_program_reads_a_group_s_sessions_and_follows_changes(
    tmp_path: Path, times: Any
) -> None:
    times.wall = times.wall.replace(year=2026, month=11, day=26)
    bench = ClassBench(tmp_path, times)
    await bench.open()
    broker = bench.broker
    rules = broker.rules
    for group, begins in ("students", "10:00"), ("another", "14:00"):
        await rules.save_session(
            {**SESSION, "name": f"of-{group}", "group": group, "begins": begins}, "noether", ""
        )
    more = joined(public_rules(broker.site, rules, broker.endings), feed_routes(rules))
    async with serving(more) as pages:
        login = {"Authorization": "token ines-token"}
        address = f"{pages.url}api/sessions/calendar/address"
        async with pages.client.get(f"{address}?group=students", headers=login) as answer:
            found = (await answer.json())["address"]
        for other in ("", "?group=another"):
            async with pages.client.get(address + other, headers=login) as answer:
                assert answer.status == 403
        url = pages.url + found.removeprefix("/services/gpu/")
        async with pages.client.get(url) as answer:  # without a login
            assert (answer.status, answer.content_type) == (200, "text/calendar")
            assert names(await answer.text()) == ["of-students"]
        async with pages.client.head(url) as answer:
            assert (answer.status, await answer.text()) == (200, "")
        await rules.save_session(
            {**SESSION, "name": "extra", "group": "students"} | {"begins": "16:00"}, "n", ""
        )
        async with pages.client.get(url) as answer:
            assert names(await answer.text()) == ["extra", "of-students"]
        for name in ("extra", "of-students"):
            await rules.cancel_session(name, "noether", "")
        async with pages.client.get(url) as answer:  # a program goes on with an empty calendar
            assert (answer.status, names(await answer.text())) == (200, [])
        wrong = url[:-5] + ("0" if url[-5] != "0" else "1") + ".ics"
        async with pages.client.get(wrong) as answer:
            assert answer.status == 404
            assert await answer.text() == (
                "There is no calendar at this address: ask your instructor for the present one.\n"
            )
        async with pages.client.post(url) as answer:
            assert answer.status == 405
    await bench.close()


def test_an_address_outlives_the_broker_and_is_another_for_each_group(tmp_path: Path) -> None:
    first = CalendarFeeds("/services/gpu/", read_key(tmp_path))
    again = CalendarFeeds("/services/gpu/", read_key(tmp_path))
    assert stat.S_IMODE((tmp_path / "calendar.key").stat().st_mode) == 0o600
    addresses = {group: first.address(group) for group in (ALL, "a", "b")}
    assert addresses == {group: again.address(group) for group in addresses}
    assert len(set(addresses.values())) == 3
    secrets = {group: text.removesuffix(".ics").rpartition("/")[2] for group, text in addresses.items()}
    assert {first.group_of(secret, ["a", "b"]) for secret in secrets.values()} == {ALL, "a", "b"}
    assert first.group_of(secrets["b"], ["a"]) is None
    assert CalendarFeeds("/services/gpu/").address("a") != addresses["a"]
    assert repr(first) == "CalendarFeeds(page_url='/services/gpu/')"


def test_a_damaged_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "calendar.key").write_bytes(b"short")
    with pytest.raises(ConfigError, match=r"calendar\.key is damaged: delete it"):
        read_key(tmp_path)
