"""What all spawners of a hub share: Docker, the broker's client, pulls, removals, start slots."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from ..config.open_files import raise_limit
from ..protocol.client import BrokerClient
from .collection import keep_collections_short
from .docker import DockerEngine
from .image_sizes import ImageSizes
from .places import Places
from .pull_report import PullReport
from .pulls import PullLimits, Pulls
from .readiness import Slots
from .removals import Removals


@dataclass(frozen=True)
class HubShared:
    """One object for a hub, created from the settings of the first spawner that needs it."""

    docker: DockerEngine
    broker: BrokerClient
    pulls: Pulls
    slots: Slots
    """How many servers may start at once."""
    log: logging.Logger
    removals: Removals = field(default_factory=Removals)
    places: Places = field(default_factory=Places)

    @cached_property
    def sizes(self) -> ImageSizes:
        """How much must still be pulled of images."""
        return ImageSizes(self.docker)


@dataclass(frozen=True, slots=True)
class SharedSettings:
    """The settings that `HubShared` needs. `starts_at_once` 0: one more than this machine has cores."""

    socket_path: str
    client_kwargs: Mapping[str, Any]
    tls_config: Mapping[str, Any]
    starts_at_once: int
    pulls: PullLimits


_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, HubShared]] = WeakKeyDictionary()
_engines: dict[str, DockerEngine] = {}


def shared_by_all(settings: SharedSettings, log: logging.Logger) -> HubShared:
    """The object shared by the spawners of the running event loop, by their broker's socket.

    The first call raises this process's limit of open files: everybody who waits takes two. It also begins to
    keep the hub's garbage collections short.
    """
    loop = asyncio.get_running_loop()
    of_loop = _shared.setdefault(loop, {})
    if settings.socket_path not in of_loop:
        raise_limit(log)
        keep_collections_short(loop)
        broker, pulls = BrokerClient(settings.socket_path, log=log), Pulls(log, settings.pulls)
        PullReport(broker, pulls)
        of_loop[settings.socket_path] = HubShared(
            docker=engine_of(settings.client_kwargs, settings.tls_config),
            broker=broker,
            pulls=pulls,
            slots=Slots(settings.starts_at_once or (os.cpu_count() or 1) + 1),
            log=log,
        )
    return of_loop[settings.socket_path]


def engine_of(client_kwargs: Mapping[str, Any], tls_config: Mapping[str, Any]) -> DockerEngine:
    """The Docker Engine of these settings; one object for the process."""
    key = repr((sorted(client_kwargs.items()), sorted(tls_config.items())))
    if key not in _engines:
        _engines[key] = DockerEngine(client_kwargs, tls_config)
    return _engines[key]
