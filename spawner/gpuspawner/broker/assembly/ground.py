"""What every part of the broker may use: the settings, the ledger, Docker, the metrics and the hub's API."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from traitlets.config import Config

from ...config.idle import IdleRules
from ...config.site import GpuSite
from ...core.model import Tier
from ...node.docker_engine import DockerEngine
from ...node.engine import Engine
from ...node.swarm import Swarm
from ..leases.hub_api import HubApi
from ..leases.services import ServiceEngine
from ..ledger import Ledger
from ..observe.metrics import Metrics


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """The settings, checked. `config` is the whole settings file, with those of the hub; `config_file` is its
    path, "" without one."""

    site: GpuSite
    tiers: tuple[Tier, ...]
    idle: IdleRules
    config: Config
    config_file: str
    reconcile_seconds: float
    history_days: float

    @property
    def state_dir(self) -> Path:
        """The state folder, absolute; it is also this broker's name in the labels of its containers."""
        return Path(self.site.state_dir).absolute()


@dataclass(frozen=True, slots=True)
class Ground:
    """One a broker. `hub_api` is None if no hub started this broker.

    `swarm` is the manager of the Swarm whose services the labs are; None if they are containers.
    """

    settings: BrokerSettings
    ledger: Ledger
    engine: DockerEngine
    metrics: Metrics
    hub_api: HubApi | None
    log: logging.Logger
    swarm: Swarm | None = None

    def engine_for(self, machine: str, engine: Engine) -> Engine:
        """What is asked about the labs of a machine with this engine."""
        return engine if self.swarm is None else ServiceEngine(machine, engine, self.swarm)
