"""The GPU page where several servers share a GPU: who sees what, in which words."""

from __future__ import annotations

from typing import Any

import pytest
from gpuspawner.broker.api.visible import visible_status
from gpuspawner.broker.pages.own.page import OwnPage, Records, facts_at, own_page

from tests.unit.broker.test_pages import ADMIN, ANNA, NOW, device, html, lease

SINCE = "2026-03-01T09:00:00Z"


def share(name: str, user: str, percent: float = 25.0) -> dict[str, Any]:
    return {
        "lease_id": name, "user": user, "server": "", "hub": "here", "memory_bytes": 8 << 30,
        "compute_percent": percent, "since": SINCE,
    }  # fmt: skip


def document(**changes: Any) -> dict[str, Any]:
    """Anna and bob have a slice each of ten; another GPU is whole and free."""
    shares = [share("a" * 32, "anna"), share("b" * 32, "bob", 100.0)]
    sliced = device(
        0, mode="slice", pool="class", guarantee="guarded", compute_guarantee="guarded", free_slices=8,
        total_slices=10, shares=shares, **changes,
    )  # fmt: skip
    return {
        "simulated": False,
        "devices": [sliced, device(1, mode="whole", free_slices=None, total_slices=None, shares=[])],
        "leases": [
            lease(
                each["lease_id"], each["user"], "GPU-0", mode="slice", memory_bytes=8 << 30,
                compute_percent=each["compute_percent"],
            )
            for each in shares
        ],
        "queue": [],
        "ended": [],
    }  # fmt: skip


TIERS = {"simulated": False, "tiers": [{"name": "gpu", "title": "A slice"}]}


def annas(status: dict[str, Any]) -> OwnPage:
    return own_page(facts_at(status, NOW), TIERS, ANNA, "/hub/", Records())


def test_others_shares_are_not_shown_but_counted() -> None:
    seen = visible_status(document(), ANNA)
    assert seen["devices"][0] == {
        **document()["devices"][0], "shares": [share("a" * 32, "anna")], "free": True,
    }  # fmt: skip
    assert [item["id"] for item in seen["leases"]] == ["a" * 32]
    everything = visible_status(document(), ADMIN)
    assert everything["devices"][0]["shares"] == document()["devices"][0]["shares"]


@pytest.mark.parametrize(
    ("changes", "free"), [({}, True), ({"free_slices": 0}, False), ({"healthy": False}, False)]
)
def test_a_device_is_free_while_a_slice_is(changes: dict[str, Any], free: bool) -> None:
    status = document()
    status["devices"][0].update(changes)
    assert visible_status(status, ANNA)["devices"][0]["free"] is free


def test_a_student_sees_their_slice_and_how_many_are_left() -> None:
    page = annas(document())
    assert page.summary == "1 of 1 GPU, 8 of 10 slices free, nobody waits."
    (own,) = page.cards
    assert (own.title, own.whole_device, own.compute_help) == (
        "A slice of NVIDIA H100 80GB HBM3 #0",
        "80 GiB",
        "The whole GPU, with everybody who shares it. Yours is limited to 25 % of its compute.",
    )
    guarded = "memory watched from outside the container and enforced within seconds; compute limited by MPS"
    assert [(row.free, row.total, row.unit, row.guarantee_help) for row in page.models] == [
        (8, 10, "slices", guarded),
        (1, 1, "", "the whole device, enforced by hardware or by the container's device list"),
    ]


def test_simulated_slices_have_nothing_to_enforce() -> None:
    status = document()
    status["devices"][0].update(simulated=True, guarantee="none")
    (row, _) = annas(status).models
    assert (row.guarantee, row.guarantee_help) == ("nothing to enforce", "simulated: no GPU behind it")


def test_the_html_names_no_other_sharer() -> None:
    own = html(annas(document()))
    assert "A slice of NVIDIA H100 80GB HBM3 #0" in own
    assert "Yours is limited to 25 % of its compute." in own
    assert "8 of 10 slices" in own
    assert "bob" not in own


ENDED = {
    "at": SINCE, "user": "bob", "server": "train", "hub": "here", "device_uuid": "GPU-0",
    "sentence": "Your process '<b>' was ended: it was over.",
}  # fmt: skip


def test_ended_processes_are_for_the_admin_and_their_user() -> None:
    status = {**document(), "ended": [ENDED, {**ENDED, "user": "anna"}, {**ENDED, "user": "", "hub": ""}]}
    assert [each["user"] for each in visible_status(status, ANNA)["ended"]] == ["anna"]
    assert [each["user"] for each in visible_status(status, ADMIN)["ended"]] == ["bob", "anna", ""]


def test_what_others_use_is_not_told() -> None:
    status = document(used_bytes=12 << 30, utilization_percent=71.4)
    status["devices"].append(device(2, mode="mig", used_bytes=1 << 30, utilization_percent=None))
    status["devices"].append(device(3, simulated=True, guarantee="none"))
    seen = visible_status(status, ANNA)["devices"]
    assert [(each.get("used_bytes"), each.get("utilization_percent")) for each in seen] == [(None, None)] * 4
