"""Who ends for what: by example, and as properties over any sequence of samples."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from gpuspawner.node.guard.judge import (
    History,
    Judgement,
    Offence,
    ProcessSample,
    Quota,
    QuotaPlan,
    Rules,
    Verdict,
    judge,
)
from gpuspawner.node.processes import Process
from hypothesis import given
from hypothesis import strategies as st

GPU = "GPU-1"
GIB = 1 << 30
RULES = Rules()
ANNA, BEN, STRANGER = "a" * 64, "b" * 64, "c" * 64
QUOTA = Quota("lease-a", ANNA, GPU, 8 * GIB)
ORDERS = QuotaPlan((QUOTA,), frozenset({ANNA, BEN}), frozenset({GPU}))


def seen(
    pid: int, gib: float | None, container: str | None = ANNA, *, mps: bool | None = None, start: int = 0
) -> ProcessSample:
    memory_bytes = None if gib is None else int(gib * GIB)
    ids = () if container is None else (container,)
    return ProcessSample(Process(pid, start or pid * 10, "python3", ids), container, memory_bytes, mps)


@dataclass
class Sitting:
    """A device over time."""

    orders: QuotaPlan = ORDERS
    history: History = field(default_factory=History)
    now: float = 0.0
    last: Judgement | None = None

    def at(self, now: float, *samples: ProcessSample) -> list[tuple[int, Offence, float]]:
        """The verdicts at `now`: pid, offence, seconds."""
        self.now = now
        self.last = judge(samples, self.orders, self.history, now, RULES)
        self.history = self.last.history
        return [
            (each.seen.process.pid, each.offence, round(each.over_seconds, 3)) for each in self.last.verdicts
        ]


def test_within_the_quota_nothing_happens() -> None:
    sitting = Sitting()
    assert [sitting.at(now, seen(1, 8.06), seen(2, None)) for now in range(100)] == [[]] * 100
    assert sitting.last is not None
    assert not sitting.last.alert


def test_the_one_that_grew_ends_after_the_grace_and_the_other_lives() -> None:
    sitting = Sitting()
    large = seen(1, 6)
    assert sitting.at(0, large, seen(2, 1)) == []
    assert sitting.at(1, large, seen(2, 3)) == []
    assert sitting.last is not None
    assert sitting.last.alert
    assert sitting.at(2, large, seen(2, 3)) == []
    verdict = Verdict(seen(2, 3), Offence.MEMORY, QUOTA, 9 * GIB, 2.0)
    assert judge([large, seen(2, 3)], ORDERS, sitting.history, 3, RULES).verdicts == (verdict,)


def test_until_it_has_gone_the_ended_one_does_not_count_and_nobody_else_ends() -> None:
    sitting = Sitting()
    both = seen(1, 6), seen(2, 3)
    sitting.at(0, seen(1, 6))
    assert [sitting.at(now, *both) for now in (1, 2, 3)] == [[], [], [(2, Offence.MEMORY, 2.0)]]
    assert [sitting.at(now, *both) for now in (3.25, 4, 5, 6, 7)] == [[]] * 5
    # It doesn't go: after `settle_seconds` it counts again, and is ended again.
    assert [sitting.at(now, *both) for now in (8, 9, 10)] == [[], [], [(2, Offence.MEMORY, 2.0)]]


def test_while_more_than_one_is_over_they_end_the_largest_growth_first() -> None:
    sitting = Sitting()
    samples = seen(1, 1), seen(2, 5), seen(3, 9), seen(4, 4)
    sitting.at(0, seen(1, 1))
    assert sitting.at(1, *samples) == []
    assert sitting.at(1.25, *samples) == [(3, Offence.MEMORY, 0.25)]  # over 1.5 times the quota
    assert sitting.at(1.5, *samples) == []
    assert sitting.at(3, *samples) == [(2, Offence.MEMORY, 2.0)]


def test_as_many_end_at_once_as_it_takes() -> None:
    """However fast a program forks, a look brings it back within its quota."""
    sitting = Sitting()
    crowd = [seen(pid, 1) for pid in range(100, 140)]
    sitting.at(0, seen(1, 6), seen(2, None))
    sitting.at(1, seen(1, 6), seen(2, None), *crowd)
    ended = [pid for pid, _, _ in sitting.at(1.25, seen(1, 6), seen(2, None), *crowd)]
    assert len(ended) == 46 - 12  # far over: down to 1.5 times the quota
    assert sitting.at(3, seen(1, 6), *crowd[:6]) == [
        (pid, Offence.MEMORY, 2.0) for pid in (105, 104, 103, 102)
    ]
    assert sitting.at(4, seen(1, 6), *crowd[:2]) == []


def test_one_whose_memory_is_not_told_does_not_end_for_it() -> None:
    sitting = Sitting()
    sitting.at(0, seen(1, 8), seen(2, None))
    sitting.at(1, seen(1, 7.9), seen(2, None), seen(3, 9))
    sitting.at(2, seen(1, 7.9), seen(2, None), seen(3, 9))
    assert sitting.at(8, seen(1, 7.9), seen(2, None), seen(4, 0.2)) == []
    assert sitting.at(9, seen(1, 7.9), seen(2, None), seen(4, 0.2)) == []
    assert sitting.at(10, seen(1, 7.9), seen(2, None), seen(4, 0.2)) == [(4, Offence.MEMORY, 2.0)]


def test_far_over_takes_two_samples_and_no_grace() -> None:
    sitting = Sitting()
    assert sitting.at(0, seen(1, 40)) == []
    assert sitting.at(0.25, seen(1, 40)) == [(1, Offence.MEMORY, 0.25)]


def test_a_sample_far_over_between_two_within_ends_nobody() -> None:
    sitting = Sitting()
    assert [sitting.at(now, seen(1, gib)) for now, gib in enumerate([4, 16, 4, 16, 4])] == [[]] * 5


def test_bursts_add_up() -> None:
    """A quarter of a second over in each: ended by the eleventh, not never."""
    sitting, ended = Sitting(), []
    for second in range(30):
        sitting.at(second, seen(1, 2))
        sitting.at(second + 0.5, seen(1, 9))
        ended += [(second, verdict) for verdict in sitting.at(second + 0.7, seen(1, 9))]
        sitting.at(second + 0.75, seen(1, 2))
        if ended:
            break
    assert [second for second, _ in ended] == [9]


def test_a_kernel_that_is_started_anew_does_not_inherit_the_time() -> None:
    sitting = Sitting()
    sitting.at(0, seen(1, 9))
    assert sitting.at(2, seen(1, 9)) == [(1, Offence.MEMORY, 2.0)]
    assert sitting.at(3, seen(2, 9)) == []
    assert sitting.at(4, seen(2, 9)) == []


def test_a_time_in_which_nothing_could_be_read_does_not_count() -> None:
    sitting = Sitting()
    sitting.at(0, seen(1, 9))
    sitting.history = replace(sitting.history, at=None)
    assert sitting.at(60, seen(1, 9)) == []
    assert sitting.at(61, seen(1, 9)) == []
    assert sitting.at(62, seen(1, 9)) == [(1, Offence.MEMORY, 2.0)]


def test_after_a_restart_the_largest_ends() -> None:
    sitting = Sitting()
    sitting.at(0, seen(1, 5), seen(2, 4))
    assert sitting.at(2, seen(1, 5), seen(2, 4)) == [(1, Offence.MEMORY, 2.0)]


def test_a_reused_pid_is_another_process() -> None:
    sitting = Sitting()
    sitting.at(0, seen(1, 6), seen(2, 1))
    sitting.at(1, seen(1, 6), seen(2, 4, start=999))
    assert sitting.at(3, seen(1, 6), seen(2, 4, start=999)) == [(2, Offence.MEMORY, 2.0)]


def test_no_lease_for_this_device() -> None:
    sitting = Sitting()
    intruder = seen(5, 0.5, BEN)
    assert [sitting.at(now, intruder, seen(1, 1)) for now in (0, 1)] == [[], []]
    assert sitting.at(2, intruder, seen(1, 1)) == [(5, Offence.NO_LEASE, 2.0)]
    assert sitting.at(3, intruder, seen(1, 1)) == []


def test_round_mps() -> None:
    quota = replace(QUOTA, mps_required=True)
    sitting = Sitting(replace(ORDERS, quotas=(quota,)))
    samples = seen(1, 1, mps=True), seen(2, 1, mps=False), seen(3, 1, mps=None)
    assert [sitting.at(now, *samples) for now in (0, 1)] == [[], []]
    assert sitting.at(2, *samples) == [(2, Offence.BYPASSED_MPS, 2.0)]


@pytest.mark.parametrize("offence", [Offence.BYPASSED_MPS, Offence.NO_LEASE])
def test_short_processes_one_after_the_other_add_up(offence: Offence) -> None:
    """Each ends by itself before its grace: the time is the container's."""
    quota = replace(QUOTA, mps_required=True)
    container = ANNA if offence is Offence.BYPASSED_MPS else BEN
    sitting, ended, alive_seconds = Sitting(replace(ORDERS, quotas=(quota,))), [], 0.0
    for number in range(30):
        for tick in range(6):  # 1.5 s each, looked at four times a second
            found = sitting.at(number * 2 + tick / 4, seen(100 + number, 1, container, mps=False))
            alive_seconds += 0.25
            if found:
                ended += found
                break
        sitting.at(number * 2 + 1.75)
    assert [pid for pid, _, _ in ended] == list(range(101, 130))
    assert {each for _, each, _ in ended} == {offence}
    assert alive_seconds < 30 * 0.6  # from then on each at its second look


def test_round_mps_and_over_quota_is_one_verdict() -> None:
    quota = replace(QUOTA, mps_required=True)
    sitting = Sitting(replace(ORDERS, quotas=(quota,)))
    samples = seen(1, 4, mps=True), seen(2, 7, mps=False)
    sitting.at(0, *samples)
    assert sitting.at(2, *samples) == [(2, Offence.BYPASSED_MPS, 2.0)]


def test_one_blink_round_mps_is_not_believed() -> None:
    quota = replace(QUOTA, mps_required=True)
    sitting = Sitting(replace(ORDERS, quotas=(quota,)))
    found = [sitting.at(now, seen(1, 1, mps=now % 2 == 0)) for now in range(20)]
    assert found == [[]] * 20


def test_where_the_hardware_holds_the_memory_nobody_ends_for_it() -> None:
    """Whatever NVML counts there, a device that is somebody's alone is never over its quota."""
    sitting = Sitting(replace(ORDERS, quotas=(replace(QUOTA, memory_bytes=None, mps_required=True),)))
    assert [sitting.at(now, seen(1, 300)) for now in range(10)] == [[]] * 10
    sitting.at(10, seen(1, 300, mps=False))
    assert sitting.at(12, seen(1, 300, mps=False)) == [(1, Offence.BYPASSED_MPS, 2.0)]


@pytest.mark.parametrize("container", [None, STRANGER])
def test_others_are_left_alone(container: str | None) -> None:
    sitting = Sitting(replace(ORDERS, quotas=(replace(QUOTA, mps_required=True),)))
    samples = seen(1, 70, container, mps=False), seen(2, 8)
    assert [sitting.at(now, *samples) for now in range(50)] == [[]] * 50


def test_orders_of_one_device() -> None:
    other = Quota("lease-b", BEN, "GPU-2", GIB)
    orders = QuotaPlan((QUOTA, other), frozenset({STRANGER}), frozenset({"GPU-3"}))
    assert orders.watched() == {"GPU-1", "GPU-2", "GPU-3"}
    assert orders.on("GPU-2") == QuotaPlan((other,), frozenset({ANNA, BEN, STRANGER}), frozenset({"GPU-2"}))


# ---- properties

containers = st.sampled_from([None, ANNA, BEN, STRANGER])
processes = st.builds(
    seen,
    st.integers(1, 6),
    st.one_of(st.none(), st.integers(0, 30)),
    containers,
    mps=st.sampled_from([None, False, True]),
    start=st.integers(1, 3),
)
steps = st.tuples(st.floats(0, 5), st.lists(processes, max_size=6, unique_by=lambda each: each.process.pid))


@given(st.lists(steps, max_size=40), st.booleans())
def test_a_verdict_hits_only_a_present_process_of_ours_and_for_a_reason(
    course: list[tuple[float, list[ProcessSample]]], mps_required: bool
) -> None:
    quota = replace(QUOTA, mps_required=mps_required)
    sitting = Sitting(QuotaPlan((quota,), frozenset({ANNA, BEN})))
    now = 0.0
    for step, samples in course:
        now += step
        sitting.at(now, *samples)
        assert sitting.last is not None
        keys = [verdict.seen.key for verdict in sitting.last.verdicts]
        assert len(keys) == len(set(keys))
        for verdict in sitting.last.verdicts:
            assert verdict.seen in samples
            used = sum(each.memory_bytes or 0 for each in samples if each.container_id == ANNA)
            match verdict.offence:
                case Offence.MEMORY:
                    assert quota.memory_bytes is not None
                    assert verdict.seen.container_id == ANNA
                    assert used >= verdict.used_bytes > quota.memory_bytes + RULES.tolerance_bytes
                    assert verdict.seen.memory_bytes
                case Offence.NO_LEASE:
                    assert verdict.seen.container_id == BEN
                case Offence.BYPASSED_MPS:
                    assert mps_required
                    assert (verdict.seen.container_id, verdict.seen.through_mps) == (ANNA, False)


@given(
    st.lists(steps, max_size=15),
    st.lists(st.floats(0.05, 2), min_size=1, max_size=40).filter(lambda pauses: sum(pauses) > 2.001),
    st.lists(st.integers(9, 60), min_size=40, max_size=40),
)
def test_over_for_longer_than_the_grace_always_ends_somebody(
    before: list[tuple[float, list[ProcessSample]]], pauses: list[float], sizes: list[int]
) -> None:
    """Whatever was before, and however the memory moves while it is over."""
    sitting, now, ended = Sitting(), 0.0, []
    for step, samples in before:
        now += step
        sitting.at(now, *(replace(each, container_id=BEN) for each in samples))
    sitting.at(now, seen(50, sizes[0]))
    for pause, gib in zip(pauses, sizes, strict=False):
        now += pause
        ended += sitting.at(now, seen(50, gib))
    assert ended
    assert {pid for pid, _, _ in ended} == {50}


@given(st.lists(st.tuples(st.floats(0.05, 2), st.floats(0, 8)), max_size=40))
def test_a_container_within_its_quota_is_never_touched(course: list[tuple[float, float]]) -> None:
    sitting, now, ended = Sitting(), 0.0, []
    for step, gib in course:
        now += step
        ended += sitting.at(now, seen(1, gib / 2), seen(2, gib / 2), seen(3, None))
    assert ended == []
