"""Keys of a tier that say what its labs may use, and which tier is preselected."""

from __future__ import annotations

from typing import Any

import pytest
from gpuspawner.config.tiers import parse_tiers
from gpuspawner.core.errors import ConfigError
from gpuspawner.core.model import Tier

GIB = 1 << 30


def test_what_the_labs_of_a_tier_may_use() -> None:
    raw = {"name": "big", "mem_limit": "16G", "shm": "8G", "pids": 100, "cpu_shares": 512, "default": True}
    assert parse_tiers([raw, {"name": "cpu"}]) == (
        Tier(
            "big",
            "big",
            mem_limit_bytes=16 * GIB,
            shm_bytes=8 * GIB,
            pids=100,
            cpu_shares=512,
            default=True,
        ),
        Tier("cpu", "cpu"),
    )


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (
            {"shm": "9G", "mem_limit": "8G"},
            "shm is 9.0 GiB, more than the mem_limit that includes it (8.0 GiB): make shm smaller or "
            "mem_limit larger",
        ),
        ({"shm": "much"}, 'shm is \'much\': write it like "8G", "512M" or a number of bytes'),
        ({"pids": 0}, "pids is 0: give a whole number from 64 to 4194304"),
        ({"pids": True}, "pids is True: give a whole number from 64 to 4194304"),
        ({"cpu_shares": 1.5}, "cpu_shares is 1.5: give a whole number from 2 to 262144"),
        ({"default": "yes"}, "default is 'yes': set it to True for the tier that is preselected"),
    ],
)
def test_what_cant_work(raw: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_tiers([{"name": "t", **raw}])
    assert str(error.value).partition("'t'")[2].lstrip(": ") == sentence


def test_one_tier_is_the_default_at_most() -> None:
    with pytest.raises(ConfigError, match="'a' and 'c' are both the default: choose one"):
        parse_tiers([{"name": "a", "default": True}, {"name": "b"}, {"name": "c", "default": True}])
