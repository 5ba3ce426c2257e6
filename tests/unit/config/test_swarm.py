"""Settings of several machines: what they default to, and what is refused."""

from __future__ import annotations

import pytest
from gpuspawner.config.swarm import GpuSwarm
from traitlets import TraitError


def test_the_defaults() -> None:
    found = GpuSwarm()
    assert (found.subnet, found.encrypted, found.heartbeat, found.gateway_image) == (
        "10.214.0.0/16", True, 60, "",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("subnet", "why"),
    [
        ("10.214.0.1/16", "has host bits set"),
        ("labs", "write it like"),
        ("10.214.0.0/29", "too small: it needs a /28 for each lab"),
    ],
)
def test_a_subnet_that_cant_be_used(subnet: str, why: str) -> None:
    with pytest.raises(TraitError, match=why):
        GpuSwarm(subnet=subnet)
