"""What passes on the socket: there and back unchanged, and everything odd refused with the field's name."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from gpuspawner.broker.ledger import EndedProcess
from gpuspawner.core.errors import BadOption, QueueTimeout
from gpuspawner.core.model import ContainerPatch, GpuRequest, Lease, LeaseState
from gpuspawner.core.want import Mode, Want
from gpuspawner.protocol import messages
from gpuspawner.protocol.messages import (
    EndedDocument,
    HeartbeatEvent,
    HeldWant,
    LeaseEvent,
    LeaseMessage,
    Message,
    PatchMessage,
    QueuedEvent,
    RefusedEvent,
    RequestMessage,
    WantMessage,
    event_from_line,
    event_to_line,
    lease_event,
    refused_event,
    request_from_json,
    request_to_json,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.lease_examples import TRAIN

GOOD: dict[str, Any] = {
    "lease_id": "0123456789abcdef" * 2, "hub": "hub", "user": "anna", "server": "", "tier": "gpu",
    "want": {"device_count": 1},
}  # fmt: skip
REQUEST = GpuRequest(GOOD["lease_id"], "hub", "anna", "", "gpu", Want(1))
TEXT = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=40)
TIMES = st.datetimes(timezones=st.just(UTC))
NAMES = st.none() | TEXT
WHOLE = st.builds(Want, st.integers(1, 64), NAMES, st.sampled_from([Mode.WHOLE, Mode.MIG]), NAMES, NAMES)
SLICES = st.builds(
    Want, st.just(1), NAMES, st.just(Mode.SLICE), NAMES, memory_bytes=st.none() | st.integers(1, 1 << 60),
    compute_percent=st.none() | st.floats(0, 100, exclude_min=True),
)  # fmt: skip


def parse(body: object) -> GpuRequest:
    return request_from_json(json.dumps(body))


def refusal(body: bytes | str) -> str:
    with pytest.raises(BadOption) as refused:
        request_from_json(body)
    return refused.value.message


# ---- there and back


def test_the_smallest_request() -> None:
    assert parse(GOOD) == REQUEST


@pytest.mark.parametrize(
    "change",
    [
        {"server": "a named server"},
        {"user": "Ада Лавлейс"},
        {"want": {"device_count": 64}},
        {"want": {"device_count": 1, "model": None}},
        {"groups": []},
        {"groups": ["a"] * 1000},
        {"user": "a" * 255},
        {"want": {"device_count": 1, "mode": "slice", "compute_percent": 100}},
        {"want": {"device_count": 1, "mode": "slice", "memory_bytes": 1 << 60}},
    ],
)
def test_well_formed(change: dict[str, Any]) -> None:
    body = {**GOOD, **change}
    want = {**body["want"], "mode": Mode(body["want"].get("mode", "whole"))}
    assert parse(body) == GpuRequest(
        **{**body, "want": Want(**want), "groups": tuple(body.get("groups", ()))}
    )


@given(
    st.builds(
        GpuRequest, lease_id=st.just("f" * 32), hub=TEXT, user=TEXT, server=TEXT | st.just(""), tier=TEXT,
        want=WHOLE | SLICES, groups=st.lists(TEXT, max_size=3).map(tuple),
    )
)  # fmt: skip
def test_a_request_comes_back_as_it_went(request_: GpuRequest) -> None:
    assert request_from_json(request_to_json(request_)) == request_


@given(
    st.builds(
        Lease, id=st.just("f" * 32), hub=TEXT, user=TEXT, server=TEXT, tier=TEXT,
        state=st.sampled_from(LeaseState), want=WHOLE | SLICES, created_at=TIMES, since=TIMES,
        device_uuids=st.lists(TEXT, max_size=3).map(tuple), memory_bytes=st.integers(0, 1 << 50),
        compute_percent=st.floats(0, 100), container_id=NAMES, notice=TEXT, reason=TEXT, mps=st.booleans(),
    )
)  # fmt: skip
def test_a_lease_comes_back_as_it_went(lease: Lease) -> None:
    event = event_from_line(event_to_line(lease_event(lease, ContainerPatch())))
    assert isinstance(event, LeaseEvent)
    assert event.lease.lease() == lease


def test_a_patch_comes_back_as_it_went() -> None:
    patch = ContainerPatch(
        env={"A": "b"},
        labels={"gpuspawner.lease": "f" * 32},
        mounts=({"source": "/a", "target": "/b", "type": "bind", "read_only": True},),
        device_requests=({"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=GPU-1"], "Count": 0},),
        runtime="nvidia",
    )
    event = event_from_line(event_to_line(lease_event(TRAIN, patch)))
    assert isinstance(event, LeaseEvent)
    assert event.patch.patch() == patch


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            QueuedEvent(position=2, waiting=3, message="2nd in line for a GPU"),
            '{"event":"queued","position":2,"waiting":3,"message":"2nd in line for a GPU",'
            '"earliest_at":null,"latest_at":null,"sessions_before":null,"ends_at":null}\n',
        ),
        (
            refused_event(QueueTimeout("Too long.")),
            '{"reason":"queue_timeout","message":"Too long.","event":"refused"}\n',
        ),
        (HeartbeatEvent(), '{"event":"heartbeat"}\n'),
    ],
)
def test_the_events_of_the_stream(event: QueuedEvent | RefusedEvent | HeartbeatEvent, line: str) -> None:
    assert event_to_line(event) == line
    assert event_from_line(line) == event


def test_an_event_of_a_later_version_is_none_and_a_broken_one_an_error() -> None:
    assert event_from_line('{"event": "estimate", "seconds": 5}') is None
    for line in ("", "[1]", "{}", '{"event": "queued"}', '{"event": "heartbeat", "x": 1}'):
        with pytest.raises(ValueError, match="validation error"):
            event_from_line(line)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (RequestMessage, GpuRequest), (WantMessage, Want), (HeldWant, Want), (LeaseMessage, Lease),
        (PatchMessage, ContainerPatch), (EndedDocument, EndedProcess),
    ],
)  # fmt: skip
def test_a_message_has_every_field_of_its_value(model: type[Message], kind: type[Any]) -> None:
    assert set(model.model_fields) == {item.name for item in fields(kind)}


def test_every_message_is_closed_strict_and_described_by_one_schema() -> None:
    kinds = [each for each in vars(messages).values() if isinstance(each, type) and issubclass(each, Message)]
    assert len(kinds) > 10
    for kind in kinds:
        config = kind.model_config
        assert (config["extra"], config["strict"], config["frozen"]) == ("forbid", True, True)
        assert kind.model_json_schema()["additionalProperties"] is False
        assert kind.__doc__


def test_times_are_utc() -> None:
    time = datetime(2025, 3, 1, 13, 0, 0, 5, tzinfo=timezone(timedelta(hours=1)))
    event = lease_event(replace(TRAIN, created_at=time), ContainerPatch())
    text = event_to_line(event)
    assert json.loads(text)["lease"]["created_at"] == "2025-03-01T12:00:00.000005Z"
    back = event_from_line(text)
    assert isinstance(back, LeaseEvent)
    assert (back.lease.created_at, back.lease.created_at.tzinfo) == (time, UTC)
    naive = text.replace("2025-03-01T12:00:00.000005Z", "2025-03-01T12:00:00")
    with pytest.raises(ValueError, match="should have timezone info"):
        event_from_line(naive)


# ---- refusals

TEXT_RULE = "must be text of 1 to 255 printable characters"
COUNT_RULE = "want.device_count must be a whole number from 1 to 64"
ID_RULE = "lease_id must be 32 lower-case hexadecimal digits"
GROUPS_RULE = "groups must be a list of at most 1000 names, each text of 1 to 255 printable characters"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lease_id": ""}, ID_RULE),
        ({"lease_id": "F" * 32}, ID_RULE),
        ({"lease_id": "0" * 32 + "\n"}, ID_RULE),
        ({"lease_id": "../" + "a" * 29}, ID_RULE),
        ({"lease_id": 7}, ID_RULE),
        ({"hub": ""}, f"hub {TEXT_RULE}"),
        ({"user": ""}, f"user {TEXT_RULE}"),
        ({"user": None}, f"user {TEXT_RULE}"),
        ({"user": "a" * 256}, f"user {TEXT_RULE}"),
        ({"user": "a\nb"}, f"user {TEXT_RULE}"),
        ({"tier": ""}, f"tier {TEXT_RULE}"),
        ({"server": ["x"]}, "server must be text of up to 255 printable characters"),
        ({"server": "a\nb"}, "server must be text of up to 255 printable characters"),
        ({"server": 3}, "server must be text of up to 255 printable characters"),
        ({"groups": "staff"}, GROUPS_RULE),
        ({"groups": [1]}, GROUPS_RULE),
        ({"groups": [""]}, GROUPS_RULE),
        ({"groups": ["a"] * 1001}, GROUPS_RULE),
        ({"want": None}, "want must be an object that says what is asked of the devices"),
        ({"want": [1]}, "want must be an object that says what is asked of the devices"),
        ({"want": {}}, "want lacks 'device_count'"),
        ({"want": {"device_count": 1, "gpus": 1}}, "want has an unknown key 'gpus'"),
        ({"privileged": True}, "The request has an unknown key 'privileged'"),
        ({"x" * 500: 1}, f"The request has an unknown key {'x' * 40!r}"),
    ],
)
def test_what_is_odd_is_refused_by_name(change: dict[str, Any], sentence: str) -> None:
    assert refusal(json.dumps({**GOOD, **change})) == sentence


@pytest.mark.parametrize(
    ("want", "sentence"),
    [
        ({"device_count": 0}, COUNT_RULE),
        ({"device_count": -1}, COUNT_RULE),
        ({"device_count": 65}, COUNT_RULE),
        ({"device_count": 10**400}, COUNT_RULE),
        ({"device_count": True}, COUNT_RULE),
        ({"device_count": 1.0}, COUNT_RULE),
        ({"device_count": 1.5}, COUNT_RULE),
        ({"device_count": "1"}, COUNT_RULE),
        ({"model": ""}, f"want.model {TEXT_RULE}, a part of the device's model name"),
        ({"pool": 7}, f"want.pool {TEXT_RULE}, the name of a pool"),
        ({"mode": "hard"}, "want.mode must be one of whole, mig, slice, turns"),
        (
            {"mode": "slice", "memory_bytes": 0},
            "want.memory_bytes must be a whole number of bytes, 1 or more",
        ),
        (
            {"mode": "slice", "memory_bytes": 8.5},
            "want.memory_bytes must be a whole number of bytes, 1 or more",
        ),
        (
            {"mode": "slice", "compute_percent": 0},
            "want.compute_percent must be a number above 0 and up to 100",
        ),
        (
            {"mode": "slice", "compute_percent": 101},
            "want.compute_percent must be a number above 0 and up to 100",
        ),
        ({"mode": "slice", "device_count": 2}, "A slice is of one GPU: choose another tier."),
        ({"memory_bytes": 1}, "Only a slice has its own size: choose another tier."),
        ({"mode": "mig", "compute_percent": 1}, "Only a slice has its own size: choose another tier."),
        ({"mode": "turns", "device_count": 2}, "A turn is on one GPU: choose another tier."),
        ({"mode": "turns", "compute_percent": 5}, "Only a slice has its own size: choose another tier."),
    ],
)
def test_what_can_not_be_wanted(want: dict[str, Any], sentence: str) -> None:
    assert refusal(json.dumps({**GOOD, "want": {"device_count": 1, **want}})) == sentence


def test_not_a_number_is_refused() -> None:
    """JSON has no NaN, and Python's writer writes one all the same."""
    want = {"device_count": 1, "mode": "slice", "compute_percent": float("nan")}
    rule = "want.compute_percent must be a number above 0 and up to 100"
    assert refusal(json.dumps({**GOOD, "want": want})) == rule


@pytest.mark.parametrize("key", sorted(GOOD))
def test_what_is_missing_is_refused_by_name(key: str) -> None:
    found = refusal(json.dumps({name: value for name, value in GOOD.items() if name != key}))
    assert found == f"The request lacks {key!r}"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "The request is not JSON"),
        (b"{", "The request is not JSON"),
        (b"[" * 5000, "The request is not JSON"),
        (b"\xff\xfe", "The request is not JSON"),
        (b'{"user": "\\ud800"}', "The request is not JSON"),
        (b"[1]", "The request is not a JSON object"),
        (b"3", "The request is not a JSON object"),
        (b"null", "The request is not a JSON object"),
    ],
)
def test_what_is_no_request_at_all(body: bytes, sentence: str) -> None:
    assert refusal(body) == sentence


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>\n", "A" * 100_000])
def test_nothing_hostile_is_repeated(hostile: str) -> None:
    """Wherever it stands: in a value nothing of it comes back, of a key its first 40 characters."""
    for key in GOOD:
        assert hostile[:10] not in refusal(json.dumps({**GOOD, key: hostile}))
    assert len(refusal(json.dumps({**GOOD, hostile: hostile}))) < 100


def test_what_no_broker_would_take_is_not_sent() -> None:
    for odd in (
        replace(REQUEST, user="a" * 256),
        replace(REQUEST, want=Want(0)),
        replace(REQUEST, groups=(b"x",)),
    ):
        with pytest.raises(BadOption, match="must be"):
            request_to_json(odd)  # type: ignore[arg-type]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(JSON | st.fixed_dictionaries({key: JSON for key in GOOD}))
def test_any_json_is_a_request_or_refused(body: Any) -> None:
    try:
        found = parse(body)
    except BadOption:
        return
    assert isinstance(found, GpuRequest)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_request_or_refused(body: bytes) -> None:
    with pytest.raises(BadOption):
        request_from_json(body)
