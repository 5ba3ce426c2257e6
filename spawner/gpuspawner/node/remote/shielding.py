"""Keeps labs of a Swarm on this machine from a cloud's keys: the tool that adds the rules runs now and then.

Whoever empties the firewall takes them away, and Docker makes the network when the machine joins a Swarm.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from ...core.errors import EngineFault
from ..engine import Engine

LOOK_SECONDS, ROUND_SECONDS = 15.0, 600.0
"""How often the agent looks whether the machine is in a Swarm, and in one looks for the rules again."""
COMMAND = (sys.executable, "-m", "gpuspawner.tools.block_metadata", "--swarm")


async def shield_labs(engine: Engine, log: logging.Logger, command: tuple[str, ...] = COMMAND) -> None:
    """Runs until cancelled; what it can't do is logged once. Only root can change the firewall."""
    told = ""
    while True:
        if not await _is_in_swarm(engine):
            await asyncio.sleep(LOOK_SECONDS)
            continue
        why = await _add_rules(command) if os.geteuid() == 0 else "the agent isn't root: run it as root"
        if why and why != told:
            log.warning("Labs may reach a cloud's metadata service: %s", why)
        told = why
        await asyncio.sleep(ROUND_SECONDS)


async def _is_in_swarm(engine: Engine) -> bool:
    try:
        info, _ = await engine.facts()
    except EngineFault:
        return False
    return bool((info.get("Swarm") or {}).get("LocalNodeState") == "active")


async def _add_rules(command: tuple[str, ...]) -> str:
    """Why the rules could not be added; "" if they are there."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = printed.decode(errors="replace").strip().partition("\n")[0]
    return said if process.returncode else ""
