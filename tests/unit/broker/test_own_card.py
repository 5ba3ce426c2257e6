"""A card of "My GPU": time left, turns, what happened, and which buttons there are."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from gpuspawner.broker.pages.own.card import Card, Clock, End, Happening, TurnRow
from gpuspawner.broker.pages.own.page import OwnPage, Records, facts_at, own_page
from gpuspawner.protocol.rules import AllowanceDocument, BudgetDocument

from tests.unit.broker.test_pages import ANNA, NOW, TIERS, device, html, lease, place

SLICE = {
    "mode": "slice", "memory_bytes": 8 << 30, "compute_percent": 25.0, "used_bytes": 6 << 30,
    "busy_percent": 71.0,
}  # fmt: skip
ENDS = {"ends_at": "2026-03-01T11:20:00Z", "ends_because": "session_limit"}


def document(*leases: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "simulated": False, "devices": [device(0)], "leases": list(leases), "queue": [], "ended": [], **more,
    }  # fmt: skip


def page_of(status: dict[str, Any], records: Records | None = None, **facts: Any) -> OwnPage:
    given = replace(facts_at(status, NOW), **facts)
    return own_page(given, TIERS, ANNA, "/base/hub/", records or Records())


def card_of(status: dict[str, Any], **facts: Any) -> Card:
    (card,) = page_of(status, **facts).cards
    return card


def test_time_left() -> None:
    time = Clock("2026-03-01T11:20:00Z", "11:20 UTC")
    because = "the longest session that your quota allows is over then"
    assert card_of(document(lease("a", "anna", "GPU-0", **ENDS))).end == End(
        time, "1 h 20 min", because, soon=False
    )
    late = {**ENDS, "ends_at": "2026-03-01T10:09:30Z", "ends_because": "new"}
    found = card_of(document(lease("a", "anna", "GPU-0", **late))).end
    assert found == End(Clock("2026-03-01T10:09:30Z", "10:09 UTC"), "9 minutes", "", soon=True)
    for seconds, words in ((61, "1 minute"), (59, "less than a minute"), (0, "less than a minute")):
        end = {"ends_at": f"2026-03-01T10:{seconds // 60:02}:{seconds % 60:02}Z", "ends_because": ""}
        found = card_of(document(lease("a", "anna", "GPU-0", **end))).end
        assert found is not None
        assert found.left == words
    assert card_of(document(lease("a", "anna", "GPU-0"))).end is None


@pytest.mark.parametrize(
    ("state", "facts", "buttons"),
    [
        ("running", {"stops": True, "has_cpu_tier": True}, (True, True, 1800.0)),
        ("running", {"stops": True, "has_cpu_tier": False}, (True, False, 1800.0)),
        ("running", {"stops": False, "has_cpu_tier": True}, (False, False, 1800.0)),
        ("reserved", {"stops": True, "has_cpu_tier": True}, (True, False, 0.0)),
        ("releasing", {"stops": True, "has_cpu_tier": True}, (False, False, 0.0)),
    ],
)
def test_buttons(state: str, facts: dict[str, Any], buttons: tuple[bool, bool, float]) -> None:
    held = lease("a", "anna", "GPU-0", state=state)
    card = card_of(document(held), extend_seconds=lambda lease_id: 1800.0, **facts)
    assert (card.can_stop, card.can_use_cpu, card.extend_seconds) == buttons


def test_an_hour_is_the_most_that_one_press_gives() -> None:
    card = card_of(document(lease("a", "anna", "GPU-0", **ENDS)), extend_seconds=lambda lease_id: 9000.0)
    assert (card.extend_seconds, card.extend_words) == (3600.0, "1 hour")


def test_what_is_left_of_an_extension_is_given_in_whole_minutes() -> None:
    held = document(lease("a", "anna", "GPU-0", **ENDS))
    for allowed, given in ((59.0, 0.0), (119.0, 60.0)):
        assert card_of(held, extend_seconds=lambda lease_id, left=allowed: left).extend_seconds == given


def test_why_there_is_no_button_to_extend_is_the_reason_that_applies() -> None:
    """Only where the longest session ends the server: an extension moves no other end."""
    why = "Your quota doesn't let you extend it."
    for because, told in (("session_limit", why), ("gpu_hours", ""), ("lab_session", "")):
        held = document(lease("a", "anna", "GPU-0", **{**ENDS, "ends_because": because}))
        text = html(page_of(held, why_not_extended=lambda lease_id: why), live=True)
        assert "The server ends at" in text
        assert (why.replace("'", "&#39;") in text, "extend it" in text) == (bool(told), bool(told))
        can = page_of(held, extend_seconds=lambda lease_id: 60.0, why_not_extended=lambda lease_id: why)
        assert "extend it" not in html(can, live=True)


def test_buttons_are_forms_with_a_question_before_what_ends_something() -> None:
    status = document(lease("a" * 32, "anna", "GPU-0", **SLICE, **ENDS))
    text = html(
        page_of(status, stops=True, has_cpu_tier=True, extend_seconds=lambda lease_id: 1800.0), live=True
    )
    for action in ("stop", "cpu"):
        question = text.split(f'id="ask-{action}-{"a" * 32}"')[1].split("</details>")[0]
        assert f'action="/base/services/gpu/own/{"a" * 32}/{action}"' in question
        assert 'name="_xsrf" value="xsrf"' in question
    assert f'value="extend {"a" * 32} 2026-03-01T11:20:00Z"' in text
    assert "Extend by 30 minutes" in text
    assert "Stop it on the home page" not in text
    without = html(page_of(status), live=True)
    assert "Stop it on the home page" in without
    assert "<form" not in without


def test_where_a_student_would_look_it_says_what_nvidia_smi_shows() -> None:
    text = html(page_of(document(lease("a", "anna", "GPU-0", **SLICE))), live=True)
    assert "<code>nvidia-smi</code> shows the whole GPU (80 GiB)" in text
    assert "6.0 GiB of 8.0 GiB" in text
    assert "nvidia-smi" not in html(page_of(document(lease("a", "anna", "GPU-0"))), live=True)


def test_what_happened_is_of_this_lease() -> None:
    ended = {
        "at": "2026-03-01T09:42:00Z", "lease_id": "a", "user": "anna", "hub": "here", "name": "python3",
        "used_bytes": 9 << 30, "quota_bytes": 8 << 30, "sentence": "It was ended.",
    }  # fmt: skip
    others = [{**ended, "lease_id": "b"}, {**ended, "quota_bytes": None}]
    card = card_of(document(lease("a", "anna", "GPU-0"), ended=[ended, *others]))
    time = Clock("2026-03-01T09:42:00Z", "09:42 UTC")
    assert card.happenings == (
        Happening(time, "python3 ended: 9.0 GiB of 8.0 GiB", "It was ended."),
        Happening(time, "python3 ended", "It was ended."),
    )


def turn(word: str, **more: Any) -> dict[str, Any]:
    return {"turn": word, "memory_bytes": 12 << 30, "position": None, "wait_seconds": None, **more}


@pytest.mark.parametrize(
    ("own", "row"),
    [
        (
            turn("awake"),
            TurnRow(
                "awake", "Your programs have the GPU now.", "1 other waits for a turn.", False, True,
                "the next in line gets the GPU. Your programs are paused until your next turn; "
                "variables stay.",
            ),
        ),
        (
            turn("paused"),
            TurnRow(
                "paused", "Your work (12 GiB) keeps its memory on the GPU and goes on when you use it.",
                "1 other waits for a turn.", True, False,
            ),
        ),
        (
            turn("asleep", position=2, wait_seconds=240.0),
            TurnRow(
                "asleep", "Your work (12 GiB) is in the machine's memory and goes on when you use it. You "
                "are 2nd in line for the GPU, likely in 4 minutes.",
                "1 other waits for a turn.", False, False,
            ),
        ),
        (
            turn("asleep", position=1, held_up="program"),
            TurnRow(
                "asleep", "Your work (12 GiB) is in the machine's memory and goes on when you use it. You "
                "are 1st in line for the GPU. Somebody's program can't be paused or moved, so it keeps the "
                "GPU until it ends.",
                "1 other waits for a turn.", False, False,
            ),
        ),
    ],
)  # fmt: skip
def test_turns(own: dict[str, Any], row: TurnRow) -> None:
    mine, other = (
        {**lease(lease_id, user, uuids[0], mode="turns", turn=its), "device_uuids": uuids}
        for lease_id, user, uuids, its in (
            ("a", "anna", ["GPU-0", "GPU-2"], own),
            ("b", "bob", ["GPU-2", "GPU-0"], turn("asleep", position=1)),
        )
    )
    elsewhere = lease("c", "carl", "GPU-1", mode="turns", turn=turn("asleep", position=1))
    assert card_of(document(mine, other, elsewhere)).turn == row


def test_a_place_in_the_queue() -> None:
    entry = place("q", "anna", 2, earliest_at="2026-03-01T10:25:00Z", latest_at="2026-03-01T10:50:00Z")
    card = card_of(document(queue=[entry]), stops=True)
    assert (card.title, card.can_stop, card.can_use_cpu) == ("You are 2nd in line for a GPU", True, False)
    first, last = Clock("2026-03-01T10:25:00Z", "10:25 UTC"), Clock("2026-03-01T10:50:00Z", "10:50 UTC")
    assert card.wait == (first, last)
    same = {**entry, "latest_at": "2026-03-01T10:25:20Z"}  # to the nearest minute
    assert card_of(document(queue=[same])).wait == (first,)
    assert card_of(document(queue=[place("q", "anna", 1)])).wait == ()


def test_gpu_hours_of_the_period() -> None:
    budget = BudgetDocument(
        limit_gpu_seconds=36000.0, used_gpu_seconds=34200.0, left_gpu_seconds=1800.0, period="week",
        timezone="UTC", renewed_at=NOW + timedelta(days=1),
    )  # fmt: skip
    allowance = AllowanceDocument(
        leases=1, devices=None, slices=None, session_seconds=None, extend_seconds=None, priority=0,
        held_leases=0, held_devices=0, held_slices=0, budgets=(budget,), refused={},
    )  # fmt: skip
    (row,) = page_of(document(), Records(allowance)).budgets
    assert (row.meter.text, row.meter.left, row.meter.level, row.period, row.renewed) == (
        "9.5 of 10 GPU-hours used", "0.5 left", "warning", "week",
        "Monday 10:00 (UTC)",
    )  # fmt: skip
