"""A lab that somebody cut from the labs' network is connected again, at its address."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..core.errors import ConfigError, EngineFault
from .engine import LabEngine


async def connect_again(
    engine: LabEngine, container_id: str, ip: str, error: ConfigError, log: Callable[..., None]
) -> None:
    """Tries it once. `error`: why the lab can't be reached; `log` gets a level and a line."""
    try:
        await engine.reconnect(container_id, ip or None)
    except EngineFault as fault:
        message = "The server can't be reached, %s. Connecting it again failed, retrying: %s"
        log(logging.WARNING, message, error, fault)
    else:
        log(logging.WARNING, "Connected the server to the labs' network again, at %s", ip)
