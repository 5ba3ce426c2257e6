"""The GPU page where several servers share a GPU: who sees what, in which words."""

from __future__ import annotations

import re
from typing import Any

import pytest
from gpuspawner.broker.api.visible import visible_status
from gpuspawner.broker.pages.admin.page import DevicesPage, devices_page
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


def admins(status: dict[str, Any]) -> DevicesPage:
    return devices_page(status, TIERS, ADMIN, hub_url="/hub/", now=NOW)


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
    assert [(row.free, row.total, row.sliced, row.guarantee_help) for row in page.models] == [
        (8, 10, True, guarded),
        (1, 1, False, "the whole device, enforced by hardware or by the container's device list"),
    ]


def test_an_admin_sees_who_shares_a_gpu_by_name() -> None:
    status = document()
    status["devices"][0]["shares"].reverse()  # bob came first
    first, second = admins(status).devices
    assert first.slices == "8 of 10 slices free"
    assert [(each.user, each.share) for each in first.shares] == [
        ("anna", "8.0 GiB, up to 25 % of its compute"),
        ("bob", "8.0 GiB"),
    ]
    assert (first.holder, second.slices, second.shares, second.holder) == (None, "", (), None)


def test_without_mps_it_says_that_nothing_limits_compute() -> None:
    status = document()
    status["devices"][0]["compute_guarantee"] = "none"
    status["devices"][0]["healthy"] = False
    page = admins(status)
    assert page.devices[0].guarantee_help.endswith("compute not limited, by time-slicing")
    assert page.summary == "1 of 1 GPU, 0 of 10 slices free, nobody waits."
    assert page.devices[0].slices == "0 of 10 slices free"


def test_the_html_names_the_sharers_to_those_who_may_know() -> None:
    shown, own = html(admins(document())), html(annas(document()))
    assert "8 of 10 slices free" in shown
    assert shown.count('<div class="gpu-share">') == 2
    assert "<strong>bob</strong>" in shown
    assert "A slice of NVIDIA H100 80GB HBM3 #0" in own
    assert "Yours is limited to 25 % of its compute." in own
    assert "8 of 10 slices" in own
    assert "bob" not in own


def test_who_shares_a_gpu_is_a_line_each() -> None:
    """Carl has held the whole GPU since before it was sliced."""
    status = document()
    status["devices"][0]["shares"].append(share("c" * 32, "carl"))
    status["leases"].append(lease("c" * 32, "carl", "GPU-0", server="train"))
    lines = re.findall(r'<div class="gpu-share">(.*?)</div>', html(admins(status)), re.DOTALL)
    assert [" ".join(re.sub(r"<[^>]*>", "", line).split()) for line in lines] == [
        "anna A slice · running for 1 hour: 8.0 GiB, up to 25 % of its compute",
        "bob A slice · running for 1 hour: 8.0 GiB",
        "carl server “train” · A slice · running for 1 hour",
    ]


ENDED = {
    "at": SINCE, "user": "bob", "server": "train", "hub": "here", "device_uuid": "GPU-0",
    "sentence": "Your process '<b>' was ended: it was over.",
}  # fmt: skip


def test_ended_processes_are_for_the_admin_and_their_user() -> None:
    status = {**document(), "ended": [ENDED, {**ENDED, "user": "anna"}, {**ENDED, "user": "", "hub": ""}]}
    assert [each["user"] for each in visible_status(status, ANNA)["ended"]] == ["anna"]
    assert [each["user"] for each in visible_status(status, ADMIN)["ended"]] == ["bob", "anna", ""]
    page = admins(status)
    assert [(row.user, row.server, row.device) for row in page.ended] == [
        ("bob", "train", "NVIDIA H100 80GB HBM3 #0"), ("anna", "train", "NVIDIA H100 80GB HBM3 #0"),
        ("unknown", "train", "NVIDIA H100 80GB HBM3 #0"),
    ]  # fmt: skip
    shown = html(page)
    assert "Your process &#39;&lt;b&gt;&#39; was ended" in shown
    assert '<h2 class="h4 mt-4">Ended processes</h2>' in shown
    assert "Ended processes</h2>" not in html(admins(document()))


def test_what_is_in_use_is_never_0_where_nobody_knows_it() -> None:
    status = document(used_bytes=12 << 30, utilization_percent=71.4)
    status["devices"].append(device(2, mode="mig", used_bytes=1 << 30, utilization_percent=None))
    status["devices"].append(device(3, simulated=True, guarantee="none"))
    found = [(row.used, row.busy) for row in admins(status).devices]
    assert found == [
        ("12 GiB", "71 %"), ("not available", "not available"), ("1.0 GiB", "not available"),
        ("simulated", "simulated"),
    ]  # fmt: skip
    seen = visible_status(status, ANNA)["devices"]
    assert [(each.get("used_bytes"), each.get("utilization_percent")) for each in seen] == [(None, None)] * 4


def test_a_device_that_nobody_guards_says_so() -> None:
    row = admins(document(unguarded_reason="NVML hangs")).devices[0]
    assert row.guarantee_help == "not enforced now: NVML hangs"
