"""Pools on the devices of a machine: who shares what, what one lease gets, and what is refused at start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.decide.place.host import Host
from gpuspawner.broker.decide.place.placement import Room, Want, count_free
from gpuspawner.broker.decide.place.pooling import Pooling, make_pooling
from gpuspawner.broker.decide.place.sharing_rules import (
    DRIVER_BYTES,
    TURN_RESERVE_BYTES,
    WHOLE,
    SharingRules,
    worth_compute,
)
from gpuspawner.config.pools import check_tiers, parse_pools
from gpuspawner.config.tiers import parse_tiers
from gpuspawner.core.errors import ConfigError
from gpuspawner.core.model import Device, Guarantee, Mode
from gpuspawner.node.inventory import ComputeMode
from gpuspawner.node.mps.control import MpsProgram
from hypothesis import given
from hypothesis import strategies as st

GIB, MIB = 1 << 30, 1 << 20
SIZE = 81559 * MIB  # what NVML says of an H100 80GB
H0 = Device("GPU-0", "NVIDIA H100 80GB HBM3", SIZE, (9, 0), index=0)
H1 = replace(H0, uuid="GPU-1", index=1)
A2 = Device("GPU-2", "NVIDIA A100-SXM4-40GB", 40 * GIB, (8, 0), index=2)
OLD = Device("GPU-3", "Tesla P100-PCIE-16GB", 16 * GIB, (6, 0), index=3)
MIG = Device(
    "MIG-0", "H100 MIG 1g.10gb", 10 * GIB, (9, 0), index=4, parent_uuid="GPU-9", mig_profile="1g.10gb"
)
MIG3 = replace(MIG, uuid="MIG-1", model="H100 MIG 3g.40gb", memory_bytes=40 * GIB, mig_profile="3g.40gb")
MPS = MpsProgram(Path("/usr/bin/nvidia-cuda-mps-control"))
NO_MPS = MpsProgram(None, "nvidia-cuda-mps-control was not found: install the driver's compute utilities")
HOST = Host(False, MPS)
SLICES = {"name": "class", "mode": "slice", "slices": 8}
CPU = {"name": "cpu"}


def pooling(pools: list[Any], tiers: list[Any], devices: list[Device], host: Host = HOST) -> Pooling:
    return make_pooling(parse_pools(pools), parse_tiers([CPU, *tiers]), devices, host)


def test_without_pools_whole_gpus_and_mig_instances_are_two() -> None:
    found = pooling([], [{"name": "gpu", "devices": 1}], [H0, MIG, H1])
    mig = SharingRules("mig", Mode.MIG)
    assert found == Pooling((H0, MIG, H1), {"GPU-0": WHOLE, "GPU-1": WHOLE, "MIG-0": mig})


def test_where_all_is_mig_an_instance_is_a_gpu() -> None:
    found = pooling([], [{"name": "gpu", "devices": 1}], [MIG, MIG3])
    mig = SharingRules("mig", Mode.MIG, lends_whole=True)
    assert found == Pooling((MIG, MIG3), {"MIG-0": mig, "MIG-1": mig})


def test_pools_take_what_they_name_then_models_then_the_rest() -> None:
    pools = [
        {"name": "rest"},
        {"name": "big", "mode": "slice", "devices": {"model": "h100", "count": 1}, "slices": 4, "mps": False},
        {"name": "named", "mode": "slice", "devices": ["GPU-0"], "slices": 8, "manage_compute_mode": True},
        {"name": "mig", "mode": "mig", "devices": {"model": "1g.10gb"}},
    ]
    found = pooling(pools, [], [H0, H1, A2, MIG, MIG3])
    assert found == Pooling(
        (H0, H1, A2, MIG),
        {
            "GPU-0": SharingRules("named", Mode.SLICE, slices=8, mps=True, reserve_bytes=DRIVER_BYTES),
            "GPU-1": SharingRules("big", Mode.SLICE, slices=4, reserve_bytes=DRIVER_BYTES),
            "GPU-2": SharingRules("rest"),
            "MIG-0": SharingRules("mig", Mode.MIG),
        },
        frozenset({"GPU-0"}),
        ("In no pool of c.GpuSite.pools, so nobody can lease them: MIG-1",),
    )


def test_simulated_devices_serve_slices_as_if_there_were_mps() -> None:
    simulated = Host(True, NO_MPS, "not root")
    found = pooling([SLICES], [{"name": "s", "mode": "slice", "compute_percent": 10}], [H0], simulated)
    assert found.terms == {
        "GPU-0": SharingRules("class", Mode.SLICE, slices=8, mps=True, reserve_bytes=DRIVER_BYTES)
    }


@pytest.mark.parametrize(
    ("pool", "devices", "host", "warned"),
    [
        (SLICES, [H0], Host(False, NO_MPS), "nvidia-cuda-mps-control was not found: install the driver's"),
        (
            SLICES,
            [OLD],
            HOST,
            "GPU-3 (Tesla P100-PCIE-16GB) is older than compute capability 7.0, which MPS's",
        ),
    ],
)
def test_without_mps_slices_are_time_slices(pool: Any, devices: Any, host: Host, warned: str) -> None:
    found = pooling([pool], [{"name": "s", "mode": "slice"}], devices, host)
    assert {terms.mps for terms in found.terms.values()} == {False}
    (warning,) = found.warnings
    assert warning.startswith(
        "c.GpuSite.pools: pool 'class': no MPS, so its slices use time-slicing: memory is"
    )
    assert warned in warning
    for setting in ({"mps": True}, {"compute_percent": 25}, {"manage_compute_mode": True}):
        with pytest.raises(ConfigError, match="needs MPS") as error:
            pooling([{**pool, **setting}], [], devices, host)
        assert warned in str(error.value)
    with pytest.raises(ConfigError, match="compute_percent of tier 's' needs MPS"):
        pooling([pool], [{"name": "s", "mode": "slice", "compute_percent": 5}], devices, host)


@pytest.mark.parametrize(
    ("pools", "tiers", "devices", "said"),
    [
        ([SLICES], [{"name": "s", "mode": "slice", "memory": "10G"}], [H0],
         "tier 's' can't be served by any device: memory 10 GiB (10737418240) is more than the largest slice "
         "of pool 'class', 9.9 GiB"),
        ([{"name": "p", "mode": "slice", "sizes": ["8G", "80G"]}], [], [H0, H1],
         "pool 'p': a slice of 80 GiB is larger than the device, where slices can have 79 GiB: remove it"),
        ([{"name": "p", "mode": "slice", "sizes": ["60G"]}], [], [H0, A2],
         "pool 'p': GPU-2 has 39 GiB to give, too little for one slice: lower slices or sizes, or rem"),
        ([{"name": "p", "mode": "mig"}], [], [H0], "pool 'p' has no device: there is no MIG instance."),
        ([{"name": "p", "devices": {"model": "V100"}}], [], [H0], "pool 'p' has no device: no matching"),
        ([{"name": "p", "devices": ["GPU-7"]}], [], [H0], "use devices of this machine: GPU-0"),
        ([{"name": "p", "devices": ["MIG-0"]}], [], [MIG], "MIG-0 is a MIG instance, but pool 'p' has mode "),
        ([{"name": "p", "mode": "mig", "devices": ["GPU-0"]}], [], [H0], "GPU-0 is a whole GPU, not a MIG"),
        ([], [{"name": "m", "mode": "mig", "mig_profile": "2g.20gb"}], [MIG, MIG3],
         "tier 'm' can't be served by any device: there is no MIG instance '2g.20gb', there are: 1g.10gb, "
         "3g.40gb. Set it up with `nvidia-smi mig -cgi 2g.20gb -C`, or use another mig_profile"),
        ([], [{"name": "m", "mode": "mig"}], [H0], "tier 'm' can't be served by any device: none is in"),
        ([{"name": "p"}], [{"name": "g", "devices": 1, "model": "V100", "pool": "p"}], [H0],
         "none has 'v100' in its name. There are: NVIDIA H100 80GB HBM3"),
        ([{"name": "p", "mode": "slice", "slices": 8}],
         [{"name": "s", "mode": "slice", "compute_percent": 30}], [H0],
         "compute_percent 30 is more than the 25 that pool 'p' gives: lower it, or set the pool's"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(pools: Any, tiers: Any, devices: Any, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        pooling(pools, tiers, devices)
    assert said in str(error.value)


def test_a_guard_that_cannot_end_anybody_guards_nothing() -> None:
    with pytest.raises(ConfigError, match="but the guard can't enforce their memory quotas: run it as root"):
        pooling([SLICES], [], [H0], Host(False, MPS, "run it as root"))


def test_a_gpu_that_cannot_be_read_lets_nobody_else_down() -> None:
    pools = [SLICES, {"name": "mig", "mode": "mig"}]
    tiers = [{"name": "m", "mode": "mig", "mig_profile": "1g.10gb"}, {"name": "s", "mode": "slice"}]
    with pytest.raises(ConfigError):
        pooling(pools, tiers, [H0])
    found = pooling(pools, tiers, [H0], replace(HOST, incomplete=True))
    assert list(found.terms) == ["GPU-0"]
    assert [warning.partition(":")[2][:35] for warning in found.warnings] == [
        " pool 'mig' has no device: there is",
        " tier 'm' can't be served by any de",
    ]


def test_too_few_are_a_warning() -> None:
    pools = [{"name": "p", "devices": ["GPU-0", "GPU-8"]}, {"name": "q", "devices": {"count": 2}}]
    tiers = [{"name": "two", "devices": 2, "pool": "p"}]
    assert pooling(pools, tiers, [H0, H1]).warnings == (
        "c.GpuSite.pools: pool 'p' names GPU-8, which this machine doesn't have: `nvidia-smi -L` lists the "
        "UUIDs that it has. MIG instances get others if they are created in another order",
        "c.GpuSite.pools: pool 'q' needs 2 devices, but 1 are left for it",
        "c.GpuSite.tiers: tier 'two' has 2 devices, but this machine has 1 of that kind",
    )
    assert pooling([], [{"name": "v", "devices": 1, "model": "V100"}], [H0]).warnings == (
        "c.GpuSite.tiers: tier 'v' can't be served by any device: none has 'v100' in its name. There are: "
        "NVIDIA H100 80GB HBM3",
    )


@pytest.mark.parametrize(
    ("terms", "wanted", "got"),
    [
        (SharingRules("p", Mode.SLICE, slices=8, mps=True), (None, None), (10 * GIB, 25.0)),
        (SharingRules("p", Mode.SLICE, slices=8, mps=True), (8 * GIB, None), (8 * GIB, 25.0)),
        (SharingRules("p", Mode.SLICE, slices=8, mps=True), (8 * GIB, 10.0), (8 * GIB, 10.0)),
        (SharingRules("p", Mode.SLICE, slices=8, mps=True), (8 * GIB, 26.0), None),
        (SharingRules("p", Mode.SLICE, slices=8, mps=True), (10 * GIB + 1, None), None),
        (SharingRules("p", Mode.SLICE, slices=8), (None, None), (10 * GIB, 100.0)),  # nothing holds compute
        (SharingRules("p", Mode.SLICE, slices=8), (None, 10.0), None),
        (SharingRules("p", Mode.SLICE, slices=15, mps=True), (None, None), (5461 * MIB, 13.0)),
        (SharingRules("p", Mode.SLICE, slices=1, mps=True), (None, None), (80 * GIB, 100.0)),
        (
            SharingRules("p", Mode.SLICE, slices=15, mps=True, compute_percent=25.0),
            (None, None),
            (5461 * MIB, 25.0),
        ),
        (
            SharingRules("p", Mode.SLICE, sizes_bytes=(8 * GIB, 16 * GIB), mps=True),
            (8 * GIB, None),
            (8 * GIB, 20.0),
        ),
        (
            SharingRules("p", Mode.SLICE, sizes_bytes=(8 * GIB, 16 * GIB), mps=True),
            (None, None),
            (16 * GIB, 40.0),
        ),
        (
            SharingRules("p", Mode.SLICE, sizes_bytes=(8 * GIB, 16 * GIB), mps=True),
            (8 * GIB, 40.0),
            (8 * GIB, 40.0),
        ),
        (SharingRules("p", Mode.SLICE, sizes_bytes=(8 * GIB, 16 * GIB), mps=True), (9 * GIB, None), None),
        (SharingRules("p", Mode.SLICE, sizes_bytes=(90 * GIB,), mps=True), (90 * GIB, None), None),
        (
            SharingRules("p", Mode.SLICE, slices=8, mps=True, reserve_bytes=8 * GIB),
            (None, None),
            (9 * GIB, 25.0),
        ),
    ],
)
def test_what_a_slice_of_80_gib_has(terms: SharingRules, wanted: Any, got: Any) -> None:
    assert terms.slice_of(80 * GIB, *wanted) == got


@pytest.mark.parametrize(
    ("pool", "mode", "who"),
    [
        (
            {"mode": "slice", "slices": 8, "mps": False},
            ComputeMode.EXCLUSIVE_PROCESS,
            "only one program, and so only one slice,",
        ),
        ({"mode": "slice", "slices": 8}, ComputeMode.EXCLUSIVE_PROCESS, ""),
        ({}, ComputeMode.EXCLUSIVE_PROCESS, ""),
        ({}, ComputeMode.PROHIBITED, "no program"),
        ({"mode": "slice", "slices": 8, "mps": False}, ComputeMode.DEFAULT, ""),
    ],
)
def test_a_compute_mode_in_which_a_pool_can_not_work_is_said(
    pool: dict[str, Any], mode: ComputeMode, who: str
) -> None:
    device = Device("GPU-0", "H100", 80 * GIB, compute_capability=(9, 0))
    host = Host(False, MpsProgram(Path("/usr/bin/mps")), modes={"GPU-0": mode})
    found = make_pooling(parse_pools([{"name": "p", **pool}]), (), (device,), host)
    sentence = (
        f"c.GpuSite.pools: pool 'p': GPU-0 is in compute mode {mode.name}, where {who} can use it: set it "
        "with `nvidia-smi -i GPU-0 -c DEFAULT`"
    )
    assert found.warnings == ((sentence,) if who else ())


@pytest.mark.parametrize(("mps", "most"), [(True, 48), (False, 80)])
def test_no_more_small_slices_than_mps_takes_clients(mps: bool, most: int) -> None:
    room = Room(
        Device("GPU-0", "H100", 80 * GIB), terms=SharingRules("p", Mode.SLICE, sizes_bytes=(GIB,), mps=mps)
    )
    assert count_free(Want(1, mode=Mode.SLICE), room) == most


@given(
    st.integers(1, 200 * GIB), st.integers(1, 48), st.integers(0, 2 * GIB), st.booleans(),
    st.none() | st.integers(1, 100),
)  # fmt: skip
def test_so_many_slices_always_fit(
    size: int, slices: int, reserve: int, mps: bool, percent: int | None
) -> None:
    terms = SharingRules(
        "p", Mode.SLICE, slices=slices, compute_percent=percent, mps=mps, reserve_bytes=reserve
    )
    part = terms.slice_of(size, None, None)
    if part is None:
        assert max(0, size - reserve) // slices < MIB
        return
    assert 0 < part[0] * slices <= size - reserve
    assert part[0] % MIB == 0
    assert (size - reserve) // slices - part[0] < MIB
    assert 1.0 <= part[1] <= 100.0
    if not mps:
        assert part[1] == 100.0
    elif percent is None:
        assert part[1] * slices <= 200.0


@pytest.mark.parametrize(
    ("mode", "mps", "simulated", "worth"),
    [
        (Mode.WHOLE, False, False, Guarantee.HARD),
        (Mode.MIG, False, False, Guarantee.HARD),
        (Mode.SLICE, True, False, Guarantee.GUARDED),
        (Mode.SLICE, False, False, Guarantee.NONE),
        (Mode.SLICE, True, True, Guarantee.NONE),
        (Mode.WHOLE, False, True, Guarantee.NONE),
    ],
)
def test_what_compute_is_worth(mode: Mode, mps: bool, simulated: bool, worth: Guarantee) -> None:
    assert worth_compute(mode, mps, simulated) is worth


BIG = replace(HOST, memory_bytes=512 * GIB)
IN_TURNS = {"name": "turns", "mode": "turns"}
TURN_TIER = {"name": "turns", "mode": "turns"}


def seats(pool: dict[str, Any], tier: dict[str, Any], host: Host = BIG) -> tuple[int | None, int | None]:
    """Of the pool on two H100: how many leases it admits, and what is kept for each asleep."""
    found = pooling([{**IN_TURNS, **pool}], [{**TURN_TIER, **tier}], [H0, H1], host)
    settings = found.turns["turns"]
    assert {found.terms[each].seats for each in ("GPU-0", "GPU-1")} == {settings.seats}
    return settings.seats, settings.sleep_memory_bytes


def test_as_many_seats_as_host_memory_holds_asleep() -> None:
    # 0.9 x 512 GiB; for each the promise in host memory and the lab's memory.
    assert seats({}, {"memory": "24G", "mem_limit": "8G"}) == (14, 24 * GIB)
    assert seats({}, {"memory": "24G"}) == (16, 24 * GIB)
    assert seats({"sleep_memory": "30G"}, {"memory": "24G"}) == (13, 30 * GIB)
    assert seats({}, {}) == (5, SIZE - TURN_RESERVE_BYTES)
    assert seats({"seats": 8, "sleep_memory": "40G"}, {"memory": "24G"}) == (8, 40 * GIB)
    assert seats({}, {}, replace(HOST, simulated=True, memory_bytes=GIB)) == (16, SIZE - TURN_RESERVE_BYTES)


def test_two_pools_of_turns_share_the_host_memory() -> None:
    pools = [
        {"name": "rest", "mode": "turns", "sleep_memory": "20G"},
        {"name": "kept", "mode": "turns", "devices": ["GPU-0"], "seats": 10, "sleep_memory": "36G"},
    ]
    found = pooling(pools, [{**TURN_TIER, "pool": "rest", "memory": "20G"}], [H0, H1], BIG)
    assert [found.turns[each].seats for each in ("rest", "kept")] == [4, 10]
    assert found.warnings == ()
    full = replace(BIG, memory_bytes=400 * GIB)
    warning = "pool 'kept': if all 10 sleep, their labs have 0 B of main memory: lower seats, sleep_memory or"
    found = pooling(pools[1:], [{**TURN_TIER, "memory": "20G"}], [H0], full)
    assert [warning in each for each in found.warnings] == [True]


def test_a_gpu_that_comes_later_joins_the_seats_that_there_are() -> None:
    tiers = [{**TURN_TIER, "memory": "24G"}]
    first = pooling([IN_TURNS], tiers, [H0], BIG)
    later = pooling([IN_TURNS], tiers, [H0, H1], replace(BIG, memory_bytes=256 * GIB))
    both = first.with_late(later)
    assert (later.turns["turns"].seats, both.turns["turns"].seats) == (8, 16)
    assert both.terms["GPU-1"] == both.terms["GPU-0"] == first.terms["GPU-0"]


def test_without_moves_a_pool_has_one_gpu() -> None:
    fixed = replace(BIG, turns_move=False)
    assert pooling([IN_TURNS], [{**TURN_TIER, "memory": "24G"}], [H0], fixed).turns["turns"].seats == 16
    with pytest.raises(ConfigError, match="this driver can't wake a program on another GPU"):
        pooling([IN_TURNS], [{**TURN_TIER, "memory": "24G"}], [H0, H1], fixed)


@pytest.mark.parametrize(
    ("pool", "tier", "devices", "host", "said"),
    [
        ({"seats": 30, "sleep_memory": "24G"}, {"memory": "24G"}, [H0], BIG,
         "30 seats with a sleep_memory of 24 GiB are more than the 461 GiB of main memory that this machine "
         "can give: set seats to 19 or less, or lower sleep_memory"),
        ({}, {}, [H0], replace(BIG, memory_bytes=32 * GIB),
         "this machine has too little main memory to keep one lease asleep"),
        ({}, {}, [H0], HOST, "seats is missing, and this machine doesn't say how much memory it has"),
        ({}, {}, [H0, A2], BIG, "GPUs in turns must be of one type, since programs move between them"),
        ({}, {}, [H0], replace(BIG, turns_obstacle="Driver 560 can't"), "has mode 'turns': Driver 560 can't"),
        ({"sleep_memory": "90G"}, {"memory": "79G"}, [H0], BIG, "memory 79 GiB is more than who is awake"),
    ],
)  # fmt: skip
def test_turns_that_this_machine_can_not_keep(
    pool: dict[str, Any], tier: dict[str, Any], devices: list[Device], host: Host, said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        pooling([{**IN_TURNS, **pool}], [{**TURN_TIER, **tier}], devices, host)
    assert said in str(error.value)


def test_a_promise_must_fit_into_what_is_kept_asleep() -> None:
    pools, tiers = (
        parse_pools([{**IN_TURNS, "sleep_memory": "8G"}]),
        parse_tiers([{**TURN_TIER, "memory": "9G"}]),
    )
    with pytest.raises(ConfigError, match=r"memory 9\.0 GiB is more than the sleep_memory of pool"):
        check_tiers(tiers, pools)
    with pytest.raises(ConfigError, match="has mode 'turns', but no pool has that mode"):
        check_tiers(parse_tiers([TURN_TIER]), parse_pools([]))


def test_a_pool_that_names_machines_has_devices_of_these_only() -> None:
    pools = [
        {"name": "class", "mode": "slice", "slices": 8, "nodes": ["b"]},
        {"name": "whole", "nodes": ["a"]},
    ]
    tiers = [{"name": "s", "mode": "slice"}, {"name": "gpu", "devices": 1}]
    on_a = pooling(pools, tiers, [H0], replace(HOST, name="a", others=True, labels=frozenset({"fast"})))
    assert on_a == Pooling((H0,), {"GPU-0": SharingRules("whole", labels=frozenset({"fast"}))})
    on_b = pooling(pools, tiers, [H1], replace(HOST, name="b", others=True))
    assert {uuid: terms.pool for uuid, terms in on_b.terms.items()} == {"GPU-1": "class"}
    on_c = pooling(pools, tiers, [H1], replace(HOST, name="c", others=True))
    assert (on_c.devices, on_c.warnings) == (
        (), ("In no pool of c.GpuSite.pools, so nobody can lease them: GPU-1",),
    )  # fmt: skip


def test_without_other_machines_their_pools_are_said() -> None:
    pools = [{"name": "far", "nodes": ["b"]}, {"name": "near", "nodes": ["a"]}]
    found = pooling(pools, [], [H0], replace(HOST, name="a"))
    assert found.warnings == (
        "c.GpuSite.pools: pool 'far' is on b, and this broker has only the machine a: correct nodes, or let "
        "it join",
    )


def test_a_label_is_what_a_tier_needs_of_the_machine() -> None:
    tiers = [{"name": "near", "devices": 1, "node_label": "fast"}]
    assert pooling([], tiers, [H0], replace(HOST, name="a", labels=frozenset({"fast"}))).warnings == ()
    assert pooling([], tiers, [H0], replace(HOST, name="a")).warnings == (
        "c.GpuSite.tiers: tier 'near' can't be served by any device: this machine doesn't have the label "
        "'fast': see c.GpuSite.node_labels",
    )
