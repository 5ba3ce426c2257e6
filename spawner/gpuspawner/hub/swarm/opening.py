"""Makes what runs labs as services, from the settings of hub and spawner."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ...config.swarm import GpuSwarm
from ..docker import DockerEngine
from .gateway import Gateway
from .lanes import GATEWAY_ALIAS, Lanes
from .services import Services, SwarmParts


@dataclass(frozen=True, slots=True)
class HubPlace:
    """Where the hub is: `network` and `subnet` of the bridge on which it listens, at `hub_port`.

    `image` has Python, for the gateway; `lab_port` is where labs listen.
    """

    hub_id: str
    network: str
    subnet: str
    image: str
    lab_port: int
    hub_port: int


def open_services(place: HubPlace, settings: GpuSwarm, docker: DockerEngine, log: logging.Logger) -> Services:
    """The services of one hub; nothing is asked of Docker yet."""
    lanes = Lanes(place.hub_id, place.network, settings.subnet, encrypted=settings.encrypted)
    gateway = Gateway(
        hub_id=place.hub_id,
        network=place.network,
        subnet=place.subnet,
        image=settings.gateway_image or place.image,
        lanes=lanes.count,
        lab_port=place.lab_port,
        hub_port=place.hub_port,
    )
    return Services(SwarmParts(docker, lanes, gateway, settings.heartbeat, settings.shared_homes, log))


def hub_url(place: HubPlace) -> str:
    """Where a lab reaches the hub, through the gateway in its own network."""
    return f"http://{GATEWAY_ALIAS}:{place.hub_port}"
