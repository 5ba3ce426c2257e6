"""What people read of devices that take no new servers: each named while they are few, else counted."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from gpuspawner.broker.decide.place import notice
from gpuspawner.core.model import Device, DeviceHealth
from gpuspawner.core.want import Want

NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)


def lost(count: int) -> list[tuple[Device, DeviceHealth]]:
    """So many GPUs of a machine that can't be reached."""
    return [
        (
            Device(f"GPU-{number}", "H100", 80 << 30, index=number, node="b"),
            DeviceHealth(f"GPU-{number}", False, "the machine b can't be reached"),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("count", "named", "end"),
    [
        (1, 1, "GPU 0 of machine b is out of service: the machine b can't be reached."),
        (4, 4, "GPU 3 of machine b is out of service: the machine b can't be reached."),
        (5, 4, "1 more such GPU is drained or out of service."),
        (800, 4, "796 more such GPUs are drained or out of service."),
    ],
)
def test_a_few_are_named_and_the_others_counted(count: int, named: int, end: str) -> None:
    """A user who waits for a hundred machines would else be sent 40,000 characters."""
    for said in (notice.out_of_service(Want(1), lost(count), NOW), notice.needs_admin(Want(1), lost(count))):
        assert said.count("can't be reached") == named
        assert end in said
    assert notice.idle_but_out(lost(count), NOW).endswith(end)
    assert notice.idle_but_out([], NOW) == ""
