"""The leases' folders, for the event loop: disk work runs in a separate thread."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ...core.model import Lease
from ...node.daemon_pool import DaemonPool
from ...node.lease_folder import LeaseFolders


class Folders(Protocol):
    """Writes and removes the folder of a lease, which is mounted into its container."""

    async def write(self, lease: Lease) -> None:
        """Writes what the container may read about its lease; also a changed notice."""
        ...

    async def write_turn(self, lease_id: str, sentence: str) -> None:
        """Writes what a cell that waits for a GPU shows; "" if none waits."""
        ...

    async def write_use(self, lease_id: str, text: str) -> None:
        """Writes what the server uses of its quota, for JupyterLab's status bar."""
        ...

    async def remove(self, lease_id: str) -> None:
        """Removes the folder; no error if there is none."""
        ...


class DiskFolders:
    """`<state_dir>/leases`, written by one thread.

    `notice_of` is what the lease's user reads in the lab; by default the lease's own notice.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        simulated: bool,
        notice_of: Callable[[Lease], str] = lambda lease: lease.notice,
    ) -> None:
        self._folders = LeaseFolders(state_dir)
        self._simulated = simulated
        self._notice_of = notice_of
        self._pool = DaemonPool("folders", most=1)

    def path(self, lease_id: str) -> Path:
        """Where the lease's folder is."""
        return self._folders.path(lease_id)

    async def write(self, lease: Lease) -> None:
        """Writes lease and notice. Raises LedgerFault if the state folder can't be written."""
        shown = replace(lease, notice=self._notice_of(lease))
        await self._pool.submit(lambda: self._folders.write(shown, self._simulated))

    async def write_turn(self, lease_id: str, sentence: str) -> None:
        """Raises LedgerFault if the state folder can't be written."""
        await self._pool.submit(lambda: self._folders.write_turn(lease_id, sentence))

    async def write_use(self, lease_id: str, text: str) -> None:
        """Raises LedgerFault if the state folder can't be written."""
        await self._pool.submit(lambda: self._folders.write_use(lease_id, text))

    async def remove(self, lease_id: str) -> None:
        """Removes the folder; no error if there is none."""
        await self._pool.submit(lambda: self._folders.remove(lease_id))

    async def keep_only(self, lease_ids: Collection[str]) -> None:
        """Removes the folders of all other leases, which a crash may have left."""

        def sweep() -> None:
            for lease_id in set(self._folders.ids()) - set(lease_ids):
                self._folders.remove(lease_id)

        await self._pool.submit(sweep)

    def close(self) -> None:
        """Ends the thread."""
        self._pool.close()
