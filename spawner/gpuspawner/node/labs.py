"""What a machine has for its labs beside its GPUs: a Docker Engine, the folders of the leases, the homes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..core.finding import Finding
from .engine import Engine
from .homes import HomeFiles


class LabFolders(Protocol):
    """The folders that the labs of a machine see at /run/gpuspawner; see `lease_folder.py`.

    Every method raises a Fault if it can't be done now.
    """

    async def write(self, lease_id: str, files: Mapping[str, str], *, make: bool) -> None:
        """Writes these files into the lease's folder; `make`: also if there is no folder yet."""
        ...

    async def write_all(self, files: Mapping[str, Mapping[str, str]]) -> None:
        """Writes files into the folders of several leases, by lease id; one that isn't there is left out."""
        ...

    async def remove(self, lease_id: str) -> None:
        """Removes the folder; no error if there is none."""
        ...

    async def keep_only(self, lease_ids: Collection[str]) -> None:
        """Removes the folders of all other leases."""
        ...


class MachineDoctor(Protocol):
    """Looks whether what labs with a GPU need is there on that machine."""

    async def check_machine(self, images: Sequence[str]) -> tuple[Finding, ...]:
        """What `gpuspawner doctor` finds there; `images` are those that labs need. Raises a Fault."""
        ...


@dataclass(frozen=True, slots=True)
class Labs:
    """How the labs of another machine are run, and who checks it.

    Its folders are below `NodeFacts.lease_folders`.
    """

    engine: Engine
    folders: LabFolders
    doctor: MachineDoctor
    homes: HomeFiles
