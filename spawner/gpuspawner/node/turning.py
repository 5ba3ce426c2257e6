"""Turns on this machine: the helper that talks to the CUDA driver, and the check before the first turn.

The check puts a program of our own to sleep and wakes it, once for each version of the driver. It takes about
5 s and 1 GiB of the GPU. Only a check that passed is recorded; one that failed is made again when it is asked
for.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.errors import DeviceFault, LedgerFault
from .checkpoint.book import SleepBook
from .checkpoint.canary import run_canary
from .checkpoint.client import HelperDriver
from .checkpoint.hands import LocalHands
from .checkpoint.host import LinuxHost
from .checkpoint.mover import Mover
from .checkpoint.rules import abilities
from .inventory import Inventory

_Log = logging.Logger | logging.LoggerAdapter[Any]
_SYS_PTRACE, _SYS_ADMIN = 19, 21


def turns_obstacle(driver_version: str | None, status: Path = Path("/proc/self/status")) -> str:
    """Why GPUs can't be used in turns here, with the remedy; "" if nothing is known against it."""
    found = abilities(driver_version)
    if found.obstacle:
        return found.obstacle
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", status.read_text(), re.MULTILINE)
    rights = int(match[1], 16) if match is not None else 0
    if not (rights >> _SYS_PTRACE & 1 and rights >> _SYS_ADMIN & 1):
        return "The broker has no permission to pause programs of containers: run it as root"
    return ""


def ending_danger(driver_version: str | None) -> str:
    """What can go wrong with turns and this driver when a program ends, with the remedy; "" if nothing."""
    if not abilities(driver_version).checkpoint_before_kill:
        return ""
    return (
        f"With driver {driver_version}, killing a program that slept and was woken can hang the machine. "
        "Stopping a server puts its programs to sleep first; one that is killed inside a lab, or for lack of "
        "memory, is not asleep: install 580, or 610 or newer"
    )


def can_move(driver_version: str | None) -> bool:
    """Whether the driver can wake a program on another GPU than the one that it was on."""
    return abilities(driver_version).can_move


def main_memory_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """This machine's main memory; None if the kernel doesn't say."""
    try:
        match = re.search(r"^MemTotal:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if match is None else int(match[1]) << 10


class LocalTurns:
    """One a node. All methods on its event loop; nothing is started before the first call."""

    def __init__(self, inventory: Inventory, state_dir: Path, log: _Log) -> None:
        self._log = log
        self._passed = state_dir / "turns-checked.json"
        self._driver = HelperDriver(log)
        self._checking = asyncio.Lock()
        book, host = SleepBook(state_dir / "turns-asleep.json"), LinuxHost(inventory)
        self.hands = LocalHands(Mover(self._driver, host, book), host, inventory, book)

    async def check(self, driver_version: str, gpu_uuids: Sequence[str]) -> str:
        """Why the driver can't be trusted with turns on these GPUs; "" if it can. Never raises."""
        async with self._checking:
            self.hands.sleeps_before_end = abilities(driver_version).checkpoint_before_kill
            if danger := ending_danger(driver_version):
                self._log.warning("%s", danger)
            try:
                await self._driver.start()
                if self._known() == driver_version:
                    return ""
                self._log.info("Checking turns with driver %s devices=%s", driver_version, gpu_uuids[0])
                found = await run_canary(self._driver, gpu_uuids[0])
                if found.ok:
                    seconds = found.sleep_seconds, found.wake_seconds
                    self._log.info("Turns work: asleep after %.1f s, awake after %.1f s", *seconds)
                    self._record(driver_version)
                return found.reason
            except (DeviceFault, LedgerFault, OSError) as fault:
                return str(fault)

    async def close(self) -> None:
        """Stops the helper, after what is under way. Seats stay as they are."""
        self.hands.close()
        await self._driver.stop()

    def _known(self) -> str:
        try:
            return str(json.loads(self._passed.read_text())["driver"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _record(self, driver_version: str) -> None:
        fresh = self._passed.with_suffix(".new")
        fresh.write_text(json.dumps({"driver": driver_version}) + "\n")
        os.replace(fresh, self._passed)
