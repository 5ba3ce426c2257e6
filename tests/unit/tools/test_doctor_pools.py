"""What doctor says of pools and tiers: whole findings."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpuspawner.broker.decide.place.host import Host
from gpuspawner.broker.decide.place.pooling import Pooling, make_pooling
from gpuspawner.config.pools import parse_pools
from gpuspawner.config.tiers import parse_tiers
from gpuspawner.core.model import Device
from gpuspawner.node.mps.control import MpsProgram
from gpuspawner.tools.doctor import Facts, Finding, Level
from gpuspawner.tools.doctor.pooling import pool_findings

H0 = Device("GPU-0", "H100", 81559 << 20, (9, 0), index=0)
H1 = Device("GPU-1", "H100", 81559 << 20, (9, 0), index=1)
MIG = Device("MIG-0", "H100 MIG 1g.10gb", 10 << 30, index=2, mig_profile="1g.10gb")
POOLS = parse_pools(
    [
        {"name": "class", "mode": "slice", "devices": ["GPU-0"], "slices": 8},
        {"name": "whole"},
        {"name": "mig", "mode": "mig"},
    ]
)
TIERS = parse_tiers(
    [
        {"name": "cpu"},
        {"name": "slice", "mode": "slice", "memory": "8G", "compute_percent": 20},
        {"name": "gpu", "devices": 1},
        {"name": "mig", "mode": "mig"},
        {"name": "v100", "devices": 1, "model": "V100"},
    ]
)
MPS = MpsProgram(Path("/usr/bin/nvidia-cuda-mps-control"))


def ok(subject: str, text: str) -> Finding:
    return Finding(Level.OK, subject, text)


def found(pooling: Pooling, simulated: bool = False) -> tuple[Finding, ...]:
    return tuple(pool_findings(Facts(tiers=TIERS, pooling=pooling, simulated=simulated)))


def test_pools_and_tiers_with_what_they_are_worth() -> None:
    pooling = make_pooling(POOLS, TIERS, [H0, H1, MIG], Host(False, MPS))
    assert found(pooling) == (
        Finding(
            Level.NOTE,
            "Pools",
            "c.GpuSite.tiers: tier 'v100' can't be served by any device: none has 'v100' in its name. "
            "There are: H100",
            "Nothing, if you intend this; else correct the setting or the machine",
        ),
        ok(
            "Pool class",
            "1 device, mode slice, each in 8 of up to 9.9 GiB; compute up to 25 % by MPS, memory guarded",
        ),
        ok("Pool whole", "1 device, mode whole"),
        ok("Pool mig", "1 device, mode mig"),
        ok(
            "Tier slice",
            "mode slice, 8.0 GiB: guarantee guarded; up to 20 % of the compute: guarantee guarded",
        ),
        ok("Tier gpu", "mode whole, guarantee hard"),
        ok("Tier mig", "mode mig, guarantee hard"),
    )


def test_slices_without_mps_and_simulated_ones() -> None:
    pools = parse_pools([{"name": "p", "mode": "slice", "sizes": ["8G", "16G"]}])
    tiers = parse_tiers([{"name": "s", "mode": "slice", "memory": "8G"}])
    pooling = make_pooling(pools, tiers, [H0, H1], Host(False, MpsProgram(None, "There is no MPS.")))
    facts = Facts(tiers=tiers, pooling=pooling)
    assert tuple(pool_findings(facts))[1:] == (
        ok(
            "Pool p",
            "2 devices, mode slice, in sizes of 8.0 GiB, 16 GiB; without MPS: memory is guarded, compute is "
            "not limited",
        ),
        ok("Tier s", "mode slice, 8.0 GiB: guarantee guarded; compute: guarantee none"),
    )
    pooling = make_pooling(pools, tiers, [H0], Host(True, MPS))
    facts = Facts(tiers=tiers, pooling=pooling, simulated=True)
    assert tuple(pool_findings(facts)) == (
        ok(
            "Pool p",
            "1 simulated device, mode slice, in sizes of 8.0 GiB, 16 GiB; simulated, so nothing is enforced",
        ),
        ok("Tier s", "mode slice, 8.0 GiB: guarantee none; up to 20 % of the compute: guarantee none"),
    )


@pytest.mark.parametrize("facts", [Facts(), Facts(inventory_error="broken")])
def test_nothing_is_said_of_what_is_not_known(facts: Facts) -> None:
    assert tuple(pool_findings(facts)) == ()


def test_what_cannot_work_is_a_problem() -> None:
    assert tuple(pool_findings(Facts(pooling_error="Two pools have GPU-0"))) == (
        Finding(
            Level.PROBLEM,
            "Pools",
            "Two pools have GPU-0",
            "Correct the setting: the broker doesn't start with it",
        ),
    )


def test_a_pool_of_turns_says_its_seats_and_what_is_kept_for_each() -> None:
    pools = parse_pools([{"name": "turns", "mode": "turns", "max_turn": 30}])
    tiers = parse_tiers([{"name": "turns", "mode": "turns", "memory": "24G", "mem_limit": "8G"}])
    pooling = make_pooling(pools, tiers, [H0, H1], Host(False, MPS, memory_bytes=512 << 30))
    facts = Facts(tiers=tiers, pooling=pooling, simulated=False)
    assert tuple(pool_findings(facts)) == (
        ok(
            "Pool turns",
            "2 devices, mode turns, 14 seats, 24 GiB of main memory kept for each while it sleeps, turns of "
            "up to 30 s while others wait",
        ),
        ok("Tier turns", "mode turns, 24 GiB of a GPU while it is awake, guarantee guarded"),
    )
