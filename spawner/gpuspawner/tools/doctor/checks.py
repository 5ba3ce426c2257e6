"""The checks: they turn facts into findings. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from ...core.errors import ConfigError
from ...core.finding import Finding, Level
from ...core.image_needs import version_of
from ...core.model import Device
from ...core.units import format_bytes
from ...node.injection import EngineFacts, Injection, cdi_obstacle, classic_obstacle, find_access
from ...node.turning import ending_danger
from .facts import Facts, ImageFacts
from .lab import lab_findings
from .machines import machine_findings, swarm_metadata_findings
from .network import network_findings
from .open_files import open_files_findings
from .pooling import pool_findings
from .reach import ELSEWHERE

CHECKPOINT_DRIVER = (570,)
"""First driver with `cuCheckpointProcess*` (CUDA 12.8 release notes), which this version does not
use yet."""


MEMORY_LIMIT_DRIVER = (615,)
"""First driver that limits a cgroup's GPU memory (`nvmlDeviceSetMemoryLimits_v1`: Linux, as root, not for
MIG; NVML API Reference), which this version does not use yet."""


_RELOAD = (
    "the hook adds devices that systemd doesn't know, so `systemctl daemon-reload` takes the GPUs from all "
    'labs that run ("Failed to initialize NVML: Unknown Error")',
    "Use CDI: run `nvidia-ctk cdi generate --device-name-strategy=uuid --output=/etc/cdi/nvidia.yaml`; or "
    'set {"exec-opts": ["native.cgroupdriver=cgroupfs"]} in /etc/docker/daemon.json',
)
"""NVIDIA Container Toolkit, "Troubleshooting": containers lose access to GPUs."""


def examine(facts: Facts) -> tuple[Finding, ...]:
    """All findings, in this order: settings, GPUs, Docker, extras, our own parts."""
    if facts.config_error:
        return (_problem("Settings", facts.config_error, "Correct the setting, then run doctor again"),)
    return (
        *_settings(facts),
        *_driver(facts),
        *_devices(facts),
        *pool_findings(facts),
        *_docker(facts),
        *network_findings(facts),
        *_injection(facts),
        *_extras(facts),
        *_images(facts),
        *(lab_findings(facts.lab, facts.tiers) if facts.lab else ()),
        *_own_parts(facts),
        *open_files_findings(facts.open_files),
        *swarm_metadata_findings(facts.swarm_metadata),
        *machine_findings(facts.machines),
    )


def examine_machine(facts: Facts) -> tuple[Finding, ...]:
    """The findings about a machine with an agent: the rest is the hub's machine's."""
    if facts.config_error:
        return (_problem("Settings", facts.config_error, "Correct the setting, then run doctor again"),)
    return (
        *_driver(facts),
        *_devices(facts),
        *_docker(facts),
        *_injection(facts),
        *_extras(facts),
        *_images(facts),
        *swarm_metadata_findings(facts.swarm_metadata),
    )


def _settings(facts: Facts) -> Iterator[Finding]:
    if facts.spawner_error:
        remedy = "Correct the setting: the hub doesn't start with it"
        yield _problem("Settings", facts.spawner_error.rstrip("."), remedy)


def main_job_runs(findings: tuple[Finding, ...]) -> bool:
    """Whether servers with a GPU can start, according to the findings."""
    return all(finding.level is not Level.PROBLEM for finding in findings)


def _ok(subject: str, text: str) -> Finding:
    return Finding(Level.OK, subject, text)


def _note(subject: str, text: str, remedy: str) -> Finding:
    return Finding(Level.NOTE, subject, text, remedy)


def _problem(subject: str, text: str, remedy: str) -> Finding:
    return Finding(Level.PROBLEM, subject, text, remedy)


def _driver(facts: Facts) -> Iterator[Finding]:
    if facts.engine is not None and facts.engine.driver_obstacle:
        text, remedy = split_remedy(facts.engine.driver_obstacle)
        yield _problem("NVIDIA driver", f"{text}. No new server gets a GPU", remedy)
        return
    if facts.driver is not None:
        version = facts.driver.driver_version or "not available"
        yield _ok("NVIDIA driver", f"{version}, CUDA up to {facts.driver.cuda_version or 'not available'}")
        return
    plugged = f"{len(facts.pci_gpus)} NVIDIA GPU(s) plugged in, but " if facts.pci_gpus else ""
    yield _note(
        "NVIDIA driver",
        f"{plugged}{facts.driver_error or 'not available'}",
        "Install the NVIDIA driver to lease real GPUs"
        if facts.pci_gpus
        else "Nothing, if this machine has no GPU",
    )


def _devices(facts: Facts) -> Iterator[Finding]:
    for sentence in facts.driver.left_out if facts.driver else ():
        remedy = "Fix it; the broker adds the GPU when it can be read. The other GPUs are leased"
        yield _note("GPU not listed", sentence, remedy)
    if facts.inventory_error:
        yield _problem("GPUs", facts.inventory_error, "Fix this first: no GPU can be leased")
        return
    if facts.simulated:
        yield _note(
            "GPUs",
            f"{len(facts.devices)} simulated: servers get leases, but compute on the CPU",
            'For real GPUs install the driver, then set c.GpuSite.inventory = "nvml"',
        )
    for device in facts.devices:
        yield _ok(f"GPU {'?' if device.index is None else device.index}", describe(device))


def describe(device: Device) -> str:
    """A device in one line: model, compute capability, SMs, memory, bandwidth, UUID."""
    capability = device.compute_capability
    bandwidth = device.bandwidth_bytes_per_second
    parts = [
        f"simulated {device.model}" if device.simulated else device.model,
        "compute capability " + (f"{capability[0]}.{capability[1]}" if capability else "not available"),
        f"{device.sm_count} SMs" if device.sm_count is not None else "SMs not available",
        f"{format_bytes(device.memory_bytes)}",
        f"{bandwidth / 1e12:.2f} TB/s" if bandwidth is not None else "bandwidth not available",
        device.uuid,
    ]
    return ", ".join(parts)


def _docker(facts: Facts) -> Iterator[Finding]:
    if facts.engine is None:
        yield _problem(
            "Docker",
            facts.engine_error,
            "Install and start Docker Engine, and let this user reach its socket",
        )
        return
    yield _ok("Docker", f"Engine {facts.engine.version}, API {facts.engine.api_version}")
    version = _cgroup_version(facts)
    if version == "2":
        yield _ok("cgroup", "version 2")
    else:
        yield _note(
            "cgroup",
            f"version {version or 'not available'}",
            "Nothing needs version 2 yet; boot with systemd.unified_cgroup_hierarchy=1 to have it",
        )


def _cgroup_version(facts: Facts) -> str | None:
    return (facts.engine.cgroup_version if facts.engine else None) or facts.cgroup_version


def _injection(facts: Facts) -> Iterator[Finding]:
    engine = facts.engine
    if engine is None:
        return
    uuids = tuple(device.uuid for device in facts.devices if not device.simulated)
    if facts.injection_setting != Injection.RUNTIME:
        yield from _ways(engine, uuids)
    for sentence in engine.cdi_problems:
        yield _note("CDI spec", sentence, "Write a new spec with `nvidia-ctk cdi generate`, or remove it")
    if facts.inventory_error:
        return
    try:
        access = find_access(facts.injection_setting, engine, facts.simulated, uuids)
    except ConfigError as error:
        remedy = "Follow one of the remedies above. The broker notices it within seconds; it needs no restart"
        yield _problem("Injection", str(error), remedy)
        return
    words = {
        Injection.CDI: "CDI",
        Injection.NVIDIA: "NVIDIA's classic device request",
        Injection.NONE: "none needed, GPUs are simulated",
        Injection.RUNTIME: "NVIDIA's runtime is the engine's default one: labs are services of a Swarm",
    }
    yield _ok("Injection", words[access.way])
    for obstacle in dict.fromkeys(access.obstacles.values()):
        text, remedy = split_remedy(obstacle)
        yield _problem("Injection", f"{text}. No server gets this GPU; those that run go on", remedy)
    if access.way is Injection.NVIDIA and engine.cgroup_driver == "systemd":
        yield _note("Injection", *_RELOAD)


def split_remedy(obstacle: str) -> tuple[str, str]:
    """A sentence "what is wrong: what helps" in its two parts; the second one begins with a capital."""
    text, _, remedy = obstacle.partition(": ")
    return text, remedy[:1].upper() + remedy[1:]


def _ways(engine: EngineFacts, uuids: tuple[str, ...]) -> Iterator[Finding]:
    obstacle = cdi_obstacle(engine, uuids)
    if not obstacle and not uuids and not engine.cdi_devices:
        obstacle = f"No CDI spec in {', '.join(engine.cdi_spec_dirs)} names an NVIDIA GPU"
    if obstacle:
        text, remedy = split_remedy(obstacle)
        yield _note("CDI", text, remedy or "Nothing, while GPUs are simulated")
    else:
        yield _ok("CDI", f"specs in {', '.join(engine.cdi_spec_dirs)} name {', '.join(engine.cdi_devices)}")
    obstacle = classic_obstacle(engine)
    if obstacle:
        text, remedy = split_remedy(obstacle)
        yield _note("Classic request", text, f"{remedy}, or use CDI")
    else:
        yield _ok("Classic request", engine.hook_path or "the engine has the runtime nvidia")


def _extras(facts: Facts) -> Iterator[Finding]:
    if facts.mps_path:
        yield _ok("MPS", f"{facts.mps_path}, {facts.mps_version or 'version not available'}")
    else:
        yield _note(
            "MPS",
            "nvidia-cuda-mps-control was not found",
            "Install the driver's compute utilities: with MPS, slices also limit compute; without, they "
            "take turns",
        )
    driver = version_of((facts.driver.driver_version if facts.driver else None) or "")
    if driver < CHECKPOINT_DRIVER:
        yield _note(
            "CUDA checkpoint",
            f"needs driver {CHECKPOINT_DRIVER[0]}; here: {'.'.join(map(str, driver)) or 'none'}",
            "Nothing, unless GPUs shall be used in turns: then install driver 580",
        )
    elif facts.cuda_bindings_version is None:
        yield _note(
            "CUDA checkpoint",
            "the driver has it, but cuda-bindings is missing",
            "Nothing, unless GPUs shall be used in turns: then pip install 'gpuspawner[turns]'",
        )
    else:
        yield _ok("CUDA checkpoint", f"the driver has it, cuda-bindings {facts.cuda_bindings_version}")
    if facts.driver is not None and (danger := ending_danger(facts.driver.driver_version)):
        yield _note("Turns", *split_remedy(danger))
    yield from memory_limits(driver, _cgroup_version(facts))


def memory_limits(driver: tuple[int, ...], cgroup_version: str | None) -> Iterator[Finding]:
    """Whether the driver could enforce memory quotas itself, by cgroup; no finding without a driver."""
    if not driver:
        return
    subject, first = "GPU memory by cgroup", MEMORY_LIMIT_DRIVER[0]
    if driver < MEMORY_LIMIT_DRIVER:
        yield _ok(subject, f"not in this driver (from {first} on): the guard enforces the quotas of slices")
    elif cgroup_version != "2":
        yield _note(
            subject,
            f"the driver could limit it, but needs cgroup version 2, here is {cgroup_version or 'none'}",
            "Boot with systemd.unified_cgroup_hierarchy=1; until then the guard enforces slices' quotas",
        )
    else:
        yield _ok(subject, "the driver can limit it; this version leaves the quotas of slices to the guard")


def _images(facts: Facts) -> Iterator[Finding]:
    for image in facts.images:
        yield _image(image, facts)


def _image(image: ImageFacts, facts: Facts) -> Finding:
    subject = f"Image {image.reference}"
    if not image.present:
        return _problem(
            subject, "is not on this machine", f"Build it, or run `docker pull {image.reference}`"
        )
    driver = facts.driver.driver_version if facts.driver else None
    if not image.cuda:
        if driver is None or facts.simulated:
            return _ok(subject, "present, without CUDA")
        return _note(
            subject, "does not say which CUDA version it has", "Use an image with CUDA for the GPU tiers"
        )
    if driver is None:
        return _ok(subject, f"present, CUDA {image.cuda}")
    if image.min_driver and version_of(driver) < version_of(image.min_driver):
        return _problem(
            subject,
            f"its CUDA {image.cuda} needs driver {image.min_driver}, here is {driver}",
            f"Install driver {image.min_driver} or newer, or use an image with an older CUDA",
        )
    return _ok(subject, f"present, CUDA {image.cuda} on driver {driver}")


def _own_parts(facts: Facts) -> Iterator[Finding]:
    ledger, broker = facts.ledger, facts.broker
    if ledger is not None and ledger.error:
        yield _problem(
            "Ledger",
            f"{ledger.place}: {ledger.error}",
            "Fix the file or its permissions; it is not recreated",
        )
    elif ledger is not None and ledger.lease_count is None:
        yield _ok("Ledger", f"{ledger.place}: not created yet, the broker creates it")
    elif ledger is not None:
        yield _ok("Ledger", f"{ledger.place}: {ledger.lease_count} leases")
    if broker is None:
        return
    if broker.error:
        remedy = f"Start the hub, which starts it, or run `gpuspawner broker`. {ELSEWHERE}"
        yield _note("Broker", broker.error, remedy)
        return
    kind = "simulated devices" if broker.simulated else "devices"
    yield _ok("Broker", f"answers on {broker.socket_path}, {broker.device_count} {kind}")
    if broker.fault:
        yield _problem(
            "Broker", broker.fault, "Find what hangs with `dmesg` and `nvidia-smi`; the broker waits"
        )
    for sentence in broker.withdrawn:
        yield _note("Out of service", sentence, "It returns to service by itself when its checks pass again")
