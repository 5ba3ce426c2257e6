"""What passes on the socket: there and back unchanged, and everything odd refused with the key's name."""

from __future__ import annotations

import json
from dataclasses import fields
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from gpuspawner.core.errors import BadOption
from gpuspawner.core.model import ContainerPatch, GpuRequest, Lease, LeaseState
from gpuspawner.core.want import Want
from gpuspawner.protocol import messages as wire
from hypothesis import given
from hypothesis import strategies as st

GOOD = {
    "lease_id": "0123456789abcdef" * 2, "hub": "hub", "user": "anna", "server": "", "tier": "gpu",
    "want": {"device_count": 1},
}  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=40)
TIMES = st.datetimes(timezones=st.just(UTC))


def test_the_smallest_request() -> None:
    assert wire.request_from_json(GOOD) == GpuRequest(GOOD["lease_id"], "hub", "anna", "", "gpu", Want(1))  # type: ignore[arg-type]


@given(st.builds(GpuRequest, lease_id=st.just("f" * 32), hub=TEXT, user=TEXT, server=TEXT | st.just(""),
                 tier=TEXT, want=st.builds(Want, st.integers(1, 64), st.none() | TEXT),
                 groups=st.lists(TEXT, max_size=3).map(tuple)))  # fmt: skip
def test_a_request_comes_back_as_it_went(request_: GpuRequest) -> None:
    assert wire.request_from_json(json.loads(json.dumps(wire.request_to_json(request_)))) == request_


@given(st.builds(Lease, id=st.just("f" * 32), hub=TEXT, user=TEXT, server=TEXT, tier=TEXT,
                 state=st.sampled_from(LeaseState), want=st.builds(Want, st.integers(1, 8), st.none() | TEXT),
                 created_at=TIMES, since=TIMES, device_uuids=st.lists(TEXT, max_size=3).map(tuple),
                 memory_bytes=st.integers(0, 1 << 50), container_id=st.none() | TEXT))  # fmt: skip
def test_a_lease_comes_back_as_it_went(lease: Lease) -> None:
    assert wire.lease_from_json(json.loads(json.dumps(wire.lease_to_json(lease)))) == lease


def test_a_patch_comes_back_as_it_went() -> None:
    patch = ContainerPatch(
        env={"A": "b"},
        labels={"gpuspawner.lease": "f" * 32},
        mounts=({"source": "/a", "target": "/b", "type": "bind", "read_only": True},),
        device_requests=({"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=GPU-1"]},),
        runtime="nvidia",
    )
    assert wire.patch_from_json(json.loads(json.dumps(wire.patch_to_json(patch)))) == patch


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lease_id": "F" * 32}, "lease_id must be 32 lower-case hexadecimal digits"),
        ({"lease_id": "../" + "a" * 29}, "lease_id must be 32 lower-case hexadecimal digits"),
        ({"lease_id": 7}, "lease_id must be 32 lower-case hexadecimal digits"),
        ({"user": ""}, "user must be text of 1 to 255 characters"),
        ({"user": None}, "user must be text of 1 to 255 characters"),
        ({"user": "a" * 256}, "user must be text of 1 to 255 characters"),
        ({"user": "a\nb"}, "user has characters that can't be printed"),
        ({"server": ["x"]}, "server must be text of 1 to 255 characters"),
        ({"want": {"device_count": 0}}, "device_count must be a whole number from 1 to 64"),
        ({"want": {"device_count": 65}}, "device_count must be a whole number from 1 to 64"),
        ({"want": {"device_count": True}}, "device_count must be a whole number from 1 to 64"),
        ({"want": {"device_count": 1.0}}, "device_count must be a whole number from 1 to 64"),
        ({"want": {"device_count": "1"}}, "device_count must be a whole number from 1 to 64"),
        ({"want": {"device_count": 1, "model": ""}}, "model must be text of 1 to 255 characters"),
        ({"groups": "staff"}, "groups must be a list of at most 1000 names"),
        ({"groups": [1]}, "groups must be text of 1 to 255 characters"),
        ({"groups": ["a"] * 1001}, "groups must be a list of at most 1000 names"),
        ({"privileged": True}, "The request has an unknown key 'privileged'"),
    ],
)
def test_what_is_odd_is_refused_by_name(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadOption) as refused:
        wire.request_from_json({**GOOD, **change})
    assert refused.value.message == sentence


@pytest.mark.parametrize("key", sorted(GOOD))
def test_what_is_missing_is_refused_by_name(key: str) -> None:
    with pytest.raises(BadOption) as refused:
        wire.request_from_json({name: value for name, value in GOOD.items() if name != key})
    assert refused.value.message == f"The request lacks {key!r}"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(JSON | st.fixed_dictionaries({key: JSON for key in GOOD}))
def test_any_json_is_a_request_or_refused(body: Any) -> None:
    try:
        found = wire.request_from_json(body)
    except BadOption:
        return
    assert isinstance(found, GpuRequest)


def test_every_field_of_a_request_is_read() -> None:
    assert {item.name for kind in (GpuRequest, Want) for item in fields(kind)} == set(wire._PARSERS)


def test_times_are_utc() -> None:
    time = datetime(2025, 3, 1, 13, 0, 0, 5, tzinfo=timezone(timedelta(hours=1)))
    assert wire.time_to_text(time) == "2025-03-01T12:00:00.000005Z"
    assert wire.time_from_text("2025-03-01T12:00:00.000005Z") == time
    with pytest.raises(ValueError, match="has no time zone"):
        wire.time_from_text("2025-03-01T12:00:00")
