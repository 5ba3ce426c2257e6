"""What a machine has for its labs beside its GPUs: a Docker Engine, and the folders of the leases there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from .engine import Engine


class LabFolders(Protocol):
    """The folders that the labs of a machine see at /run/gpuspawner; see `lease_folder.py`.

    Every method raises a Fault if it can't be done now.
    """

    async def write(self, lease_id: str, files: Mapping[str, str], *, make: bool) -> None:
        """Writes these files into the lease's folder; `make`: also if there is no folder yet."""
        ...

    async def remove(self, lease_id: str) -> None:
        """Removes the folder; no error if there is none."""
        ...

    async def keep_only(self, lease_ids: Collection[str]) -> None:
        """Removes the folders of all other leases."""
        ...


@dataclass(frozen=True, slots=True)
class Labs:
    """How the labs of another machine are run. Its folders are below `NodeFacts.lease_folders`."""

    engine: Engine
    folders: LabFolders
