"""When a lease last used its GPUs: its own use alone, and what can't be known is not taken for idle."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from gpuspawner.broker.decide.when.gpu_use import GpuUse, gpu_use
from gpuspawner.core.model import Device
from gpuspawner.node.api import Usage, Users

from tests.unit.lease_examples import GPU0, GPU1, NOON, RUNNING, SIMULATED, A, lease

MIG = replace(GPU1, uuid="MIG-1", parent_uuid="GPU-1", mig_profile="1g.10gb")
DEVICES = {device.uuid: device for device in (GPU0, GPU1, SIMULATED, MIG)}
MINE, OTHER = "c" * 64, "d" * 64
EARLY, LATE, NOW = NOON, NOON + timedelta(minutes=5), NOON + timedelta(minutes=9)


@pytest.mark.parametrize(
    ("usage", "found"),
    [
        (Usage(40 << 30, 0.0, Users()), GpuUse(True)),
        (Usage(40 << 30, 99.0, Users({OTHER: LATE})), GpuUse(True)),
        (Usage(40 << 30, 99.0, Users({OTHER: LATE, MINE: EARLY})), GpuUse(True, EARLY)),
        (Usage(0, 0.0, Users({MINE: EARLY}, LATE)), GpuUse(True, LATE)),
        (Usage(0, 99.0), GpuUse(True, NOW)),  # a driver without use by process
        (Usage(0, 0.0), GpuUse(True)),
        (Usage(0), GpuUse(False)),
        (None, GpuUse(True, NOW)),
    ],
)
def test_on_one_device(usage: Usage | None, found: GpuUse) -> None:
    told = {} if usage is None else {GPU0.uuid: usage}
    assert gpu_use(lease(A, RUNNING, GPU0.uuid, container_id=MINE), DEVICES, told, NOW) == found


@pytest.mark.parametrize("device", [MIG, SIMULATED])
def test_what_can_not_be_measured(device: Device) -> None:
    assert gpu_use(lease(A, RUNNING, device.uuid), DEVICES, {}, NOW) == GpuUse(False)


def test_of_several_devices_the_last_use_counts() -> None:
    pair = lease(A, RUNNING, GPU0.uuid, GPU1.uuid, container_id=MINE)
    told = {GPU0.uuid: Usage(0, 0.0, Users({MINE: LATE})), GPU1.uuid: Usage(0, 0.0, Users({MINE: EARLY}))}
    assert gpu_use(pair, DEVICES, told, NOW) == GpuUse(True, LATE)
    assert gpu_use(lease(A, RUNNING), DEVICES, told, NOW) == GpuUse(False)
