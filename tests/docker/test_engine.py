"""The second engine itself: it knows CDI, injects a device, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import docker
import pytest
from docker.types import DeviceRequest

from .engine import missing, second_engine

pytestmark = pytest.mark.docker


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_injects_a_cdi_device_and_leaves_nothing(tmp_path: Path) -> None:
    specs = tmp_path / "cdi"
    specs.mkdir()
    device = {
        "name": "one",
        "containerEdits": {"deviceNodes": [{"path": "/dev/made-up", "type": "c", "major": 1, "minor": 3}]},
    }
    (specs / "made-up.json").write_text(
        json.dumps({"cdiVersion": "0.6.0", "kind": "example.com/gpu", "devices": [device]})
    )
    system = docker.from_env()
    with second_engine(cdi_spec_dirs=[specs]) as engine:
        info = engine.client.info()
        assert info["CDISpecDirs"] == [str(specs)]
        engine.copy_image(system, "gpuspawner/base:0.1.0")
        said = engine.client.containers.run(
            "gpuspawner/base:0.1.0",
            ["stat", "-c", "%n %t:%T", "/dev/made-up"],
            device_requests=[DeviceRequest(driver="cdi", device_ids=["example.com/gpu=one"])],
            network_mode="none",
            remove=True,
        )
        work = engine.address.parent
    system.close()
    assert said == b"/dev/made-up 1:3\n"
    assert not work.exists()
    assert str(work) not in Path("/proc/mounts").read_text()
