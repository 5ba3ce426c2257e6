"""Tiers and pools from their settings: whole values, and a sentence with the remedy for what can't work."""

from __future__ import annotations

from typing import Any

import pytest
from gpuspawner.config.pools import check_tiers, parse_pools
from gpuspawner.config.site import GpuSite
from gpuspawner.config.tiers import parse_tiers
from gpuspawner.core.errors import ConfigError
from gpuspawner.core.model import Mode, Pool, Tier
from gpuspawner.core.turn import TurnSettings, Unsleepable
from gpuspawner.core.want import Want
from traitlets.config import Config

GIB = 1 << 30
SLICES = {"name": "class", "mode": "slice", "slices": 8}


def test_tiers() -> None:
    assert parse_tiers(
        [
            {"name": "cpu"},
            {"name": "gpu", "title": "One", "devices": 1, "model": "H100", "pool": "big"},
            {"name": "slice", "mode": "slice", "memory": "8G", "compute_percent": 25},
            {"name": "any-slice", "mode": "slice"},
            {"name": "mig", "mode": "mig", "mig_profile": "1g.10gb", "mem_limit": "16G", "cpu_limit": 2},
            {"name": "two", "mode": "mig", "devices": 2, "mig_profile": "1c.3g.20gb"},
            {"name": "turns", "mode": "turns", "memory": "24G"},
        ]
    ) == (
        Tier("cpu", "cpu"),
        Tier("gpu", "One", want=Want(1, "H100", pool="big")),
        Tier(
            "slice", "slice",
            want=Want(1, mode=Mode.SLICE, memory_bytes=8 * GIB, compute_percent=25.0),
        ),
        Tier("any-slice", "any-slice", want=Want(1, mode=Mode.SLICE)),
        Tier(
            "mig", "mig", want=Want(1, mode=Mode.MIG, mig_profile="1g.10gb"), mem_limit_bytes=16 * GIB,
            cpu_limit=2.0,
        ),
        Tier("two", "two", want=Want(2, mode=Mode.MIG, mig_profile="1c.3g.20gb")),
        Tier("turns", "turns", want=Want(1, mode=Mode.TURNS, memory_bytes=24 * GIB)),
    )  # fmt: skip


def test_pools() -> None:
    assert parse_pools(
        [
            {"name": "whole"},
            {"name": "named", "mode": "slice", "devices": ["GPU-a", "GPU-b"], "sizes": ["16G", "8G", "8G"]},
            {
                "name": "class", "mode": "slice", "devices": {"model": "H100", "count": 2}, "slices": 15,
                "compute_percent": 25, "mps": True, "manage_compute_mode": True,
            },
            {"name": "off", "mode": "slice", "devices": {"count": 1}, "slices": 4, "mps": False},
            {"name": "mig", "mode": "mig"},
            {"name": "turns", "mode": "turns", "devices": {"count": 2}},
            {
                "name": "mine", "mode": "turns", "devices": ["GPU-c"], "seats": 12, "sleep_memory": "24G",
                "pause_after": 1, "sleep_after": 300, "min_turn": 1.5, "max_turn": 30, "unsleepable": "end",
            },
        ]
    ) == (
        Pool("whole"),
        Pool("named", Mode.SLICE, uuids=("GPU-a", "GPU-b"), sizes_bytes=(8 * GIB, 16 * GIB)),
        Pool(
            "class", Mode.SLICE, model="H100", count=2, slices=15, compute_percent=25.0, mps=True,
            manage_compute_mode=True,
        ),
        Pool("off", Mode.SLICE, count=1, slices=4, mps=False),
        Pool("mig", Mode.MIG),
        Pool("turns", Mode.TURNS, count=2, turns=TurnSettings()),
        Pool(
            "mine", Mode.TURNS, uuids=("GPU-c",),
            turns=TurnSettings(12, 24 * GIB, 1.0, 300.0, 1.5, 30.0, Unsleepable.END),
        ),
    )  # fmt: skip
    assert parse_pools([]) == ()


@pytest.mark.parametrize(
    ("tier", "said"),
    [
        ({"mode": "turns", "devices": 2}, "devices is 2: a turn is on one GPU at a time, remove devices"),
        ({"mode": "turns", "compute_percent": 5}, "compute_percent is only for mode 'slice', but the tier's"),
        ({"mode": "half"}, "mode is 'half': use 'whole', 'slice', 'mig' or 'turns'"),
        (
            {"memory": "8G", "devices": 1},
            "memory is only for mode 'slice' or 'turns', but the tier's mode is",
        ),
        (
            {"mode": "mig", "compute_percent": 5},
            "compute_percent is only for mode 'slice', but the tier's mode is",
        ),
        (
            {"mode": "slice", "mig_profile": "1g.10gb"},
            "mig_profile is only for mode 'mig', but the tier's mode",
        ),
        ({"mode": "mig", "mig_profile": "10gb"}, "mig_profile is '10gb': write it as `nvidia-smi -L` does"),
        ({"mode": "slice", "devices": 2}, "devices is 2: a slice is part of one device, remove devices"),
        ({"mode": "slice", "devices": 0}, "devices is 0: a slice is part of one device, remove devices"),
        ({"mode": "mig", "devices": 0}, "devices is 0: a CPU tier has no mode, remove mode"),
        ({"pool": "big"}, 'it has a pool but no devices: add "devices": 1, or remove pool'),
        ({"pool": "Big!", "devices": 1}, "pool is 'Big!': give the name of a pool of c.GpuSite.pools"),
        ({"mode": "slice", "memory": "much"}, "memory is 'much': write it like"),
        ({"mode": "slice", "compute_percent": 0}, "compute_percent is 0: give a whole number from 1 to 100"),
        ({"mode": "slice", "compute_percent": 12.5}, "compute_percent is 12.5: give a whole number from 1"),
        ({"mode": "slice", "compute_percent": True}, "compute_percent is True: give a whole number"),
        ({"image": "Foo/Bar:x:y"}, "image is 'Foo/Bar:x:y': it is not the name of an image. Write it like"),
        ({"image": 7}, "image is 7: it is not the name of an image"),
        ({"queue_timeout": 0}, "queue_timeout is 0: give a number of seconds, 1 or more, like 1800"),
        ({"queue_timeout": "soon"}, "queue_timeout is 'soon': give a number of seconds"),
        ({"queue_timeout": True}, "queue_timeout is True: give a number of seconds"),
        ({"mem_limt": "8G"}, "has an unknown key 'mem_limt': use mem_limit"),
        ({"colour": "red"}, "has an unknown key 'colour': use compute_percent, cpu_limit"),
        ({"memroy": "8G"}, "has an unknown key 'memroy': use memory"),
    ],
)
def test_tiers_that_cannot_work(tier: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=r"c\.GpuSite\.tiers: tier 't'") as error:
        parse_tiers([{"name": "t", **tier}])
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        ({"seats": 4}, "seats is only for mode 'turns': remove it, or set the mode"),
        ({"mode": "turns", "slices": 4}, "slices is only for mode 'slice'"),
        ({"mode": "turns", "seats": 0}, "seats is 0: give a whole number from 1 to 1000"),
        ({"mode": "turns", "seats": True}, "seats is True: give a whole number"),
        ({"mode": "turns", "sleep_memory": "much"}, "sleep_memory is 'much': write it like"),
        ({"mode": "turns", "max_turn": "long"}, "max_turn is 'long': give a number of seconds, 0.5 or more"),
        ({"mode": "turns", "pause_after": 0}, "pause_after is 0: give a number of seconds"),
        ({"mode": "turns", "min_turn": 90}, "min_turn (90 s) is longer than max_turn (60 s): lower min_turn"),
        ({"mode": "turns", "unsleepable": "kill"}, "unsleepable is 'kill': use \"pause\""),
        ({"mode": "slice"}, "give either the number of equal slices"),
        ({"mode": "slice", "slices": 2, "sizes": ["8G"]}, "give either the number of equal slices"),
        ({"mode": "slice", "slices": 0}, "slices is 0: give a whole number from 1 to 48"),
        ({"mode": "slice", "slices": 49}, "slices is 49: give a whole number from 1 to 48"),
        ({"mode": "slice", "slices": True}, "slices is True"),
        ({"mode": "slice", "sizes": []}, 'sizes is []: give a list like ["8G", "16G"]'),
        ({"mode": "slice", "sizes": ["8 apples"]}, "sizes is '8 apples': write it like"),
        ({"slices": 4}, "slices is only for mode 'slice': remove it, or set the mode"),
        ({"mode": "mig", "manage_compute_mode": True}, "manage_compute_mode is only for mode 'slice'"),
        ({"mode": "slice", "slices": 2, "mps": "yes"}, "mps and manage_compute_mode are True or False"),
        (
            {**SLICES, "mps": False, "compute_percent": 5},
            "compute_percent can't be enforced if mps is False",
        ),
        ({**SLICES, "mps": False, "manage_compute_mode": True}, "manage_compute_mode lets only MPS reach"),
        ({**SLICES, "compute_percent": 101}, "compute_percent is 101: give a whole number"),
        ({"devices": []}, 'devices is []: give "all", a list of UUIDs'),
        ({"devices": ["GPU-a", "GPU-a"]}, "devices has a UUID twice"),
        ({"devices": {"count": 0}}, "devices is {'count': 0}: give"),
        ({"devices": {"size": 1}}, "devices is {'size': 1}: give"),
        ({"devices": 2}, "devices is 2: give"),
        ({"gpus": "all"}, "has an unknown key 'gpus': use compute_percent, devices"),
    ],
)
def test_pools_that_cannot_work(pool: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=r"c\.GpuSite\.pools: pool 'p'") as error:
        parse_pools([{**pool, "name": "p"}])
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("pools", "said"),
    [
        ([{"name": "P"}], "name 'P' can't be used"),
        ([{}], "name None can't be used"),
        ([{"name": "p"}, {"name": "p"}], "c.GpuSite.pools has 'p' twice: give each pool a different name"),
        (
            [{"name": "p", "devices": ["GPU-a"]}, {"name": "q", "devices": ["GPU-b", "GPU-a"]}],
            "GPU-a is in pool 'p' and in pool 'q': a device is in one pool only, name it once",
        ),
        (
            [{"name": "p"}, SLICES],
            "pools 'p' and 'class' both take all devices: a device is in one pool only",
        ),
    ],
)
def test_pools_that_cannot_work_together(pools: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_pools(pools)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("tier", "pools", "said"),
    [
        ({"mode": "slice"}, [], "has mode 'slice', but no pool has that mode: correct one of the two"),
        ({"mode": "slice"}, [{"name": "p"}], "has mode 'slice', but no pool has that mode"),
        ({"devices": 1}, [SLICES], "has mode 'whole', but no pool has that mode"),
        ({"devices": 1, "pool": "q"}, [{"name": "p"}], "names the pool 'q': c.GpuSite.pools has 'p'"),
        ({"devices": 1, "pool": "q"}, [], "names the pool 'q': c.GpuSite.pools is not set"),
        ({"devices": 1, "pool": "class"}, [{"name": "p"}, {**SLICES, "devices": ["GPU-a"]}],
         "has mode 'whole', but pool 'class' has mode 'slice'"),
        ({"mode": "slice"}, [{"name": "p", "mode": "slice", "sizes": ["8G", "16G"]}], "memory is missing"),
        ({"mode": "slice", "memory": "9G"}, [{"name": "p", "mode": "slice", "sizes": ["8G", "16G"]}],
         "memory is not one of the sizes of pool 'p'"),
        ({"mode": "slice", "compute_percent": 5}, [{**SLICES, "mps": False}],
         "compute_percent can't be enforced: pool 'class' has MPS switched off"),
        ({"mode": "slice", "compute_percent": 30}, [{**SLICES, "compute_percent": 25}],
         "compute_percent 30 is more than the 25 of pool 'class': raise the pool's"),
    ],
)  # fmt: skip
def test_tiers_that_no_pool_can_serve(tier: Any, pools: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ConfigError, match=r"c\.GpuSite\.tiers: tier 't'") as error:
        GpuSite(tiers=[{"name": "cpu"}, {"name": "t", **tier}], pools=pools).parsed_tiers()
    assert said in str(error.value)


def test_one_pool_that_can_is_enough() -> None:
    pools = parse_pools(
        [
            {"name": "p", "mode": "slice", "devices": {"count": 1}, "sizes": ["8G"]},
            {"name": "q", "mode": "slice", "sizes": ["16G"], "compute_percent": 50},
        ]
    )
    tiers = parse_tiers([{"name": "t", "mode": "slice", "memory": "16G", "compute_percent": 40}])
    check_tiers(tiers, pools)
    with pytest.raises(ConfigError, match="not one of the sizes of pool 'p'"):
        check_tiers([Tier("t", "t", want=Want(1, mode=Mode.SLICE, memory_bytes=5))], pools)


def test_by_default_everything_is_as_before() -> None:
    site = GpuSite()
    assert site.parsed_pools() == ()
    assert [(tier.name, tier.want.mode, tier.want.device_count) for tier in site.parsed_tiers()] == [
        ("cpu", Mode.WHOLE, 0),
        ("gpu", Mode.WHOLE, 1),
    ]


@pytest.mark.filterwarnings("ignore:Config option")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pool", "There is no setting c.GpuSite.pool: use pools"),
        ("x", "There is no setting c.GpuSite.x: use engine, fair_share, fair_share_half_life_days, "),
    ],
)
def test_a_setting_that_isnt_there_is_not_left_out_in_silence(name: str, said: str) -> None:
    site = GpuSite(config=Config({"GpuSite": {name: []}}))
    for read in (site.parsed_tiers, site.parsed_pools):
        with pytest.raises(ConfigError) as error:
            read()
        assert str(error.value).startswith(said)


def test_the_longest_queue_timeout() -> None:
    """What a start may take depends on it; broken tiers are told elsewhere."""
    tiers = [{"name": "gpu", "devices": 1}, {"name": "big", "devices": 2, "queue_timeout": 7200}]
    assert [tier.queue_timeout_seconds for tier in parse_tiers(tiers)] == [None, 7200.0]
    assert GpuSite(tiers=tiers, queue_timeout=900).longest_queue_timeout() == 7200.0
    assert GpuSite(tiers=tiers, queue_timeout=9000).longest_queue_timeout() == 9000.0
    assert GpuSite(tiers=[{"nam": "x"}], queue_timeout=900).longest_queue_timeout() == 900.0
