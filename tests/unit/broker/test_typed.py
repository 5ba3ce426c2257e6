"""Lab sessions as people type them."""

from __future__ import annotations

from datetime import date

import pytest
from gpuspawner.broker.decide.when.typed import session_document
from gpuspawner.core.errors import BadOption


def test_what_is_typed_lies_over_what_there_is() -> None:
    base = {"name": "a", "timezone": "Europe/Berlin", "seats": 1, "exdates": ["2026-12-07"]}
    assert session_document(base, {"skip": "2026-11-30,2026-12-07", "grace": "10"}, date(2026, 1, 1)) == {
        **base, "exdates": ["2026-11-30", "2026-12-07"], "grace_seconds": 600,
    }  # fmt: skip
    with pytest.raises(BadOption, match="from and until belong to when"):
        session_document(base, {"until": "2026-12-18"}, date(2026, 1, 1))
    with pytest.raises(BadOption, match="move is 'x'"):
        session_document(base, {"move": "x"}, date(2026, 1, 1))


def test_a_meeting_that_is_moved_again_meets_once() -> None:
    base = {"name": "a", "timezone": "UTC"}
    once = session_document(base, {"move": "2026-10-26:2026-10-27 14-16"}, date(2026, 1, 1))
    twice = session_document(once, {"move": "2026-10-26:2026-10-28 9-10:30"}, date(2026, 1, 1))
    assert twice["changes"] == [{"on": "2026-10-26", "begins": "2026-10-28T09:00", "length_seconds": 5400.0}]
