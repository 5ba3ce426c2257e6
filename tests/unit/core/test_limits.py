"""What a lab may use of the machine: numbers worked out by hand."""

from __future__ import annotations

import pytest
from gpuspawner.core.limits import (
    ConfiguredLimits,
    LabRules,
    Limits,
    Machine,
    default_memory,
    default_sentence,
    limits_of,
)
from hypothesis import given
from hypothesis import strategies as st

GIB = 1 << 30
BIG = Machine(128 * GIB, 16)


@pytest.mark.parametrize(
    ("rules", "machine", "bytes_"),
    [
        (LabRules(), BIG, (128 * GIB - 128 * GIB // 10) // 8),  # a tenth for the host, 16 cores: 8 seats
        (LabRules(), Machine(8 * GIB, 2), 6 * GIB),  # at least 2 GiB for the host
        (LabRules(), Machine(8 * GIB, None), 6 * GIB),
        (LabRules(seats=30), BIG, (128 * GIB - 128 * GIB // 10) // 30),
        (LabRules(reserve_bytes=8 * GIB, seats=4), BIG, 30 * GIB),
        (LabRules(reserve_bytes=500 * GIB, seats=4), BIG, 16 * GIB),  # labs have half in any case
        (LabRules(limit_memory=False), BIG, None),
        (LabRules(), Machine(), None),
    ],
)
def test_the_default_memory_limit(rules: LabRules, machine: Machine, bytes_: int | None) -> None:
    assert default_memory(rules, machine) == bytes_


@given(st.integers(1, 1 << 42), st.integers(1, 512), st.integers(0, 500), st.none() | st.integers(1, 1 << 42))
def test_as_many_labs_as_seats_leave_the_host_its_reserve(
    memory: int, cores: int, seats: int, reserve: int | None
) -> None:
    rules = LabRules(seats=seats, reserve_bytes=reserve)
    limit = default_memory(rules, Machine(memory, cores))
    assert limit is not None
    wanted = max(2 * GIB, memory // 10) if reserve is None else reserve
    assert limit * (seats or max(1, cores // 2)) <= memory - min(wanted, memory // 2)


def test_without_anything_configured() -> None:
    memory = (128 * GIB - 128 * GIB // 10) // 8
    assert limits_of(ConfiguredLimits(), LabRules(), BIG) == Limits(memory, None, memory // 2, 4096, 256)


def test_what_is_configured_goes_before_the_rules() -> None:
    configured = ConfiguredLimits(32 * GIB, 4.5, 20 * GIB, 100, 1024)
    assert limits_of(configured, LabRules(shm_bytes=GIB, pids=64), BIG) == Limits(
        32 * GIB, 4.5, 20 * GIB, 100, 1024
    )


def test_without_a_memory_limit_the_seats_share_half_of_the_machine_as_shared_memory() -> None:
    assert limits_of(ConfiguredLimits(), LabRules(limit_memory=False, seats=4), BIG) == Limits(
        None, None, 16 * GIB, 4096, 256
    )
    assert limits_of(ConfiguredLimits(), LabRules(), Machine()) == Limits(None, None, None, 4096, 256)


def test_shared_memory_is_never_less_than_dockers() -> None:
    assert limits_of(ConfiguredLimits(100 << 20), LabRules(), BIG).shm_bytes == 64 << 20


@pytest.mark.parametrize(("cores", "threads"), [(None, None), (0.5, 1), (1.0, 1), (3.9, 3), (8.0, 8)])
def test_threads_of_a_cpu_limit(cores: float | None, threads: int | None) -> None:
    assert Limits(cpu_cores=cores).threads == threads


def test_the_sentences() -> None:
    assert Limits(8 * GIB, 2.0, 4 * GIB, 4096).sentence() == (
        "8.0 GiB of memory, up to 4.0 GiB of it in /dev/shm; 2 cores; 4096 processes"
    )
    assert Limits(None, 1.0, GIB).sentence() == "no memory limit, up to 1.0 GiB in /dev/shm; 1 core"
    assert Limits().sentence() == "no memory limit"
    assert default_sentence(LabRules(seats=4, reserve_bytes=8 * GIB), BIG) == (
        "a lab without its own mem_limit gets 30 GiB: 128 GiB less 8.0 GiB for the host, shared among 4 seats"
    )
    assert default_sentence(LabRules(limit_memory=False), BIG) == (
        "a lab without its own mem_limit may use all memory of the machine, also the hub's"
    )
