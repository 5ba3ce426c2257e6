"""The allocator with the rules of the queue: use from the ledger, limits that change, time, quotas."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from gpuspawner.broker.decide.book import QueueRules
from gpuspawner.broker.decide.line.backfill import SessionHold
from gpuspawner.broker.decide.line.fairshare import FairShare
from gpuspawner.broker.decide.line.queue import Claim
from gpuspawner.broker.decide.turns import Rank
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.leases.gate import QuotaGate
from gpuspawner.broker.leases.queue_rules import queue_rules
from gpuspawner.broker.leases.rulebook import Rulebook
from gpuspawner.broker.ledger import Ledger
from gpuspawner.config.quotas import Known
from gpuspawner.config.tiers import parse_tiers
from gpuspawner.core.decision import Drain
from gpuspawner.core.model import Lease
from gpuspawner.core.want import Want

from tests.unit.lease_examples import GPU0, GPU1, RESERVED, WAITING, A, B, C, D, request

HOUR = 3600.0


async def end(allocator: Allocator, lease_id: str) -> None:
    await allocator.begin_release(lease_id, "stopped")
    await allocator.close(lease_id)


def states(allocator: Allocator) -> dict[str, str]:
    return {lease.id[0]: lease.state.value for lease in allocator.leases()}


async def test_use_outlives_the_broker(ledger: Ledger, times: Any) -> None:
    """User a had the GPU for an hour; after a restart user b, who came later, is served first."""
    for number in range(2):
        allocator = Allocator(ledger, clock=times.now, rules=QueueRules(fair=FairShare()))
        await allocator.load([GPU0])
        if number == 0:
            await allocator.acquire(request(A))
            await allocator.set_running(A, "c0")
            times.pass_seconds(HOUR)
            await end(allocator, A)
    again = "e" * 32
    await allocator.acquire(request(C))
    mine = request(A)
    await allocator.acquire(type(mine)(again, "hub", mine.user, "", "gpu", mine.want))
    await allocator.acquire(request(B))
    assert [entry.lease.id[0] for entry in allocator.snapshot().queue] == ["e", "b"]
    place = {entry.lease.id[0]: entry.position for entry in allocator.snapshot().queue}
    assert place == {"b": 1, "e": 2}
    await end(allocator, C)
    assert states(allocator) == {"e": "waiting", "b": "reserved"}


async def test_what_is_held_at_the_restart_counts_once(ledger: Ledger, times: Any) -> None:
    allocator = Allocator(ledger, clock=times.now)
    await allocator.load([GPU0, GPU1])
    await allocator.acquire(request(A))
    await allocator.set_running(A, "c0")
    times.pass_seconds(HOUR)
    fair = FairShare()
    allocator = Allocator(ledger, clock=times.now, rules=QueueRules(fair=fair))
    await allocator.load([GPU0, GPU1])
    times.pass_seconds(HOUR)
    assert fair.user_use("user-a", times.now().timestamp()) == pytest.approx(2 * HOUR, rel=0.01)
    assert (fair.user_held("user-a"), fair.group_held("")) == (1.0, 1.0)


async def test_a_limit_that_changes_counts_at_once(ledger: Ledger, times: Any) -> None:
    """Who waits is ordered anew and told; a running lease keeps its GPU."""
    priorities = {"user-d": 0}

    def claim(lease: Lease) -> Claim:
        return Claim(priority=priorities.get(lease.user, 0), session_seconds=HOUR)

    allocator = Allocator(ledger, clock=times.now, rules=QueueRules(claim))
    await allocator.load([GPU0])
    for lease_id in (A, B, C, D):
        await allocator.acquire(request(lease_id))
    async with allocator.watch(D) as changes:
        assert (await anext(changes)).position == 3
        priorities["user-d"] = 1
        await allocator.rules_changed()
        assert (await anext(changes)).position == 1
        await end(allocator, A)
        assert (await anext(changes)).lease.state is RESERVED
    assert states(allocator) == {"b": "waiting", "c": "waiting", "d": "reserved"}


async def test_capacity_that_was_kept_goes_back_in_time(ledger: Ledger, times: Any) -> None:
    begins = times.now().timestamp() + HOUR
    lab = SessionHold("cs", Want(1), 1, begins - HOUR, begins, begins + HOUR)
    rules = QueueRules(
        lambda lease: Claim("cs" if lease.user == "user-b" else ""),
        sessions=lambda now: [lab] if lab.applies(now) else [],
    )
    allocator = Allocator(ledger, clock=times.now, rules=rules)
    await allocator.load([GPU0])
    assert (await allocator.acquire(request(A))).state is WAITING
    async with allocator.watch(A) as changes:
        assert (await anext(changes)).obstacle == (
            "The free GPUs are reserved for the lab session of cs,"
            " from 2025-03-01 13:00 UTC to 2025-03-01 14:00 UTC."
            " Your server starts when another GPU is free, or when the session doesn't need all of them."
        )
    assert (await allocator.acquire(request(B))).state is RESERVED
    await end(allocator, B)
    assert states(allocator) == {"a": "waiting"}
    times.pass_seconds(2 * HOUR)
    await allocator.advance()
    assert states(allocator) == {"a": "reserved"}


async def test_who_waits_is_told_of_a_lab_session(ledger: Ledger, times: Any) -> None:
    """It begins while somebody waits; then the GPU becomes free, and is kept."""
    begins = times.now().timestamp() + HOUR
    lab = SessionHold("cs", Want(1), 1, begins - HOUR / 2, begins, begins + HOUR)
    rules = QueueRules(sessions=lambda now: [lab] if lab.applies(now) else [])
    allocator = Allocator(ledger, clock=times.now, rules=rules)
    await allocator.load([GPU0])
    await allocator.acquire(request(A))
    await allocator.acquire(request(B))
    async with allocator.watch(B) as changes:
        assert (await anext(changes)).obstacle == ""
        times.pass_seconds(HOUR)
        await allocator.advance()
        await end(allocator, A)
        assert (await anext(changes)).obstacle.startswith(
            "The free GPUs are reserved for the lab session of cs, from"
        )
        times.pass_seconds(HOUR)
        await allocator.advance()
        assert (await anext(changes)).lease.state is RESERVED


async def test_quotas_say_who_is_next(ledger: Ledger, times: Any) -> None:
    """Priority and weight come from the quotas in the settings, the user's groups from the request."""
    known = Known(parse_tiers([{"name": "gpu", "devices": 1}]), None, "UTC")
    quotas = [
        {"group": "phd", "priority": 1, "guaranteed_devices": 2},
        {"group": "heavy", "weight": 4},
        {"group": "light"},
    ]
    rulebook = Rulebook(ledger, quotas, known, clock=times.now)
    await rulebook.load()
    gate = QuotaGate(rulebook, ledger, times.now)
    fair = FairShare()
    allocator = Allocator(ledger, clock=times.now, gate=gate, rules=queue_rules(gate, fair, 86400.0))
    gate.floor = allocator
    await allocator.load([GPU0])
    now = times.now().timestamp()
    fair.add_past("x", "light", 1, now - HOUR, now)
    fair.add_past("y", "heavy", 1, now - 2 * HOUR, now)
    await allocator.acquire(request(A))
    for lease_id, group in ((B, "light"), (C, "heavy"), (D, "phd")):
        await allocator.acquire(replace(request(lease_id), groups=(group,)))
    places = {entry.lease.id[0]: entry.position for entry in allocator.snapshot().queue}
    assert places == {"d": 1, "c": 2, "b": 3}
    ranks = {lease.id[0]: allocator.turn_rank(lease) for lease in allocator.leases()}
    # Steps of use: a group of weight 4 has used two hours. The others are in no group with a weight.
    assert ranks == {
        "a": Rank(0, (0, 0)), "b": Rank(0, (0, 0)),
        "c": Rank(0, (round(4 * math.log2(1 + 2 / 4)), 0), "heavy"), "d": Rank(1, (0, 0), "phd", 2.0),
    }  # fmt: skip
    times.pass_seconds(7 * 24 * HOUR)  # half of what was used counts, and a has gone on
    ranks = {lease.id[0]: allocator.turn_rank(lease) for lease in allocator.leases()}
    used = round(4 * math.log2(1 + 24 * 7 / math.log(2) / 2))
    assert ranks == {
        "a": Rank(0, (used, used)), "b": Rank(0, (used, 0)), "c": Rank(0, (1, 0), "heavy"),
        "d": Rank(1, (0, 0), "phd", 2.0),
    }  # fmt: skip


async def test_a_drained_device_keeps_its_leases_and_gets_no_new_ones(ledger: Ledger, times: Any) -> None:
    allocator = Allocator(ledger, clock=times.now)
    await allocator.load([GPU0, GPU1])
    await allocator.acquire(request(A))
    await allocator.set_running(A, "c0")
    drain = Drain(times.wall, "root", "new fans")
    await allocator.set_drained({GPU0.uuid: drain, GPU1.uuid: drain})
    await allocator.acquire(request(B))
    await allocator.acquire(request(C))
    assert states(allocator) == {"a": "running", "b": "waiting", "c": "waiting"}
    assert [lease.notice for lease in allocator.leases()] == ["", "", ""]
    assert [view.drain for view in allocator.snapshot().devices] == [drain, drain]
    await end(allocator, A)
    assert states(allocator) == {"b": "waiting", "c": "waiting"}
    await allocator.set_drained({GPU1.uuid: drain})
    assert states(allocator) == {"b": "reserved", "c": "waiting"}
    assert allocator.leases()[0].device_uuids == (GPU0.uuid,)


async def test_who_waits_for_a_drained_device_is_told(ledger: Ledger, times: Any) -> None:
    allocator = Allocator(ledger, clock=times.now)
    await allocator.load([GPU0])
    await allocator.set_drained({GPU0.uuid: Drain(times.wall, "root", "new fans")})
    await allocator.acquire(request(A))
    async with allocator.watch(A) as changes:
        change = await anext(changes)
    assert change.obstacle == (
        "You asked for a GPU, but no matching GPU takes new servers now. GPU 0 has been drained since "
        f"{times.wall.astimezone():%H:%M %Z}: an admin lets no new server start on it (new fans)."
    )


async def test_a_drain_of_another_day_has_its_date(ledger: Ledger, times: Any) -> None:
    since = times.wall - timedelta(days=2)
    allocator = Allocator(ledger, clock=times.now)
    await allocator.load([GPU0])
    await allocator.set_drained({GPU0.uuid: Drain(since, "root", "")})
    await allocator.acquire(request(A))
    told = f"GPU 0 has been drained since {since.astimezone():%Y-%m-%d %H:%M %Z}: an admin lets"
    async with allocator.watch(A) as changes:
        assert told in (await anext(changes)).obstacle


async def test_who_waits_reads_that_a_free_gpu_is_drained(ledger: Ledger, times: Any) -> None:
    """Only while it would serve them: not while somebody has it, nor when nothing more is drained."""
    allocator = Allocator(ledger, clock=times.now)
    await allocator.load([GPU0, GPU1])
    for each in (A, B, C):
        await allocator.acquire(request(each))
    drain = Drain(times.wall, "root", "new fans")
    out = (
        f"GPU 0 has been drained since {times.wall.astimezone():%H:%M %Z}: an admin lets no new server start"
        " on it (new fans)."
    )
    async with allocator.watch(C) as changes:
        assert (await anext(changes)).idle_but_out == ""
        coming = asyncio.ensure_future(anext(changes))
        await allocator.set_drained({GPU0.uuid: drain})
        await asyncio.sleep(0)
        assert not coming.done()  # it is in use
        await end(allocator, A)
        change = await coming
        assert (change.position, change.obstacle, change.idle_but_out) == (1, "", out)
        await allocator.acquire(request(D, 2))
        async with allocator.watch(D) as pairs:
            change = await anext(
                pairs
            )  # on GPU 0 alone it would not run: that both are needed says the obstacle
        assert (change.idle_but_out, out in change.obstacle) == ("", True)
        await allocator.set_drained({})
        assert (await anext(changes)).lease.state is RESERVED


async def test_a_machine_with_the_image_comes_first_also_for_who_has_waited(
    ledger: Ledger, times: Any
) -> None:
    """By the other rules, machine a comes before b. After a restart of the broker, the hub asks again."""
    fleet = [replace(GPU0, node="a"), replace(GPU1, node="b")]
    allocator = Allocator(ledger, clock=times.now)
    await allocator.load(fleet)
    allocator.note_machine_images("b", frozenset({"sha256:lab"}))
    wanted = {each: replace(request(each), image="sha256:lab") for each in (A, C)}
    assert (await allocator.acquire(wanted[A])).node == "b"
    assert (await allocator.acquire(request(B))).node == "a"
    assert (await allocator.acquire(wanted[C])).node == ""
    successor = Allocator(ledger, clock=times.now)
    await successor.load(fleet, place=False)
    successor.note_machine_images("b", frozenset({"sha256:lab"}))
    await successor.acquire(wanted[C])  # its hub asks again
    for each in (A, B):
        await end(successor, each)
    await successor.start_placing()
    assert [(lease.id, lease.node) for lease in successor.leases()] == [(C, "b")]


async def test_only_those_are_woken_whose_place_has_changed(ledger: Ledger, times: Any) -> None:
    """Who comes later changes nothing for those before, and wakes none of them."""
    allocator = Allocator(ledger, clock=times.now, rules=QueueRules(fair=FairShare()))
    await allocator.load([GPU0])
    for each in (A, B, C):
        await allocator.acquire(request(each))
    async with allocator.watch(B) as first, allocator.watch(C) as second:
        assert [(await anext(each)).position for each in (first, second)] == [1, 2]
        coming = [asyncio.ensure_future(anext(each)) for each in (first, second)]
        await allocator.acquire(request(D))
        await allocator.begin_release(B, "given up")
        found = await asyncio.gather(*coming)
    assert [(each.lease.state.value, each.position) for each in found] == [("closed", None), ("waiting", 1)]
