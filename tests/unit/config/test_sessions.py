"""Lab sessions in JSON: there and back, and each wrong key named."""

from __future__ import annotations

import json
from datetime import date, datetime, time
from typing import Any

import pytest
from gpuspawner.config.quotas import Known
from gpuspawner.config.sessions import session_from_json, session_to_json
from gpuspawner.core.errors import BadOption
from gpuspawner.core.model import Tier
from gpuspawner.core.session import Change, EndAction, LabSession
from gpuspawner.core.want import Want

KNOWN = Known((Tier("cpu", "CPU"), Tier("gpu", "One GPU", want=Want(1))), None, "Europe/Berlin")
FULL = LabSession(
    "cs231n", "students", "gpu", 24, date(2026, 10, 5), time(10, 15), 5400.0,
    "FREQ=WEEKLY;BYDAY=MO", "America/New_York", 60.0, 120.0, 300.0, EndAction.NOTHING, (date(2026, 10, 12),),
    (Change(date(2026, 10, 26), datetime(2026, 10, 27, 14, 0), 3600.0),),
)  # fmt: skip
LEAST: dict[str, Any] = {
    "name": "a", "group": "g", "tier": "gpu", "seats": 1, "first": "2026-10-05", "begins": "10:00",
    "length_seconds": 3600,
}  # fmt: skip


def test_a_session_comes_back_from_json() -> None:
    assert session_from_json(json.loads(json.dumps(session_to_json(FULL))), KNOWN) == FULL


def test_what_is_left_out_has_its_default() -> None:
    assert session_from_json(LEAST, KNOWN) == LabSession(
        "a", "g", "gpu", 1, date(2026, 10, 5), time(10), 3600.0, timezone="Europe/Berlin"
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seat": 1}, "A lab session has no key 'seat': use name, group, tier, seats"),
        ({"name": "CS 231"}, "The name 'CS 231' can't be used"),
        ({"group": ""}, "group is '': give a name of the hub."),
        ({"tier": "cpu"}, "There is no tier with a GPU called 'cpu': take 'gpu'."),
        ({"seats": 0}, "seats is 0: give a whole number from 1 to 10000."),
        ({"first": "5.10.2026"}, "first has '5.10.2026': write a date like \"2026-10-12\"."),
        ({"first": "0001-01-01"}, "first has '0001-01-01'"),
        ({"begins": "10:00+01:00"}, "begins is '10:00+01:00': write a time of day like \"10:00\"."),
        ({"length_seconds": 0}, "length_seconds is 0: give a number of seconds from 60 to 86400 (a day)."),
        ({"lead_seconds": -1}, "lead_seconds is -1: give a number of seconds from 0 to 86400 (a day)."),
        ({"timezone": "Berlin"}, 'write "timezone": "Europe/Berlin".'),
        ({"move_out": "kill"}, "move_out is 'kill': take 'stop' or 'nothing'."),
        (
            {"move_out": "sleep"},
            "move_out is 'sleep': a server that sleeps keeps its seat, so that makes no room. Take 'stop', "
            "which warns 15 and 5 minutes before, or 'nothing'.",
        ),
        ({"exdates": "2026-10-12"}, "exdates must be a list of at most 1000."),
        ({"changes": [{"on": "2026-10-12"}]}, 'A change has "on", "begins" and "length_seconds".'),
        ({"changes": [{"on": "2026-10-12", "begins": "14:00", "length_seconds": 60}]},
         "A change begins at '14:00'"),
        ({"rule": 3}, "rule is '3'"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadOption) as caught:
        session_from_json({**LEAST, **change}, KNOWN)
    assert sentence in caught.value.message


@pytest.mark.parametrize("key", sorted(LEAST))
def test_what_is_needed_is_missed(key: str) -> None:
    with pytest.raises(BadOption, match=f"The lab session lacks '{key}': add it."):
        session_from_json({each: value for each, value in LEAST.items() if each != key}, KNOWN)


def test_what_is_no_object_is_refused() -> None:
    with pytest.raises(BadOption, match=r"A lab session is a JSON object\."):
        session_from_json([], KNOWN)
