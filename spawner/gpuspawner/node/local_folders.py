"""The leases' folders of this machine, for an event loop: disk work runs in a separate thread."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from .daemon_pool import DaemonPool
from .lease_folder import LeaseFolders


class LocalFolders:
    """Implements `LabFolders`: `<state_dir>/leases`, written by one thread.

    Raises LedgerFault if the state folder can't be written.
    """

    def __init__(self, state_dir: Path) -> None:
        self._folders = LeaseFolders(state_dir)
        self._pool = DaemonPool("folders", most=1)

    @property
    def root(self) -> Path:
        """The folder that has them all."""
        return self._folders.root

    async def write(self, lease_id: str, files: Mapping[str, str], *, make: bool) -> None:
        """Writes these files into the lease's folder; `make`: also if there is no folder yet."""
        await self._pool.submit(lambda: self._folders.put(lease_id, files, make=make))

    async def write_all(self, files: Mapping[str, Mapping[str, str]]) -> None:
        """Writes files into the folders of several leases, by lease id; one that isn't there is left out."""

        def put() -> None:
            for lease_id, texts in files.items():
                self._folders.put(lease_id, texts)

        await self._pool.submit(put)

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
