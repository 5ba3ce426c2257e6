"""The roster of a class: who has what, who waits longest, who is stuck, and what is said without the hub."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from gpuspawner.broker.api.roster import (
    ClassFacts,
    make_roster,
)
from gpuspawner.broker.decide.line.estimate import Estimate
from gpuspawner.broker.decide.snapshot import QueueEntry
from gpuspawner.broker.leases import memory_notice
from gpuspawner.broker.leases.hub_api import HubServer
from gpuspawner.broker.leases.hub_people import Members, Servers
from gpuspawner.broker.ledger import EndedProcess
from gpuspawner.broker.observe.use import Use
from gpuspawner.core.model import Lease, LeaseState
from gpuspawner.protocol.classes import MemberDocument, MemberState

from tests.unit.lease_examples import NOON, RELEASING, RESERVED, RUNNING, WAITING, lease

GIB = 1 << 30
NOW = NOON + timedelta(hours=1)


def of(user: str, lease_id: str, state: LeaseState, *uuids: str, **more: Any) -> Lease:
    return replace(lease(lease_id * 32, state, *uuids, **more), user=user, groups=("cs1",))


def ended(of_lease: Lease, minutes_ago: float, **more: Any) -> EndedProcess:
    return EndedProcess(
        **{
            "at": NOW - timedelta(minutes=minutes_ago), "offence": "memory", "lease_id": of_lease.id,
            "hub": "hub", "user": of_lease.user, "server": "", "container_id": "c", "device_uuid": "GPU-0",
            "pid": 7, "name": "python", "used_bytes": 9 * GIB, "quota_bytes": 8 * GIB, "over_seconds": 2.0,
            "sentence": "Your process was ended", **more,
        }
    )  # fmt: skip


def rows(facts: ClassFacts) -> list[tuple[str, MemberState, str]]:
    return [(row.user, row.state, row.stuck) for row in make_roster(facts, NOW).members]


def members(*names: str) -> Members:
    return Members(names, NOON)


def test_a_member_with_a_gpu() -> None:
    ada = of("ada", "a", RUNNING, "GPU-0", since=NOON)
    facts = ClassFacts(
        group="cs1",
        members=members("ada"),
        leases=(ada,),
        use={ada.id: Use(3 * GIB, 71.0)},
        idle_since={ada.id: NOW - timedelta(minutes=4)},
        ends_at={ada.id: NOW + timedelta(hours=1)},
    )
    found = make_roster(facts, NOW)
    assert found.members == (
        MemberDocument(
            user="ada", server="", state=MemberState.RUNNING, tier="gpu", lease_id=ada.id, since=NOON,
            memory_used_bytes=3 * GIB, memory_quota_bytes=80 * GIB, compute_percent=71.0,
            idle_since=NOW - timedelta(minutes=4), ends_at=NOW + timedelta(hours=1), position=None,
            earliest_at=None, latest_at=None, stuck="", stuck_since=None, notice="", last_at=None,
        ),
    )  # fmt: skip
    assert (found.counts, found.stuck_count) == ({MemberState.RUNNING: 1}, 0)


def test_who_waits_longest_is_first_and_has_a_range() -> None:
    carl = replace(of("carl", "c", WAITING), created_at=NOW - timedelta(minutes=3))
    ada = replace(of("ada", "a", WAITING), created_at=NOW - timedelta(minutes=9))
    wait = Estimate(NOW.timestamp() + 60, NOW.timestamp() + 600, 1, NOW.timestamp() + 300, 60.0, 0.0)
    queue = (QueueEntry(carl, 1, 2, wait), QueueEntry(ada, 2, 2))
    found = make_roster(ClassFacts("cs1", members("ada", "carl"), (carl, ada), queue), NOW)
    assert [(row.user, row.position, row.since, row.earliest_at, row.latest_at) for row in found.members] == [
        ("ada", 2, NOW - timedelta(minutes=9), None, None),
        ("carl", 1, NOW - timedelta(minutes=3), NOW + timedelta(minutes=1), NOW + timedelta(minutes=10)),
    ]


def test_those_without_a_server() -> None:
    facts = ClassFacts(
        group="cs1",
        members=members("ada", "bob", "carl"),
        servers=Servers({"bob": (HubServer("", "cpu", NOON),), "zoe": (HubServer("", "cpu", NOON),)}, NOON),
        last_at={"carl": NOON},
    )
    found = make_roster(facts, NOW)
    assert [(row.user, row.state, row.tier, row.since, row.last_at) for row in found.members] == [
        ("bob", MemberState.CPU, "cpu", NOON, None),
        ("carl", MemberState.NOTHING, "", None, NOON),
        ("ada", MemberState.NEVER, "", None, None),
    ]
    assert found.counts == {MemberState.CPU: 1, MemberState.NOTHING: 1, MemberState.NEVER: 1}


def test_a_server_that_ended_with_its_lease_is_not_on_cpu() -> None:
    """The hub learns it seconds later; bob has started on CPU since, and carl's is being stopped."""
    servers = {
        "ada": (HubServer("", "gpu", NOON),), "bob": (HubServer("", "cpu", NOON + timedelta(minutes=2)),),
        "carl": (HubServer("", "gpu", NOON, ready=False, ending=True),),
        "dan": (HubServer("", "gpu", NOON, ready=False),),
    }  # fmt: skip
    ended_at = NOON + timedelta(minutes=1)
    facts = ClassFacts(
        "cs1", members(*servers), servers=Servers(servers, NOON),
        last_at={"ada": ended_at, "bob": ended_at, "carl": ended_at},  # dan's only waited
        servers_ended={(user, ""): ended_at for user in servers},
    )  # fmt: skip
    assert {row.user: row.state for row in make_roster(facts, NOW).members} == {
        "ada": MemberState.NOTHING, "bob": MemberState.CPU, "carl": MemberState.ENDING,
        "dan": MemberState.NEVER,
    }  # fmt: skip


def test_the_hub_s_word_on_a_server_with_a_lease_is_not_a_second_row() -> None:
    ada = of("ada", "a", RUNNING, "GPU-0")
    servers = Servers(
        {"ada": (HubServer("", "gpu", NOON), HubServer("second", "cpu", NOON, ready=False))}, NOON
    )
    facts = ClassFacts("cs1", members("ada"), (ada,), servers=servers)
    assert [(row.server, row.state) for row in make_roster(facts, NOW).members] == [
        ("second", MemberState.STARTING), ("", MemberState.RUNNING),
    ]  # fmt: skip


def test_others_are_not_in_it() -> None:
    eve = replace(of("eve", "e", RUNNING, "GPU-0"), groups=("cs1",))  # she has left the class since
    assert rows(ClassFacts("cs1", members("ada"), (eve,))) == [("ada", MemberState.NEVER, "")]


def test_without_the_hub_s_list_those_with_a_lease_are_shown_and_the_fault_is_said() -> None:
    ada, other = of("ada", "a", RUNNING, "GPU-0"), replace(of("bob", "b", RUNNING, "GPU-1"), groups=("cs2",))
    found = make_roster(ClassFacts("cs1", Members(fault="The hub doesn't answer."), (ada, other)), NOW)
    assert [row.user for row in found.members] == ["ada"]
    assert (found.members_as_of, found.members_fault) == (None, "The hub doesn't answer.")


def test_an_old_list_is_shown_with_its_time_and_the_fault() -> None:
    found = make_roster(ClassFacts("cs1", Members(("ada",), NOON, "The hub doesn't answer.")), NOW)
    assert [row.user for row in found.members] == ["ada"]
    assert (found.members_as_of, found.members_fault) == (NOON, "The hub doesn't answer.")


RUNS = of("ada", "a", RUNNING, "GPU-0")


@pytest.mark.parametrize(
    ("facts", "stuck"),
    [
        ({"leases": (RUNS,), "ended": (ended(RUNS, 3),)},
         "Out of GPU memory (used 9.0 GiB, may use 8.0 GiB): kernel ended. "
         "Try a smaller batch, or a tier with more memory."),
        ({"leases": (RUNS,), "ended": (ended(RUNS, 1), ended(RUNS, 3), ended(RUNS, 50))},
         "Out of GPU memory (used 9.0 GiB, may use 8.0 GiB): kernel ended 2 times. "
         "Try a smaller batch, or a tier with more memory."),
        ({"leases": (RUNS,), "ended": (ended(RUNS, 1, used_bytes=8 * GIB + 1),)},
         "Out of GPU memory (more than the 8.0 GiB that it may use): kernel ended. "
         "Try a smaller batch, or a tier with more memory."),
        ({"leases": (RUNS,), "ended": (ended(RUNS, 1, offence="bypassed_mps"),)},
         "A program was ended: it bypassed MPS."),
        ({"leases": (RUNS,), "ended": (ended(RUNS, 16),)}, ""),
        ({"leases": (RUNS,), "ended": (ended(of("ada", "b", RUNNING), 1),)}, ""),
        ({"leases": (replace(RUNS, notice=memory_notice.sentence(4 * GIB)),)},
         "The server's memory (not the GPU's) was full: a kernel was ended."),
        ({"leases": (replace(RUNS, notice="GPU 0 is out of service. Save your work, stop this server "
                             "and start a new one."),)},
         "The GPU is out of service: a new server is needed."),
        ({"leases": (replace(RUNS, notice="It ends at 12:00."),)}, ""),
        ({"leases": (of("ada", "a", RESERVED, "GPU-0", since=NOW - timedelta(minutes=6)),)},
         "The server's start takes long: its image may still be pulled."),
        ({"leases": (of("ada", "a", RESERVED, "GPU-0", since=NOW - timedelta(minutes=1)),)}, ""),
        ({"leases": (of("ada", "a", RELEASING, "GPU-0", since=NOW - timedelta(minutes=6)),)},
         "The server can't be removed yet: its GPU isn't free."),
        ({"leases": (replace(of("ada", "a", WAITING), created_at=NOW - timedelta(minutes=16)),)},
         "Waiting long for a GPU. Stop idle servers to free a GPU."),
        ({"leases": (replace(of("ada", "a", WAITING), created_at=NOW - timedelta(minutes=2)),)}, ""),
        ({"leases": (replace(of("ada", "a", WAITING), created_at=NOW - timedelta(minutes=2)),),
          "obstacles": {"a" * 32: "Too few GPUs are in service."}}, "Too few GPUs are in service."),
    ],
)  # fmt: skip
def test_who_is_stuck_and_why(facts: dict[str, Any], stuck: str) -> None:
    found = make_roster(ClassFacts(group="cs1", members=members("ada"), **facts), NOW)
    assert [row.stuck for row in found.members] == [stuck]
    assert found.stuck_count == bool(stuck)


def test_the_stuck_are_first_the_longest_of_them_at_the_top() -> None:
    bob = of("bob", "b", RUNNING, "GPU-1")
    carl = replace(of("carl", "c", WAITING), created_at=NOW - timedelta(minutes=20))
    dan = replace(of("dan", "d", WAITING), created_at=NOW - timedelta(minutes=2))
    facts = ClassFacts(
        "cs1", members("ada", "bob", "carl", "dan", "eve"), (RUNS, bob, carl, dan), ended=(ended(bob, 5),)
    )
    assert [row.user for row in make_roster(facts, NOW).members] == ["carl", "bob", "dan", "ada", "eve"]
