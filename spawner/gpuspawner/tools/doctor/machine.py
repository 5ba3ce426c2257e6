"""Collects the facts. Blocks; reads NVML, Docker and disk, and changes nothing."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import socket
import sqlite3
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import sqlalchemy as sa
from traitlets import TraitError
from traitlets.config import Config

from ...broker.app import GpuBroker
from ...broker.decide.place.host import Host
from ...broker.decide.place.pooling import make_pooling
from ...config.site import GpuSite
from ...core.errors import BrokerUnavailable, ConfigError, DeviceFault, EngineFault, Refusal
from ...hub.check import check_spawner
from ...node.docker_engine import DockerEngine
from ...node.injection import EngineFacts, Injection, engine_facts, read_local
from ...node.inventory import (
    DriverFacts,
    NvmlInventory,
    Patience,
    modes_of,
    nvidia_pci_devices,
    open_inventory,
)
from ...node.local import OPEN_SECONDS
from ...node.mps.control import find_program
from ...node.opening import node_names
from ...node.processes import ending_obstacle
from ...node.turning import can_move, main_memory_bytes, turns_obstacle
from ...protocol.client import BrokerClient
from ...protocol.history import MachineFindings, MachinesChecked
from .facts import BrokerFacts, Facts, ImageFacts, LedgerFacts
from .lab import read_lab
from .network import read_network
from .open_files import read_open_files
from .reach import unreachable
from .swarm_network import read_swarm_metadata

MACHINES_SECONDS = 55.0
"""Longest wait for the other machines: each looks at its hardware meanwhile."""


def collect(settings: GpuBroker) -> Facts:
    """All facts for the site of `settings` (initialized)."""
    facts, info = _look(settings, image_references(settings))
    return replace(
        _pools(facts, settings),
        ledger=read_ledger(settings.database_url),
        broker=asyncio.run(_broker(settings.site, settings.config_file)),
        lab=read_lab(settings.config, info, settings.site.state_dir) if facts.engine else None,
        network=read_network(settings.config),
        spawner_error=_spawner_error(settings.config),
        open_files=read_open_files(Path(settings.site.state_dir)),
        machines=asyncio.run(_machines(settings)),
        swarm_metadata=read_swarm_metadata() if settings.site.engine == "swarm" else None,
    )


def collect_machine(settings: GpuBroker, images: tuple[str, ...]) -> Facts:
    """The facts of a machine with an agent; labs there need these `images`."""
    facts, _ = _look(settings, images)
    return replace(facts, swarm_metadata=read_swarm_metadata())


def _look(settings: GpuBroker, images: tuple[str, ...]) -> tuple[Facts, Mapping[str, Any]]:
    """What each machine of a site is looked at for, and what its Docker Engine says of itself."""
    mps = find_program(uid=0).path  # uid=0: it may be installed although doctor doesn't run as root
    mps_path = None if mps is None else str(mps)
    engine, engine_error, found, info = asyncio.run(_docker(images))
    facts = replace(
        _hardware(settings.site),
        engine=engine,
        engine_error=engine_error,
        images=found,
        cgroup_version="2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "1",
        mps_path=mps_path,
        mps_version=_mps_version(mps_path) if mps_path else None,
        cuda_bindings_version=_installed("cuda-bindings"),
        injection_setting=_injection_setting(settings.site, info),
    )
    return facts, info


def _injection_setting(site: GpuSite, info: Mapping[str, Any]) -> str:
    """How labs get their devices: as services of a Swarm by NVIDIA's runtime, else as the setting says."""
    joined = (info.get("Swarm") or {}).get("LocalNodeState") == "active"
    agent = joined and not (info.get("Swarm") or {}).get("ControlAvailable")
    return Injection.RUNTIME if agent or site.engine == "swarm" else site.injection


async def _machines(settings: GpuBroker) -> tuple[MachineFindings, ...]:
    """What the agents of the other machines find; () without a broker that answers."""
    client = BrokerClient(settings.site.socket_path)
    query = urlencode({"images": ",".join(image_references(settings))})
    try:
        answer = await client.ask(f"/machines/findings?{query}", MachinesChecked, seconds=MACHINES_SECONDS)
    except (BrokerUnavailable, Refusal):
        return ()  # said about the broker
    finally:
        await client.close()
    return answer.machines


def _spawner_error(config: Config) -> str:
    try:
        check_spawner(config)
    except TraitError as error:
        return str(error)
    return ""


def image_references(settings: GpuBroker) -> tuple[str, ...]:
    """The images that the tiers start: the spawner's own, and those that tiers name."""
    default = None
    for section in ("GpuDockerSpawner", "DockerSpawner"):
        if default is None and settings.config.has_key(section):
            default = settings.config[section].get("image")
    wanted = [tier.image or default for tier in settings.tiers]
    return tuple(dict.fromkeys(str(image) for image in wanted if image))


def _hardware(site: GpuSite) -> Facts:
    facts = Facts(
        inventory_setting=site.inventory, injection_setting=site.injection, pci_gpus=nvidia_pci_devices()
    )
    try:
        return Patience(OPEN_SECONDS).one("NVML", lambda: _read_nvml(facts, site))
    except DeviceFault as fault:
        return replace(facts, driver_error=str(fault), inventory_error=str(fault))


def _read_nvml(facts: Facts, site: GpuSite) -> Facts:
    """Reads NVML. Blocks, possibly for ever if NVML hangs."""
    driver, driver_error = _driver()
    facts = replace(facts, driver=driver, driver_error=driver_error)
    try:
        inventory = open_inventory(site)
    except ConfigError as error:
        return replace(facts, inventory_error=str(error))
    try:
        devices = inventory.devices()
        modes = modes_of(inventory, devices, Patience())
        return replace(facts, simulated=inventory.simulated, devices=devices, modes=modes)
    except DeviceFault as fault:
        return replace(facts, inventory_error=str(fault))
    finally:
        inventory.close()


def _pools(facts: Facts, settings: GpuBroker) -> Facts:
    """The pools that the broker would create at its start."""
    if facts.inventory_error:
        return facts
    incomplete = bool(facts.driver and facts.driver.left_out)
    version = facts.driver.driver_version if facts.driver is not None else None
    here, *others = node_names(settings.site)
    name = here or socket.gethostname()
    labels = settings.site.parsed_node_labels().get(name, frozenset())
    host = Host(
        facts.simulated, find_program(), ending_obstacle(), incomplete, facts.modes, main_memory_bytes(),
        turns_obstacle(version), can_move(version), bool(others or settings.agents_address), name, labels,
    )  # fmt: skip
    try:
        pooling = make_pooling(settings.site.parsed_pools(), settings.tiers, facts.devices, host)
    except ConfigError as error:
        return replace(facts, pooling_error=str(error))
    return replace(facts, tiers=settings.tiers, pooling=pooling)


def _driver() -> tuple[DriverFacts | None, str]:
    try:
        nvml = NvmlInventory()
    except DeviceFault as fault:
        return None, str(fault)
    try:
        with suppress(DeviceFault):  # no device can be leased; `left_out` says why
            nvml.devices()
        return nvml.driver(), ""
    except DeviceFault as fault:
        return None, str(fault)
    finally:
        nvml.close()


async def _docker(
    references: tuple[str, ...],
) -> tuple[EngineFacts | None, str, tuple[ImageFacts, ...], dict[str, Any]]:
    engine = DockerEngine(threads=1)
    try:
        info, version = await engine.facts()
        labels = {reference: await engine.image_labels(reference) for reference in references}
    except EngineFault as fault:
        return None, str(fault), (), {}
    finally:
        await engine.close()
    local = None
    if os.environ.get("DOCKER_HOST", "unix://").startswith("unix://"):
        local = read_local(tuple(info.get("CDISpecDirs") or ()))
    return engine_facts(info, version, local), "", tuple(_image(*pair) for pair in labels.items()), info


def _image(reference: str, labels: dict[str, str] | None) -> ImageFacts:
    if labels is None:
        return ImageFacts(reference, present=False)
    cuda, min_driver = labels.get("gpuspawner.cuda", ""), labels.get("gpuspawner.min-driver", "")
    return ImageFacts(reference, True, cuda, min_driver)


def _mps_version(path: str) -> str | None:
    # `-v` prints the version and ends (man nvidia-cuda-mps-control, driver 580).
    try:
        done = subprocess.run([path, "-v"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return " ".join(done.stdout.split()) or None


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_ledger(url: str) -> LedgerFacts:
    """How many leases the ledger has, read without changing or creating it. Blocks."""
    parsed = sa.make_url(url)
    place = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() != "sqlite":
        return _read_server(parsed, place)
    path = Path(parsed.database or "")
    if not path.exists():
        return LedgerFacts(str(path))
    try:
        connection = sqlite3.connect(f"file:{path.absolute()}?mode=ro", uri=True, timeout=2)
        try:
            connection.execute("PRAGMA quick_check").fetchone()
            (count,) = connection.execute("SELECT count(*) FROM leases").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return LedgerFacts(str(path), error=str(error))
    return LedgerFacts(str(path), count)


def _read_server(url: sa.URL, place: str) -> LedgerFacts:
    try:
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.connect() as connection:
            if not sa.inspect(connection).has_table("leases"):
                return LedgerFacts(place)
            return LedgerFacts(place, connection.execute(sa.text("SELECT count(*) FROM leases")).scalar_one())
    except (sa.exc.SQLAlchemyError, ImportError) as error:
        return LedgerFacts(place, error=str(error).splitlines()[0])


async def _broker(site: GpuSite, config_file: str) -> BrokerFacts:
    client = BrokerClient(site.socket_path)
    try:
        status = await client.status()
    except BrokerUnavailable as error:
        return BrokerFacts(site.socket_path, error=unreachable(error, site.socket_path, config_file))
    finally:
        await client.close()
    withdrawn = [f"{each['uuid']}: {each['reason']}" for each in status["devices"] if not each["healthy"]]
    return BrokerFacts(
        site.socket_path, "", status["simulated"], len(status["devices"]), tuple(withdrawn), status["fault"]
    )
