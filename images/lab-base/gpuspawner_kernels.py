"""When a kernel ends, all that it started ends with it, also what a fork bomb left.

Jupyter ends a kernel's process group only if the kernel doesn't end when it is asked to. One that forks
without end ends soon, and its children stay: they hold its ports, so that the next kernel can't begin
("Address already in use"), and go on forking. This extension of Jupyter Server starts kernels by a
provisioner that ends the rest of the group. What a program has put in a group of its own, as a daemon does,
stays.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from importlib.metadata import EntryPoint
from typing import Any

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

NAME = "gpuspawner-provisioner"
GONE_SECONDS = 5.0
"""So long one waits for the group to be gone: killed processes still hold ports and count as processes."""


class GroupProvisioner(LocalProvisioner):
    """As Jupyter's own, but `cleanup` ends what is left of the kernel's process group."""

    async def cleanup(self, restart: bool = False) -> None:
        """Called when the kernel's process has ended, before another one begins."""
        group, self.pgid = self.pgid, None
        if group is not None and group != os.getpgrp():
            await end_group(group)
        await super().cleanup(restart)


async def end_group(group: int) -> None:
    """Kills the processes of a group, and returns when none is left, or after a while."""
    until = time.monotonic() + GONE_SECONDS
    with suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < until:
            os.killpg(group, signal.SIGKILL)
            await asyncio.sleep(0.05)


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "gpuspawner_kernels"}]


def _load_jupyter_server_extension(server: Any) -> None:
    """Called by Jupyter Server at its start. Kernels whose specification names a provisioner keep it."""
    factory = KernelProvisionerFactory.instance(parent=server)
    factory.provisioners[NAME] = EntryPoint(NAME, f"{__name__}:GroupProvisioner", factory.GROUP_NAME)
    factory.default_provisioner_name = NAME
