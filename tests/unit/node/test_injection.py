"""The way into a container, from the engine's own words; and the patch, compared whole."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from docker.types import HostConfig
from gpuspawner.core.errors import ConfigError
from gpuspawner.core.model import ContainerPatch, Lease, Mode
from gpuspawner.core.want import Want
from gpuspawner.node.cdi_spec import CdiSpecs
from gpuspawner.node.driver_files import DriverFiles
from gpuspawner.node.injection import (
    Access,
    EngineFacts,
    Injection,
    LocalFacts,
    choose,
    engine_facts,
    find_access,
    make_patch,
    read_local,
)

from tests.unit.lease_examples import TRAIN, UUIDS

A, B = UUIDS
VERSION_20 = {"Version": "20.10.24+dfsg1", "ApiVersion": "1.41"}
INFO_20 = {
    "Runtimes": {"runc": {"path": "runc"}, "io.containerd.runc.v2": {"path": "runc"}},
    "DefaultRuntime": "runc",
    "CgroupVersion": "1",
}
VERSION_28 = {"Version": "28.5.2", "ApiVersion": "1.51"}
INFO_28 = {
    "Runtimes": {"runc": {"path": "runc"}, "nvidia": {"path": "nvidia-container-runtime"}},
    "DefaultRuntime": "runc",
    "CgroupVersion": "2",
    "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"],
    "DiscoveredDevices": [
        {"Source": "cdi", "ID": "nvidia.com/gpu=0"},
        {"Source": "cdi", "ID": f"nvidia.com/gpu={A}"},
        {"Source": "cdi", "ID": "vendor.com/nic=1"},
        {"Source": "other", "ID": f"nvidia.com/gpu={B}"},
    ],
}
GENERATE = "run `nvidia-ctk cdi generate --device-name-strategy=uuid --output=/etc/cdi/nvidia.yaml`"
NO_UUID = "The CDI specs in /etc/cdi, /var/run/cdi don't name {} by its UUID: " + GENERATE
NO_CDI = "Docker Engine 20.10.24+dfsg1 has no CDI (it came with Engine 25): use Engine 28.3 or newer"
SWITCHED_OFF = (
    "Docker Engine 27.1.0 has CDI switched off: use Engine 28.3 or newer, or set "
    '{"features": {"cdi": true}} in /etc/docker/daemon.json (Engine 25 or newer)'
)
NO_HOOK = (
    "nvidia-container-runtime-hook is not on the engine's PATH: install nvidia-container-toolkit and "
    "restart Docker"
)
OLD = engine_facts(INFO_20, VERSION_20)
NEW = engine_facts(INFO_28, VERSION_28)


def test_facts_of_an_old_engine() -> None:
    assert (
        EngineFacts(
            version="20.10.24+dfsg1",
            api_version="1.41",
            runtimes=("io.containerd.runc.v2", "runc"),
            default_runtime="runc",
            cgroup_version="1",
        )
        == OLD
    )


def test_facts_of_a_new_engine_and_of_what_lies_beside_it() -> None:
    local = LocalFacts(CdiSpecs((B, "all"), ("/etc/cdi/x.yaml can't be read: odd",)), "/usr/bin/hook")
    assert engine_facts(INFO_28, VERSION_28, local) == EngineFacts(
        version="28.5.2",
        api_version="1.51",
        cdi_enabled=True,
        cdi_spec_dirs=("/etc/cdi", "/var/run/cdi"),
        cdi_devices=("0", A, B, "all"),
        cdi_problems=("/etc/cdi/x.yaml can't be read: odd",),
        runtimes=("nvidia", "runc"),
        default_runtime="runc",
        hook_path="/usr/bin/hook",
        cgroup_version="2",
    )
    assert NEW.cdi_devices == ("0", A)


def test_null_lists_are_empty() -> None:
    info = {**INFO_28, "CDISpecDirs": None, "DiscoveredDevices": None, "Runtimes": None}
    facts = engine_facts(info, VERSION_28)
    assert (facts.cdi_enabled, facts.cdi_devices, facts.runtimes) == (False, (), ())


CLASSIC = replace(OLD, hook_path="/usr/bin/nvidia-container-runtime-hook")


@pytest.mark.parametrize(
    ("setting", "facts", "uuids", "way"),
    [
        ("auto", NEW, (A,), Injection.CDI),
        ("auto", NEW, (A, B), Injection.NVIDIA),  # one is named by its UUID, the other isn't
        ("auto", CLASSIC, (A, B), Injection.NVIDIA),
        ("cdi", NEW, (A,), Injection.CDI),
        ("nvidia", NEW, (A,), Injection.NVIDIA),
        ("nvidia", CLASSIC, (A,), Injection.NVIDIA),
    ],
)
def test_the_way_for_real_devices(
    setting: str, facts: EngineFacts, uuids: tuple[str, ...], way: Injection
) -> None:
    assert choose(setting, facts, False, uuids) is way


@pytest.mark.parametrize("setting", ["auto", "cdi", "nvidia", "none"])
def test_simulated_devices_need_no_way(setting: str) -> None:
    assert choose(setting, OLD, True, (A,)) is Injection.NONE


@pytest.mark.parametrize(
    ("setting", "facts", "sentence"),
    [
        ("auto", OLD, f"No GPU can be injected into a container. CDI: {NO_CDI}. Classic: {NO_HOOK}"),
        ("cdi", OLD, f'c.GpuSite.injection is "cdi": {NO_CDI}'),
        ("cdi", replace(OLD, version="27.1.0"), f'c.GpuSite.injection is "cdi": {SWITCHED_OFF}'),
        ("nvidia", OLD, f'c.GpuSite.injection is "nvidia": {NO_HOOK}'),
        (
            "cdi",
            replace(NEW, cdi_devices=()),
            'c.GpuSite.injection is "cdi": No CDI spec in /etc/cdi, /var/run/cdi names an NVIDIA GPU: '
            + GENERATE,
        ),
        (
            "cdi",
            replace(NEW, cdi_devices=("0", "all")),
            f'c.GpuSite.injection is "cdi": The CDI specs in /etc/cdi, /var/run/cdi don\'t name {A} by its '
            f"UUID: {GENERATE}",
        ),
        (
            "none",
            NEW,
            'c.GpuSite.injection is "none", but the devices are real: use "auto", or set '
            'c.GpuSite.inventory = "simulated"',
        ),
    ],
)
def test_what_can_not_work_is_refused_with_the_remedy(
    setting: str, facts: EngineFacts, sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        choose(setting, facts, False, (A,))
    assert str(caught.value) == sentence


ENV = {
    "NVIDIA_VISIBLE_DEVICES": "void",
    "GPUSPAWNER_LEASE": TRAIN.id,
    "GPUSPAWNER_TIER": "pair",
    "GPUSPAWNER_MODE": "whole",
    "GPUSPAWNER_DEVICES": f"{A},{B}",
    "GPUSPAWNER_DEVICE_COUNT": "2",
    "GPUSPAWNER_MEMORY_BYTES": "171041619968",
    "GPUSPAWNER_COMPUTE_PERCENT": "100",
}
LABELS = {
    "gpuspawner.lease": TRAIN.id,
    "gpuspawner.hub": "hub-1",
    "gpuspawner.user": "ada",
    "gpuspawner.server": "train",
    "gpuspawner.tier": "pair",
    "gpuspawner.devices": f"{A},{B}",
}
MOUNT = {"source": "/state/leases/x", "target": "/run/gpuspawner", "type": "bind", "read_only": True}


def request(driver: str, ids: list[str], capabilities: list[list[str]]) -> dict[str, Any]:
    return {"Driver": driver, "Count": 0, "DeviceIDs": ids, "Capabilities": capabilities, "Options": {}}


@pytest.mark.parametrize(
    ("injection", "simulated", "more_env", "requests"),
    [
        (Injection.CDI, False, {}, (request("cdi", [f"nvidia.com/gpu={A}", f"nvidia.com/gpu={B}"], []),)),
        (
            Injection.NVIDIA,
            False,
            {"NVIDIA_VISIBLE_DEVICES": f"{A},{B}", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"},
            (request("nvidia", [A, B], [["gpu"]]),),
        ),
        (Injection.NONE, True, {"GPUSPAWNER_SIMULATED": "1"}, ()),
    ],
)
def test_the_patch_whole(
    injection: Injection,
    simulated: bool,
    more_env: dict[str, str],
    requests: tuple[dict[str, Any], ...],
) -> None:
    patch = make_patch(TRAIN, injection, simulated, "/state/leases/x")
    assert patch == ContainerPatch(
        env={**ENV, **more_env}, labels=LABELS, mounts=(MOUNT,), device_requests=requests
    )
    # docker-py takes the requests as they are, and they survive JSON.
    wanted = json.loads(json.dumps(list(requests)))
    assert HostConfig(version="1.41", device_requests=list(patch.device_requests))["DeviceRequests"] == wanted


SLICE = {
    "gpuspawner.mode": "slice",
    "gpuspawner.memory-bytes": "8589934592",
    "gpuspawner.compute-percent": "25",
}


@pytest.mark.parametrize(
    ("lease", "labels"),
    [
        (replace(TRAIN, want=Want(2, mode=Mode.MIG)), {"gpuspawner.mode": "mig"}),
        (
            replace(
                TRAIN, want=Want(2, mode=Mode.SLICE), memory_bytes=8 << 30, compute_percent=25.0, mps=True
            ),
            SLICE,
        ),
        (
            replace(TRAIN, want=Want(2, mode=Mode.SLICE), memory_bytes=8 << 30),
            {name: value for name, value in SLICE.items() if "percent" not in name},
        ),
    ],
)
def test_labels_tell_what_is_held(lease: Lease, labels: dict[str, str]) -> None:
    assert make_patch(lease, Injection.NONE, True, "/x").labels == {**LABELS, **labels}


def test_what_lies_beside_a_local_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_local([str(tmp_path)]) == LocalFacts(CdiSpecs((), ()), None)
    hook = tmp_path / "nvidia-container-runtime-hook"
    hook.write_text(f"#!{sys.executable}\n")
    hook.chmod(0o755)
    assert read_local([str(tmp_path)]) == LocalFacts(CdiSpecs((), ()), str(hook))


STALE = "/etc/cdi/nvidia.yaml needs /dev/nvidia-uvm, which this machine doesn't have: run `nvidia-modprobe`"
BOTH = replace(NEW, cdi_devices=("0", A, B), runtimes=("runc",))


@pytest.mark.parametrize(
    ("setting", "facts", "access"),
    [
        ("auto", BOTH, Access(Injection.CDI)),
        # The spec doesn't name B: A is leased all the same, unless the classic way gives both.
        ("auto", replace(NEW, runtimes=("runc",)), Access(Injection.CDI, {B: NO_UUID.format(B)})),
        ("auto", NEW, Access(Injection.NVIDIA)),
        ("cdi", NEW, Access(Injection.CDI, {B: NO_UUID.format(B)})),
        ("cdi", replace(BOTH, cdi_obstacles={A: STALE}), Access(Injection.CDI, {A: STALE})),
        ("auto", replace(BOTH, cdi_obstacles={A: STALE}, runtimes=("nvidia",)), Access(Injection.NVIDIA)),
    ],
)
def test_a_device_without_a_way_leaves_the_others_theirs(
    setting: str, facts: EngineFacts, access: Access
) -> None:
    assert find_access(setting, facts, False, (A, B)) == access


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (replace(BOTH, cdi_obstacles={A: STALE, B: STALE}), STALE),
        (replace(BOTH, driver_obstacle="The NVIDIA kernel module is old"), "The NVIDIA kernel module is old"),
        (replace(BOTH, cdi_devices=()), "No CDI spec in /etc/cdi, /var/run/cdi names an NVIDIA GPU"),
    ],
)
def test_where_no_device_has_a_way_the_reason_is_raised(facts: EngineFacts, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_access("cdi", facts, False, (A, B))
    assert sentence in str(caught.value)


def test_simulated_devices_have_nothing_in_their_way() -> None:
    assert find_access("auto", replace(OLD, driver_obstacle="old"), True, (A,)) == Access(Injection.NONE)


def test_the_facts_name_what_was_found_beside_the_engine() -> None:
    local = LocalFacts(CdiSpecs((A,), (), {A: STALE}), None, DriverFiles("580.1", "585.2"))
    facts = engine_facts({**INFO_28, "CgroupDriver": "systemd"}, VERSION_28, local)
    assert (facts.cgroup_driver, facts.cdi_obstacles) == ("systemd", {A: STALE})
    assert facts.driver_obstacle.startswith(
        "The NVIDIA kernel module has version 580.1, but its libraries have"
    )


def test_a_service_gets_its_devices_by_its_environment_alone() -> None:
    facts = engine_facts({**INFO_28, "DefaultRuntime": "nvidia"}, VERSION_28)
    assert find_access(Injection.RUNTIME, facts, False, UUIDS) == Access(Injection.RUNTIME)
    patch = make_patch(TRAIN, Injection.RUNTIME, False, "/x")
    assert patch.env["NVIDIA_VISIBLE_DEVICES"] == ",".join(TRAIN.device_uuids)
    assert (patch.device_requests, patch.runtime) == ((), None)
    assert choose(Injection.RUNTIME, facts, True) is Injection.NONE


def test_a_service_gets_no_device_where_nvidia_s_runtime_is_not_the_default() -> None:
    with pytest.raises(ConfigError, match=r"default runtime is runc: run `nvidia-ctk runtime configure .*`"):
        find_access(Injection.RUNTIME, engine_facts(INFO_28, VERSION_28), False, UUIDS)
