"""The allocator asks the quota under its lock: no interleaving of one user's servers exceeds it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from gpuspawner.broker.leases.allocator import Allocator
from gpuspawner.broker.leases.gate import QuotaGate
from gpuspawner.broker.leases.rulebook import Rulebook
from gpuspawner.config.quotas import Known
from gpuspawner.core.decision import Decision, DecisionKind
from gpuspawner.core.errors import (
    BadOption,
    LeaseConflict,
    LedgerFault,
    NotAllowed,
    QuotaDevices,
    QuotaGpuHours,
    QuotaTier,
    QuotaUnreadable,
    Refusal,
)
from gpuspawner.core.model import GpuRequest, LeaseState, Tier
from gpuspawner.core.want import Mode, Want
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.lease_examples import GPU0, GPU1, GPU2

KNOWN = Known(
    (Tier("cpu", "CPU"), Tier("gpu", "One GPU", want=Want(1)), Tier("pair", "Two GPUs", want=Want(2))),
    None,
    "Europe/Berlin",
)
STUDENTS = [{"group": "students", "devices": 1, "gpu_hours": 10}]


@pytest.fixture
def path(database: str) -> str:
    """Where the ledger is: each test runs on SQLite and on PostgreSQL."""
    return database


def ask(number: int, server: str = "", tier: str = "gpu", user: str = "ada", count: int = 1) -> GpuRequest:
    return GpuRequest(f"{number:032x}", "hub", user, server, tier, Want(count), ("students",))


@asynccontextmanager
async def opened(
    path: str, times: Any, quotas: list[dict[str, Any]], known: Known = KNOWN
) -> AsyncIterator[tuple[Allocator, Rulebook]]:
    """An allocator of three GPUs that holds these quotas."""
    ledger = times.make_ledger(path)
    await ledger.open()
    try:
        rulebook = Rulebook(ledger, quotas, known, clock=times.now)
        await rulebook.load()
        gate = QuotaGate(rulebook, ledger, times.now)
        allocator = Allocator(ledger, clock=times.now, gate=gate)
        await allocator.load([GPU0, GPU1, GPU2])
        yield allocator, rulebook
    finally:
        await ledger.close()


async def test_two_servers_of_one_user_in_the_same_instant(path: str, times: Any) -> None:
    async with opened(path, times, STUDENTS) as (allocator, _):
        answers = await asyncio.gather(
            *(allocator.acquire(ask(number, f"s{number}")) for number in range(5)), return_exceptions=True
        )
        refused = [each for each in answers if isinstance(each, Refusal)]
        assert [type(each) for each in refused] == [QuotaDevices] * 4
        assert refused[0].message == "You hold 1 of 1 GPU in server 's0': stop it, or choose CPU."
        assert len(allocator.leases()) == 1


async def test_asking_again_with_the_same_id_is_the_same_lease(path: str, times: Any) -> None:
    async with opened(path, times, STUDENTS) as (allocator, _):
        assert await allocator.acquire(ask(1)) == await allocator.acquire(ask(1))


async def test_gpu_hours_are_exact_and_come_back(path: str, times: Any) -> None:
    times.wall = times.wall.replace(year=2026, month=11, day=26)  # a Thursday
    async with opened(path, times, STUDENTS) as (allocator, rulebook):
        for number in range(10):
            lease = await allocator.acquire(ask(number))
            await allocator.set_running(lease.id, "c")
            times.pass_seconds(3600)
            await allocator.begin_release(lease.id, "stopped")
            await allocator.close(lease.id)
        with pytest.raises(QuotaGpuHours) as caught:
            await allocator.acquire(ask(10))
        assert caught.value.message == (
            "You have used 10.0 of 10 GPU-hours this week; new ones from Monday 00:00 (Europe/Berlin)."
        )
        grant = rulebook.decision(
            DecisionKind.GRANT, "group:students", {"gpu_seconds": 60}, "noether", "sorry"
        )
        await rulebook.decide(grant)
        await allocator.acquire(ask(11))
        await allocator.begin_release(f"{11:032x}", "stopped")
        await allocator.close(f"{11:032x}")
        times.pass_seconds(4 * 86400)
        await allocator.acquire(ask(12))


async def test_who_may_have_no_gpu_is_sent_to_slices_only_where_there_are_any(path: str, times: Any) -> None:
    quotas = [{"group": "students", "devices": 0}]
    sliced = replace(KNOWN, tiers=(*KNOWN.tiers, Tier("slice", "Slice", want=Want(1, mode=Mode.SLICE))))
    for known, choice in ((KNOWN, "CPU"), (sliced, "another tier, or CPU")):
        async with opened(path, times, quotas, known) as (allocator, _):
            with pytest.raises(QuotaDevices) as caught:
                await allocator.acquire(ask(1))
            assert caught.value.message == (
                f"Your quota has no GPUs: choose {choice}. An admin can change your quota."
            )


async def test_a_change_counts_at_once_for_who_waits_and_takes_no_gpu(path: str, times: Any) -> None:
    async with opened(path, times, []) as (allocator, rulebook):
        held = [await allocator.acquire(ask(number, f"s{number}")) for number in range(2)]
        waits = [
            await allocator.acquire(ask(2, "pair", "pair", count=2)),
            await allocator.acquire(ask(3, "bob", user="bob")),
        ]
        assert [lease.state for lease in waits] == [LeaseState.WAITING] * 2
        await rulebook.decide(
            rulebook.decision(DecisionKind.QUOTA, "user:ada", {"devices": 1}, "noether", "exam")
        )
        (ended,) = await allocator.recheck()
        assert (ended.server, ended.reason) == (
            "pair",
            "quota_devices: You hold 2 of 1 GPU in servers 's0' and 's1' and asked for 2 more: stop one of "
            "them, or choose CPU.",
        )
        assert [lease.state for lease in map(allocator.lease, [each.id for each in held]) if lease] == [
            LeaseState.RESERVED
        ] * 2
        bob = allocator.lease(waits[1].id)
        assert bob is not None
        assert bob.state is LeaseState.RESERVED  # whom ada's pair had kept waiting


async def test_who_left_the_queue_while_the_broker_died_reads_why(path: str, times: Any) -> None:
    """The hub asks the next broker for the same lease: the ledger has the refusal."""
    async with opened(path, times, []) as (allocator, rulebook):
        for number in range(3):
            await allocator.acquire(ask(number, f"s{number}", user="bob"))
        assert (await allocator.acquire(ask(4))).state is LeaseState.WAITING
        await rulebook.decide(
            rulebook.decision(DecisionKind.QUOTA, "user:ada", {"tiers": ["cpu"]}, "noether", "exam")
        )
        await allocator.recheck()
    async with opened(path, times, []) as (allocator, _):
        with pytest.raises(QuotaTier) as caught:
            await allocator.acquire(ask(4))
        assert caught.value.message == (
            "The tier 'One GPU' was taken out of your quota while you waited for it: choose 'CPU'."
        )
        await allocator.begin_release(f"{0:032x}", "stopped")
        await allocator.close(f"{0:032x}")
        with pytest.raises(LeaseConflict):  # one that simply ended
            await allocator.acquire(ask(0, "s0", user="bob"))


async def test_a_tier_that_was_taken_out_of_the_settings_is_waited_for_no_longer(
    path: str, times: Any
) -> None:
    """The settings change with a restart of the broker; who holds a GPU of the tier keeps it."""
    async with opened(path, times, []) as (allocator, _):
        held = await allocator.acquire(ask(0, "s0", "pair", count=2))
        await allocator.acquire(ask(1, "s1", "pair", count=2))
        await allocator.acquire(ask(2, "s2", "pair", user="bob", count=2))
    known = replace(KNOWN, tiers=KNOWN.tiers[:2])
    async with opened(path, times, [], known) as (allocator, _):
        ended = await allocator.recheck()
        sentence = "'pair' was removed from this hub while you waited for it: choose one of CPU, One GPU."
        assert [(each.user, each.reason) for each in ended] == [
            ("ada", f"not_allowed: {sentence}"),
            ("bob", f"not_allowed: {sentence}"),
        ]
        assert [each.id for each in allocator.leases()] == [held.id]
        with pytest.raises(NotAllowed, match="was removed from this hub"):
            await allocator.acquire(ask(2, "s2", "pair", user="bob", count=2))


async def test_a_group_s_properties_count_and_what_can_t_be_read_is_no_free_pass(
    path: str, times: Any
) -> None:
    async with opened(path, times, []) as (allocator, rulebook):
        await rulebook.note_properties({"students": {"tiers": ["cpu"]}})
        with pytest.raises(QuotaTier):
            await allocator.acquire(ask(1))
        await rulebook.note_properties({"students": {"devices": "lots"}})
        with pytest.raises(
            QuotaUnreadable, match="The properties of the hub's group 'students': devices is 'lots'"
        ):
            await allocator.acquire(ask(1))
        await rulebook.note_properties({"students": {}})
        await allocator.acquire(ask(1))


async def test_changes_outlive_a_restart_and_bad_ones_change_nothing(path: str, times: Any) -> None:
    async with opened(path, times, STUDENTS) as (_, rulebook):
        change = rulebook.decision(
            DecisionKind.QUOTA, "group:students", {"leases": 1}, "noether", "exam week"
        )
        await rulebook.decide(change)
        bad = rulebook.decision(DecisionKind.QUOTA, "group:students", {"devices": -1}, "noether", "")
        with pytest.raises(BadOption, match="The quota of group:students: devices is -1"):
            await rulebook.decide(bad)
        rules = rulebook.rules
    async with opened(path, times, STUDENTS) as (allocator, again):
        assert again.rules == rules
        assert again.history(DecisionKind.QUOTA) == (change,)
        await allocator.acquire(ask(1))
        with pytest.raises(QuotaDevices):
            await allocator.acquire(ask(2, "b"))


steps = st.lists(
    st.tuples(st.sampled_from(["start", "start", "run", "stop"]), st.integers(0, 3), st.integers(1, 2)),
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps, st.integers(0, 3), st.integers(1, 3))
def test_no_interleaving_exceeds_the_quota(
    fresh: Callable[[], str], new_times: Any, drawn: list[tuple[str, int, int]], devices: int, leases: int
) -> None:
    """All steps are begun at once; what is held or waited for never exceeds the limit that held then."""

    async def walk(path: str) -> None:
        times = new_times()
        quotas = [{"user": "ada", "devices": devices, "leases": leases}]
        async with opened(path, times, quotas) as (allocator, _):

            async def step(number: int, what: str, server: int, count: int) -> None:
                living = allocator.of_server("hub", "ada", f"s{server}")
                if what == "start":
                    await allocator.acquire(
                        ask(number, f"s{server}", "pair" if count == 2 else "gpu", count=count)
                    )
                elif living and what == "run":
                    await allocator.set_running(living[0].id, "c")
                elif living and what == "stop":
                    await allocator.begin_release(living[0].id, "stopped")
                    await allocator.close(living[0].id)

            def within(_: object) -> None:
                held = [lease for lease in allocator.leases() if lease.user == "ada"]
                assert sum(lease.want.device_count for lease in held) <= devices
                assert len(held) <= leases

            allocator.on_lease = within
            tasks = [step(number, *each) for number, each in enumerate(drawn)]
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert [
                each for each in answers if isinstance(each, Exception) and not isinstance(each, Refusal)
            ] == []

    asyncio.run(walk(fresh()))


@pytest.mark.parametrize(("fault", "kept"), [("before", [60.0]), ("after", [3600.0, 60.0])])
async def test_a_commit_that_fails_leaves_memory_and_ledger_agreed(
    path: str, times: Any, faulty_ledger: Any, fault: str, kept: list[float]
) -> None:
    """The disk was full, or only the answer was lost: what holds is what the ledger has."""
    ledger = times.make_ledger(path, faulty_ledger)
    await ledger.open()
    try:
        rulebook = Rulebook(ledger, STUDENTS, KNOWN, clock=times.now)
        await rulebook.load()

        def grant(seconds: float) -> Decision:
            return rulebook.decision(
                DecisionKind.GRANT, "user:ada", {"gpu_seconds": seconds}, "noether", "sorry"
            )

        ledger.fault = fault
        with pytest.raises(LedgerFault):
            await rulebook.decide(grant(3600.0))
        assert rulebook.rules.entries == ()
        await rulebook.decide(grant(60.0))
        assert [entry.gpu_seconds for entry in rulebook.rules.entries] == kept
        again = Rulebook(ledger, STUDENTS, KNOWN, clock=times.now)
        await again.load()
        assert again.rules == rulebook.rules
    finally:
        await ledger.close()
