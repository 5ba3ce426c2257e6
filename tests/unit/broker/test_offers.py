"""What the broker tells the hub for the spawn page: what each tier offers one user now, near a class too."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.core.model import GpuRequest, LeaseState
from gpuspawner.core.want import Want
from gpuspawner.protocol.client import BrokerClient
from gpuspawner.protocol.messages import RefusalMessage
from gpuspawner.protocol.rules import (
    AllowanceDocument,
    KeptDocument,
    OfferDocument,
    QuotaChange,
    SessionChange,
    TierOffer,
    WhoAsks,
)

from tests.unit.rules_bench import Served

FREE = AllowanceDocument(
    leases=None, devices=None, slices=None, session_seconds=None, extend_seconds=0.0, priority=0,
    held_leases=0, held_devices=0, held_slices=0, budgets=(), refused={},
)  # fmt: skip
CPU = TierOffer(
    tier="cpu", refused=None, allowed_at=None, free=None, total=None, waiting=0, starts_now=True, wait=None,
    kept=(), own_session=None, session_seconds=None, ends_at=None, ends_message="", gpu_hours_an_hour=None,
)  # fmt: skip
GPU = TierOffer(
    tier="gpu", refused=None, allowed_at=None, free=2, total=2, waiting=0, starts_now=True, wait=None,
    kept=(), own_session=None, session_seconds=None, ends_at=None, ends_message="", gpu_hours_an_hour=1.0,
)  # fmt: skip
SESSION = {
    "name": "cs231n", "group": "cs231n", "tier": "gpu", "seats": 2, "timezone": "Europe/Berlin",
    "first": "2026-11-26", "begins": "16:00", "length_seconds": 7200, "rule": "FREQ=WEEKLY",
}  # fmt: skip


@pytest.fixture
def served(tmp_path: Path, times: Any) -> Iterator[Served]:
    times.wall = times.wall.replace(year=2026, month=11, day=26, hour=14, minute=10)  # a Thursday; 15:10
    broker = Served(tmp_path, times)
    broker.start()
    yield broker
    broker.stop()


def tell(served: Served, path: str, body: Any) -> None:
    async def run() -> None:
        client = BrokerClient(served.socket)
        try:
            await client.tell("POST", path, body)
        finally:
            await client.close()

    served.do(run())


def offer(served: Served, *groups: str, user: str = "ada", node: str = "") -> OfferDocument:
    async def run() -> OfferDocument:
        client = BrokerClient(served.socket)
        try:
            who = WhoAsks(hub="hub", user=user, server="", groups=groups, node=node)
            return await client.ask("/offer", OfferDocument, who)
        finally:
            await client.close()

    found: OfferDocument = served.do(run())
    return found


def start(served: Served, number: int, user: str, *groups: str) -> LeaseState:
    request = GpuRequest(f"{number:032x}", "hub", user, "", "gpu", Want(1), groups)
    lease = served.do(served.allocator.acquire(request))
    if lease.state is LeaseState.RESERVED:
        served.do(served.allocator.set_running(lease.id, f"c{number}"))
    state: LeaseState = lease.state
    return state


def kept(times: Any, places: int, message: str) -> KeptDocument:
    begins = times.now().replace(hour=15, minute=0)
    return KeptDocument(
        session="cs231n", group="cs231n", places=places, begins_at=begins,
        ends_at=begins + timedelta(hours=2), unused_free_at=begins + timedelta(minutes=15), message=message,
    )  # fmt: skip


def test_nobody_is_there_and_nothing_is_limited(served: Served) -> None:
    expected = OfferDocument(timezone="Europe/Berlin", tiers=(CPU, GPU), allowance=FREE)
    assert offer(served) == expected


def test_who_has_files_on_a_machine_is_offered_what_that_has(served: Served) -> None:
    nothing = {"free": 0, "total": 0, "starts_now": False, "gpu_hours_an_hour": None}
    assert offer(served, node="b").tiers == (CPU, GPU.model_copy(update=nothing))


def test_before_a_class_a_start_ends_when_it_begins_and_the_page_says_so(served: Served, times: Any) -> None:
    tell(served, "/api/sessions", SessionChange(session=SESSION, author="noether"))
    about = (
        "2 places are kept for the lab session 'cs231n' from 16:00 to 18:00 (Europe/Berlin), free then; what "
        "the class doesn't use is free from 16:15."
    )
    begins = times.now().replace(hour=15, minute=0)
    expected = GPU.model_copy(
        update={
            "free": 0,
            "kept": (kept(times, 2, about),),
            "ends_at": begins,
            "ends_message": "A server that starts now ends on Thursday 16:00 (Europe/Berlin). A lab session "
            "needs the GPU then.",
        }
    )
    assert offer(served).tiers[1] == expected
    assert start(served, 1, "ada") is LeaseState.RESERVED  # as the page said
    own = "Your lab session 'cs231n' has 2 places here from 16:00 to 18:00 (Europe/Berlin)."
    mine = GPU.model_copy(update={"free": 1, "own_session": kept(times, 2, own)})
    assert offer(served, "cs231n", user="bob").tiers[1] == mine


def test_in_a_class_the_refusal_is_the_start_s_own_with_the_time_when_it_ends(
    served: Served, times: Any
) -> None:
    tell(served, "/api/sessions", SessionChange(session=SESSION, author="noether"))
    times.pass_seconds(3300)  # 16:05
    assert start(served, 1, "bob", "cs231n") is LeaseState.RESERVED
    about = (
        "1 place is kept for the lab session 'cs231n' until 18:00 (Europe/Berlin), free then; what the class "
        "doesn't use is free from 16:15."
    )
    sentence = (
        "The lab session 'cs231n' has these GPUs from 16:00 to 18:00 (Europe/Berlin): choose CPU, or start "
        "after Thursday 16:15 (Europe/Berlin)."
    )
    expected = GPU.model_copy(
        update={
            "refused": RefusalMessage(reason="session_reserved", message=sentence),
            "allowed_at": times.now().replace(hour=15, minute=15),
            "free": 0,
            "starts_now": False,
            "kept": (kept(times, 1, about),),
        }
    )
    assert offer(served).tiers[1] == expected
    times.pass_seconds(600)  # 16:15: what the class doesn't use is free
    assert offer(served).tiers[1] == GPU.model_copy(update={"free": 1})


def test_used_up_hours_are_allowed_again_on_monday_and_a_held_gpu_never_by_itself(
    served: Served, times: Any
) -> None:
    change = {"gpu_hours": 1, "session_hours": 4}
    tell(served, "/api/quotas", QuotaChange(subject="user:ada", values=change, author="noether"))
    times.pass_seconds(1800)
    found = offer(served).tiers[1]
    assert (found.ends_at, found.ends_message, found.session_seconds) == (
        times.now() + timedelta(hours=1),
        "A server that starts now ends on Thursday 16:40 (Europe/Berlin). Your GPU-hours are used up then.",
        14400.0,
    )
    start(served, 1, "ada")
    times.pass_seconds(3600)
    served.do(served.allocator.begin_release(f"{1:032x}", "stopped"))
    served.do(served.allocator.close(f"{1:032x}"))
    found = offer(served).tiers[1]
    monday = times.now().replace(day=29, hour=23, minute=0)
    assert found.refused is not None
    assert (found.refused.reason, found.allowed_at, found.starts_now) == ("quota_gpu_hours", monday, False)
    start(served, 2, "bob", "students")
    again = offer(served, "students", user="bob").tiers[1]  # its own default server doesn't count
    assert (again.refused, again.free) == (None, 1)
    tell(served, "/api/quotas", QuotaChange(subject="user:bob", values={"devices": 0}, author="noether"))
    none = offer(served, "students", user="bob").tiers[1]
    assert none.refused is not None
    assert (none.refused.reason, none.allowed_at) == ("quota_devices", None)


def test_who_would_wait_is_told_so(served: Served) -> None:
    for number, user in enumerate(("ada", "bob", "eve"), 1):
        start(served, number, user)
    assert offer(served, user="zoe").tiers[1] == GPU.model_copy(
        update={"free": 0, "waiting": 1, "starts_now": False}
    )


def test_the_likely_wait_of_a_start_that_would_wait(served: Served, times: Any) -> None:
    """Sessions have lasted 60 to 64 minutes; both GPUs have been held for half an hour."""
    for number in range(5):
        start(served, number, "past")
        times.pass_seconds(3600 + 60 * number)
        served.do(served.allocator.begin_release(f"{number:032x}", "stopped"))
        served.do(served.allocator.close(f"{number:032x}"))
    served.do(served.allocator.waits.look())
    for number, user in enumerate(("ada", "bob"), 10):
        start(served, number, user)
    times.pass_seconds(1800)
    wait = offer(served, user="zoe").tiers[1].wait
    assert wait is not None
    assert timedelta(minutes=20) < wait.earliest_at - times.now() < timedelta(minutes=31)
    assert timedelta(minutes=30) < wait.latest_at - times.now() < timedelta(minutes=40)
    assert wait.message.startswith("likely ")
    served.do(served.allocator.begin_release(f"{10:032x}", "stopped"))
    served.do(served.allocator.close(f"{10:032x}"))
    assert offer(served, user="zoe").tiers[1].wait is None  # it would begin at once
