"""doctor's judgement from facts alone, and the facts of this machine with a scripted NVML."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.app import GpuBroker
from gpuspawner.broker.decide.place.pooling import Pooling
from gpuspawner.broker.decide.place.sharing_rules import WHOLE
from gpuspawner.config.tiers import DEFAULT_TIERS, parse_tiers
from gpuspawner.core.model import Device
from gpuspawner.node.driver_files import DriverFiles
from gpuspawner.node.injection import EngineFacts
from gpuspawner.node.inventory import ComputeMode, DriverFacts
from gpuspawner.node.inventory.simulated import parse_simulated
from gpuspawner.tools.doctor import (
    BrokerFacts,
    Facts,
    Finding,
    ImageFacts,
    LedgerFacts,
    Level,
    examine,
    machine,
)
from gpuspawner.tools.doctor.checks import describe, main_job_runs, memory_limits, version_of
from gpuspawner.tools.doctor.reach import ELSEWHERE
from traitlets.config import Config

from tests.nvml import scripted
from tests.nvml.scripted import Gpu, Script

A = "GPU-aaaaaaaa-0000-0000-0000-000000000001"
H100 = Device(A, "NVIDIA H100 80GB HBM3", 85_520_809_984, (9, 0), 132, 5120, 2_619_000_000, 0)
ENGINE = EngineFacts(
    version="28.5.2",
    api_version="1.51",
    cdi_enabled=True,
    cdi_spec_dirs=("/etc/cdi",),
    cdi_devices=(A,),
    runtimes=("runc",),
    cgroup_version="2",
)
GOOD = Facts(
    devices=(H100,),
    driver=DriverFacts("580.159.04", "13.0", 1, ()),
    engine=replace(ENGINE, hook_path="/usr/bin/nvidia-container-runtime-hook"),
    mps_path="/usr/bin/nvidia-cuda-mps-control",
    mps_version="MPS 580",
    cuda_bindings_version="13.0.1",
    images=(ImageFacts("lab", True, "13.0", "580"),),
    ledger=LedgerFacts("/state/ledger.sqlite", 7),
    broker=BrokerFacts("/state/broker.sock", "", False, 1),
)


def ok(subject: str, text: str) -> Finding:
    return Finding(Level.OK, subject, text)


def note(subject: str, text: str, remedy: str) -> Finding:
    return Finding(Level.NOTE, subject, text, remedy)


def problem(subject: str, text: str, remedy: str) -> Finding:
    return Finding(Level.PROBLEM, subject, text, remedy)


GOOD_FINDINGS = (
    ok("NVIDIA driver", "580.159.04, CUDA up to 13.0"),
    ok("GPU 0", f"NVIDIA H100 80GB HBM3, compute capability 9.0, 132 SMs, 80 GiB, 3.35 TB/s, {A}"),
    ok("Docker", "Engine 28.5.2, API 1.51"),
    ok("cgroup", "version 2"),
    ok("CDI", f"specs in /etc/cdi name {A}"),
    ok("Classic request", "/usr/bin/nvidia-container-runtime-hook"),
    ok("Injection", "CDI"),
    ok("MPS", "/usr/bin/nvidia-cuda-mps-control, MPS 580"),
    ok("CUDA checkpoint", "the driver has it, cuda-bindings 13.0.1"),
    ok("GPU memory by cgroup", "not in this driver (from 615 on): the guard enforces the quotas of slices"),
    ok("Image lab", "present, CUDA 13.0 on driver 580.159.04"),
    ok("Ledger", "/state/ledger.sqlite: 7 leases"),
    ok("Broker", "answers on /state/broker.sock, 1 devices"),
)


def test_a_machine_where_all_is_well() -> None:
    assert examine(GOOD) == GOOD_FINDINGS
    assert main_job_runs(GOOD_FINDINGS)


CDI_MISSING = "The CDI specs in /etc/cdi don't name"
GENERATE = "run `nvidia-ctk cdi generate --device-name-strategy=uuid --output=/etc/cdi/nvidia.yaml`"
NO_HOOK = "nvidia-container-runtime-hook is not on the engine's PATH"
INSTALL_HOOK = "Install nvidia-container-toolkit and restart Docker, or use CDI"


@pytest.mark.parametrize(
    ("changes", "findings", "runs"),
    [
        (
            {"mps_path": None},
            [
                note(
                    "MPS",
                    "nvidia-cuda-mps-control was not found",
                    "Install the driver's compute utilities: with MPS, slices also limit compute; without, "
                    "they take turns",
                )
            ],
            True,
        ),
        (
            {"cuda_bindings_version": None},
            [
                note(
                    "CUDA checkpoint",
                    "the driver has it, but cuda-bindings is missing",
                    "Nothing, unless GPUs shall be used in turns: then pip install 'gpuspawner[turns]'",
                )
            ],
            True,
        ),
        (
            {"driver": DriverFacts("550.90.07", None, 2, ("GPU 1: It is lost.",)), "images": ()},
            [
                ok("NVIDIA driver", "550.90.07, CUDA up to not available"),
                note(
                    "GPU not listed",
                    "GPU 1: It is lost.",
                    "Fix it; the broker adds the GPU when it can be read. The other GPUs are leased",
                ),
                note(
                    "CUDA checkpoint",
                    "needs driver 570; here: 550.90.7",
                    "Nothing, unless GPUs shall be used in turns: then install driver 580",
                ),
            ],
            True,
        ),
        (
            {
                "images": (
                    ImageFacts("lab", True, "13.0", "590"),
                    ImageFacts("gone", False),
                    ImageFacts("old", True),
                )
            },
            [
                problem(
                    "Image lab",
                    "its CUDA 13.0 needs driver 590, here is 580.159.04",
                    "Install driver 590 or newer, or use an image with an older CUDA",
                ),
                problem("Image gone", "is not on this machine", "Build it, or run `docker pull gone`"),
                note(
                    "Image old",
                    "does not say which CUDA version it has",
                    "Use an image with CUDA for the GPU tiers",
                ),
            ],
            False,
        ),
        (
            {
                "engine": replace(
                    ENGINE, cdi_devices=("0",), cdi_problems=("/etc/cdi/x.yaml can't be read: odd",)
                )
            },
            [
                note("CDI", f"{CDI_MISSING} {A} by its UUID", GENERATE.replace("run", "Run", 1)),
                note("Classic request", NO_HOOK, INSTALL_HOOK),
                note(
                    "CDI spec",
                    "/etc/cdi/x.yaml can't be read: odd",
                    "Write a new spec with `nvidia-ctk cdi generate`, or remove it",
                ),
                problem(
                    "Injection",
                    f"No GPU can be injected into a container. CDI: {CDI_MISSING} {A} by its "
                    f"UUID: {GENERATE}. "
                    f"Classic: {NO_HOOK}: install nvidia-container-toolkit and restart Docker",
                    "Follow one of the remedies above. The broker notices it within seconds; it needs no "
                    "restart",
                ),
            ],
            False,
        ),
        (
            {"engine": None, "engine_error": "Docker does not answer"},
            [
                problem(
                    "Docker",
                    "Docker does not answer",
                    "Install and start Docker Engine, and let this user reach its socket",
                )
            ],
            False,
        ),
        (
            {"inventory_error": "NVML lists no GPU", "devices": ()},
            [problem("GPUs", "NVML lists no GPU", "Fix this first: no GPU can be leased")],
            False,
        ),
        (
            {"ledger": LedgerFacts("/state/ledger.sqlite", None, "file is not a database")},
            [
                problem(
                    "Ledger",
                    "/state/ledger.sqlite: file is not a database",
                    "Fix the file or its permissions; it is not recreated",
                )
            ],
            False,
        ),
        (
            {"broker": BrokerFacts("/s", "", True, 2, (f"{A}: It is lost",)), "ledger": LedgerFacts("/l")},
            [
                ok("Ledger", "/l: not created yet, the broker creates it"),
                ok("Broker", "answers on /s, 2 simulated devices"),
                note(
                    "Out of service",
                    f"{A}: It is lost",
                    "It returns to service by itself when its checks pass again",
                ),
            ],
            True,
        ),
        (
            {"broker": BrokerFacts("/s", "", False, 0, fault="NVML has not answered for 15 s")},
            [
                ok("Broker", "answers on /s, 0 devices"),
                problem(
                    "Broker",
                    "NVML has not answered for 15 s",
                    "Find what hangs with `dmesg` and `nvidia-smi`; the broker waits",
                ),
            ],
            False,
        ),
        (
            {"broker": BrokerFacts("/s", "It isn't running.")},
            [
                note(
                    "Broker",
                    "It isn't running.",
                    f"Start the hub, which starts it, or run `gpuspawner broker`. {ELSEWHERE}",
                )
            ],
            True,
        ),
    ],
)
def test_each_trouble_is_named_with_what_to_do(
    changes: dict[str, Any], findings: list[Finding], runs: bool
) -> None:
    examined = examine(replace(GOOD, **changes))
    assert [finding for finding in examined if finding not in GOOD_FINDINGS] == findings
    assert main_job_runs(examined) is runs


def test_a_bad_setting_is_all_that_is_said() -> None:
    assert examine(Facts(config_error="c.GpuSite.tiers is empty")) == (
        problem("Settings", "c.GpuSite.tiers is empty", "Correct the setting, then run doctor again"),
    )


def test_a_machine_without_gpus_says_simulated() -> None:
    facts = Facts(
        simulated=True,
        devices=parse_simulated("1 x Odd 1GB"),
        driver_error="libnvidia-ml.so.1 was not found",
        engine=EngineFacts("20.10.24", "1.41", cgroup_version="1"),
        images=(ImageFacts("lab", True), ImageFacts("cuda", True, "13.0", "580")),
    )
    examined = examine(facts)
    assert examined[:5] == (
        note("NVIDIA driver", "libnvidia-ml.so.1 was not found", "Nothing, if this machine has no GPU"),
        note(
            "GPUs",
            "1 simulated: servers get leases, but compute on the CPU",
            'For real GPUs install the driver, then set c.GpuSite.inventory = "nvml"',
        ),
        ok(
            "GPU 0",
            "simulated Odd 1GB, compute capability not available, SMs not available, 1.0 GiB, bandwidth not "
            "available, GPU-facade00-0000-4000-8000-000000000000",
        ),
        ok("Docker", "Engine 20.10.24, API 1.41"),
        note(
            "cgroup",
            "version 1",
            "Nothing needs version 2 yet; boot with systemd.unified_cgroup_hierarchy=1 to have it",
        ),
    )
    assert ok("Injection", "none needed, GPUs are simulated") in examined
    assert ok("Image lab", "present, without CUDA") in examined
    assert ok("Image cuda", "present, CUDA 13.0") in examined
    assert main_job_runs(examined)


def test_a_gpu_without_a_driver_is_pointed_out() -> None:
    (finding, *_) = examine(Facts(pci_gpus=("0000:01:00.0",), driver_error="The driver is not loaded"))
    assert finding == note(
        "NVIDIA driver",
        "1 NVIDIA GPU(s) plugged in, but The driver is not loaded",
        "Install the NVIDIA driver to lease real GPUs",
    )


def test_versions_compare_as_numbers() -> None:
    assert version_of("580.159.04") == (580, 159, 4)
    assert version_of("1000.1") > version_of("580")
    assert version_of("none") == ()
    assert describe(replace(H100, index=None)).startswith("NVIDIA H100 80GB HBM3, compute capability 9.0")


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    with scripted.loaded(tmp_path / "nvml") as script:
        script.gpus = [Gpu(A), Gpu("GPU-b", lost=15)]
        script.write()
        yield script


def settings_of(tmp_path: Path, text: str) -> GpuBroker:
    config = tmp_path / "jupyterhub_config.py"
    config.write_text(text)
    broker = GpuBroker()
    broker.initialize(["--config", str(config), f"--GpuSite.state_dir={tmp_path}"])
    return broker


def test_the_facts_of_this_machine(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")  # refused
    (tmp_path / "bin").mkdir()
    control = tmp_path / "bin" / "nvidia-cuda-mps-control"
    control.write_text("#!/bin/sh\n[ \"$1\" = -v ] && echo 'MPS control  580'\n")
    control.chmod(0o755)
    monkeypatch.setattr("gpuspawner.node.mps.control.KNOWN_PLACES", (str(control.parent),))
    script.change(0, mode=ComputeMode.PROHIBITED)
    monkeypatch.setattr(machine, "nvidia_pci_devices", lambda: ("0000:01:00.0",))
    facts = machine.collect(settings_of(tmp_path, "c.GpuSite.injection = 'cdi'\n"))
    left_out = (
        "GPU 1: The GPU is lost (it fell off the bus): reset it or restart the machine (NVML: GPU is lost)."
    )
    assert facts.engine_error
    assert facts.pooling is not None
    assert "is in compute mode PROHIBITED" in facts.pooling.warnings[0]
    assert facts.broker is not None
    assert facts.broker.error
    assert facts.network is not None
    assert facts.network.error
    assert facts.cgroup_version in ("1", "2")
    assert replace(
        facts, engine_error="", broker=None, cgroup_version=None, cuda_bindings_version=None, network=None
    ) == Facts(
        injection_setting="cdi",
        devices=(H100,),
        driver=DriverFacts("580.159.04", "13.0", 2, (left_out,)),
        pci_gpus=("0000:01:00.0",),
        tiers=parse_tiers(DEFAULT_TIERS),
        modes={A: ComputeMode.PROHIBITED},
        pooling=Pooling((H100,), {A: WHOLE}, warnings=facts.pooling.warnings),
        mps_path=str(control),
        mps_version="MPS control 580",
        ledger=LedgerFacts(f"{tmp_path}/ledger.sqlite"),
    )
    script.init = 18
    script.write()
    facts = machine.collect(settings_of(tmp_path, ""))
    assert facts.driver is None
    assert facts.inventory_error.startswith("Driver and NVML library have different versions")
    assert not main_job_runs(examine(facts))


def test_an_nvml_that_hangs_is_said(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")  # refused
    monkeypatch.setattr(machine, "OPEN_SECONDS", 0.3)
    line = script.hang("nvmlInitWithFlags")
    facts = machine.collect(settings_of(tmp_path, ""))
    fault = "NVML has not answered for 0.3 s: see `dmesg` and `nvidia-smi`"
    assert (facts.driver_error, facts.inventory_error, facts.devices) == (fault, fault, ())
    assert not main_job_runs(examine(facts))
    script.drop(line)
    for thread in threading.enumerate():
        if thread.name == "nvml-NVML":
            thread.join(5)


def test_the_images_of_the_tiers(tmp_path: Path) -> None:
    tiers = (
        'c.GpuSite.tiers = [{"name": "a"}, {"name": "b", "image": "b:1"}, {"name": "c", "image": "b:1"}]\n'
    )
    for line, images in (
        ("", ("b:1",)),
        ("c.DockerSpawner.image = 'd:1'\n", ("d:1", "b:1")),
        ("c.DockerSpawner.image = 'd:1'\nc.GpuDockerSpawner.image = 'g:1'\n", ("g:1", "b:1")),
    ):
        assert machine.image_references(settings_of(tmp_path, tiers + line)) == images


def test_the_ledger_is_read_and_not_made(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    url = f"sqlite:///{path}"
    assert machine.read_ledger(url) == LedgerFacts(str(path))
    assert not path.exists()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE leases (id TEXT)")
        connection.execute("INSERT INTO leases VALUES ('x')")
    connection.close()
    before = path.read_bytes()
    assert machine.read_ledger(url) == LedgerFacts(str(path), 1)
    assert path.read_bytes() == before
    path.write_text("no database " * 100)
    assert machine.read_ledger(url) == LedgerFacts(str(path), error="file is not a database")
    facts = machine.read_ledger("postgresql+nodriver://user:secret@db/gpu")
    assert (facts.place, bool(facts.error)) == ("postgresql+nodriver://user:***@db/gpu", True)


GUARDED = "not in this driver (from 615 on): the guard enforces the quotas of slices"
UNUSED = "the driver can limit it; this version leaves the quotas of slices to the guard"
OLD_CGROUP = (
    "the driver could limit it, but needs cgroup version 2, here is 1",
    "Boot with systemd.unified_cgroup_hierarchy=1; until then the guard enforces slices' quotas",
)


@pytest.mark.parametrize(
    ("driver", "cgroup_version", "found"),
    [
        ((), "2", []),
        ((614, 99), "2", [ok("GPU memory by cgroup", GUARDED)]),
        ((615, 10, 1), "2", [ok("GPU memory by cgroup", UNUSED)]),
        ((620,), "1", [note("GPU memory by cgroup", *OLD_CGROUP)]),
    ],
)
def test_a_driver_that_limits_memory_by_cgroup_is_named(
    driver: tuple[int, ...], cgroup_version: str, found: list[Finding]
) -> None:
    assert list(memory_limits(driver, cgroup_version)) == found


UVM = f"/etc/cdi/nvidia.yaml needs /dev/nvidia-uvm, which this machine doesn't have: {GENERATE}"
MISMATCH = DriverFiles("580.1", "585.2").obstacle()


def injection_of(engine: EngineFacts, *devices: Device) -> list[Finding]:
    facts = replace(GOOD, engine=engine, devices=devices or (H100,))
    return [each for each in examine(facts) if each.subject in ("Injection", "NVIDIA driver")][1:]


def test_a_gpu_that_no_container_gets_is_named_and_the_others_are_leased() -> None:
    b = replace(H100, uuid="GPU-b", index=1)
    both = replace(ENGINE, cdi_devices=(A, "GPU-b"), cdi_obstacles={A: UVM})
    assert injection_of(both, H100, b) == [
        ok("Injection", "CDI"),
        problem(
            "Injection",
            "/etc/cdi/nvidia.yaml needs /dev/nvidia-uvm, which this machine doesn't have. No server gets "
            "this GPU; those that run go on",
            f"Run{GENERATE.removeprefix('run')}",
        ),
    ]


def test_no_gpu_in_any_container() -> None:
    (found,) = injection_of(replace(ENGINE, cdi_obstacles={A: UVM}))
    assert (found.level, found.subject) == (Level.PROBLEM, "Injection")
    assert UVM in found.text


def test_kernel_module_and_libraries_of_two_versions() -> None:
    facts = replace(GOOD, engine=replace(ENGINE, driver_obstacle=MISMATCH))
    assert examine(facts)[0] == problem(
        "NVIDIA driver",
        "The NVIDIA kernel module has version 580.1, but its libraries have 585.2, as after an upgrade. No "
        "new server gets a GPU",
        "Restart the machine when no lab needs its GPU any more",
    )
    assert not main_job_runs(examine(facts))


@pytest.mark.parametrize(("driver", "told"), [("systemd", True), ("cgroupfs", False)])
def test_devices_that_a_daemon_reload_takes(driver: str, told: bool) -> None:
    classic = replace(ENGINE, cdi_devices=(), hook_path="/usr/bin/hook", cgroup_driver=driver)
    found = injection_of(classic)
    assert found[0] == ok("Injection", "NVIDIA's classic device request")
    reload = [each for each in found if "`systemctl daemon-reload` takes the GPUs" in each.text]
    assert bool(reload) is told
    assert all(each.level is Level.NOTE and "Use CDI: run `nvidia-ctk" in each.remedy for each in reload)
    cdi = replace(ENGINE, cgroup_driver=driver)
    assert injection_of(cdi) == [ok("Injection", "CDI")]


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("starts_at_once", -3, "starts_at_once"),
        ("mem_limt", "2G", "There is no setting c.GpuDockerSpawner.mem_limt: use mem_limit"),
    ],
)
def test_settings_with_which_the_hub_does_not_start(setting: str, value: Any, sentence: str) -> None:
    error = machine._spawner_error(Config({"GpuDockerSpawner": {setting: value}}))
    assert sentence in error
    found = examine(replace(GOOD, spawner_error=error))
    assert found[0] == problem(
        "Settings", error.rstrip("."), "Correct the setting: the hub doesn't start with it"
    )
    assert machine._spawner_error(Config({"GpuDockerSpawner": {"starts_at_once": 3}})) == ""
