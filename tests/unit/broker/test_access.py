"""How far scopes reach: for everybody, for the members of a group, for oneself."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from gpuspawner import GPU_SCOPES
from gpuspawner.broker.api.access import (
    ADMIN_SCOPE,
    EVERYBODY,
    NOBODY,
    READ_SCOPE,
    RESERVE_SCOPE,
    Reach,
    Viewer,
    reach_of,
    viewer_of,
)
from gpuspawner.broker.api.visible import visible_status
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.broker.test_pages import device, lease, place

STUDENT = {"name": "anna", "kind": "user", "groups": ["ml", "cs231n"], "scopes": ["access:services"]}
CLASS = Reach(groups=frozenset({"cs231n"}))


def test_the_scopes_that_a_site_defines_are_those_that_are_asked_for() -> None:
    assert set(GPU_SCOPES) == {READ_SCOPE, RESERVE_SCOPE, ADMIN_SCOPE}
    assert GPU_SCOPES[ADMIN_SCOPE]["subscopes"] == [RESERVE_SCOPE]
    assert GPU_SCOPES[RESERVE_SCOPE]["subscopes"] == [READ_SCOPE]


@pytest.mark.parametrize(
    ("scopes", "reach"),
    [
        ([], NOBODY),
        ([READ_SCOPE], EVERYBODY),
        ([f"{READ_SCOPE}!group=cs231n"], CLASS),
        ([f"{READ_SCOPE}!group=a=b!c"], Reach(groups=frozenset({"a=b!c"}))),
        ([READ_SCOPE, f"{READ_SCOPE}!group=cs231n"], Reach(True, frozenset({"cs231n"}))),
        ([f"{READ_SCOPE}!user=anna", f"{READ_SCOPE}!server=anna/", f"{READ_SCOPE}ing", "custom:gpu"], NOBODY),
        ([ADMIN_SCOPE], NOBODY),
    ],
)
def test_reach(scopes: list[str], reach: Reach) -> None:
    assert reach_of(scopes, READ_SCOPE) == reach


def test_whom_a_reach_covers() -> None:
    assert (bool(NOBODY), bool(CLASS), bool(EVERYBODY)) == (False, True, True)
    assert [each.covers(["ml", "cs231n"]) for each in (NOBODY, CLASS, EVERYBODY)] == [False, True, True]
    assert [each.covers([]) for each in (NOBODY, CLASS, EVERYBODY)] == [False, False, True]
    assert [each.covers_each(["cs231n"]) for each in (NOBODY, CLASS, EVERYBODY)] == [False, True, True]
    assert [each.covers_each(["ml", "cs231n"]) for each in (CLASS, EVERYBODY)] == [False, True]
    assert [each.covers_each([]) for each in (CLASS, EVERYBODY)] == [False, True]


def test_viewer_of_a_user_model() -> None:
    assert viewer_of(STUDENT) == Viewer("anna", groups=("cs231n", "ml"))
    everything = {**STUDENT, "scopes": [ADMIN_SCOPE, "delete:servers"]}
    assert viewer_of(everything, "here") == Viewer(
        "anna", EVERYBODY, EVERYBODY, EVERYBODY, True, "here", ("cs231n", "ml"), stops=True
    )
    instructor = {**STUDENT, "scopes": [f"{RESERVE_SCOPE}!group=cs231n", "delete:servers!user=anna"]}
    assert viewer_of(instructor) == Viewer("anna", CLASS, CLASS, groups=("cs231n", "ml"), stops=True)
    service = viewer_of({**STUDENT, "kind": "service", "scopes": [READ_SCOPE, "delete:servers"]})
    assert service == Viewer("anna", EVERYBODY, owns=False)
    assert (service.author, viewer_of(STUDENT).author) == ("service anna", "anna")
    assert not viewer_of({**STUDENT, "scopes": ["delete:servers!user=bob"]}).stops


GROUPS = st.sampled_from([(), ("cs231n",), ("cs224n",), ("cs224n", "cs231n")])


@given(st.lists(st.tuples(st.sampled_from(["bob", "carl"]), GROUPS, st.booleans()), max_size=8))
def test_an_instructor_sees_their_class_alone(holders: list[tuple[str, tuple[str, ...], bool]]) -> None:
    whole: dict[str, Any] = {"simulated": True, "devices": [], "leases": [], "queue": [], "ended": []}
    for number, (user, groups, waits) in enumerate(holders):
        named = {"server": f"{'in' if 'cs231n' in groups else 'out'}-{number}", "groups": list(groups)}
        if waits:
            whole["queue"].append(place(f"lease{number}", user, number + 1, hub="here", **named))
            continue
        held = {"lease_id": f"lease{number}", "user": user, "server": named["server"]}
        whole["devices"].append(device(number, **held, used_bytes=7, utilization_percent=7.0))
        whole["leases"].append(lease(f"lease{number}", user, f"GPU-{number}", **named))
    seen = visible_status(whole, Viewer("ines", CLASS, hub="here"))
    text = json.dumps(seen)
    assert not [word for word in ("out-", "cs224n") if word in text]
    inside = [f"in-{number}" for number, (_, groups, _) in enumerate(holders) if "cs231n" in groups]
    shown = [each["server"] for each in (*seen["leases"], *seen["queue"])]
    assert sorted(shown) == sorted(inside)
    for held in seen["devices"]:
        assert (held["used_bytes"] is None) == (held["user"] is None)


def test_a_group_of_the_same_name_on_another_hub_is_another_group() -> None:
    elsewhere = lease("a", "bob", "GPU-0", hub="elsewhere", groups=["cs231n"])
    whole = {"simulated": True, "devices": [], "leases": [elsewhere], "queue": [], "ended": []}
    assert visible_status(whole, Viewer("ines", CLASS, hub="here"))["leases"] == []
    assert visible_status(whole, Viewer("root", EVERYBODY, hub="here"))["leases"] == [elsewhere]


def test_the_hub_says_which_servers_of_one_s_own_run() -> None:
    servers = {
        "": {"ready": True, "started": "2026-03-01T12:00:00.000000Z"},
        "old": {"ready": True, "started": None}, "gone": {"ready": False, "pending": None},
        "new": {"ready": False, "pending": "spawn"}, "ends": {"ready": True, "pending": "stop"},
    }  # fmt: skip
    model = {"name": "ada", "kind": "user", "servers": servers}
    assert viewer_of(model).servers == {"": datetime(2026, 3, 1, 12, tzinfo=UTC), "old": None}
    assert viewer_of({"name": "ada", "kind": "user"}).servers is None
    assert viewer_of({**model, "kind": "service"}).servers is None
