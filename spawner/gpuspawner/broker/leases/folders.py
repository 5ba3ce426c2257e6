"""The leases' folders, each on the machine of its lease; what its container reads about the lease."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ...core.errors import DeviceFault, Fault
from ...core.model import Lease
from ...core.paced import paced
from ...node.labs import LabFolders
from ...node.lease_folder import TURN, USE, files_of

_TEXTS_AT_ONCE = 20
"""So many readings are sorted by machine before the loop may do something else."""
_AT_ONCE = 4
"""To so many machines the readings of their labs go at once: with a hundred, requests would wait for them."""


class Folders(Protocol):
    """Writes and removes the folder of a lease, which is mounted into its container.

    A machine that can't be reached gets what has changed when it is back; only `write` fails meanwhile.
    """

    async def write(self, lease: Lease) -> None:
        """Writes what the container may read about its lease, before it is made."""
        ...

    async def refresh(self, lease: Lease) -> None:
        """Writes it again, as with a changed notice."""
        ...

    async def write_turn(self, lease_id: str, sentence: str) -> None:
        """Writes what a cell that waits for a GPU shows; "" if none waits."""
        ...

    async def write_uses(self, texts: Mapping[str, str]) -> Mapping[str, Fault]:
        """Writes what servers use of their quotas, for JupyterLab's status bar, by lease id.

        Returns those that could not be written, and why.
        """
        ...

    async def remove(self, lease_id: str) -> None:
        """Removes the folder; no error if there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """The machine of a lease: its folders, and where they are there. `away`: it can't be reached now."""

    folders: LabFolders
    root: Path
    simulated: bool
    away: bool = False


class PlacedFolders:
    """One a broker. `place_of` is the machine of a lease, `find` returns a living lease.

    `notice_of` is what the lease's user reads in the lab; by default the lease's own notice. A fault is
    raised as it comes: LedgerFault if a folder can't be written, DeviceFault if a machine doesn't answer.
    """

    def __init__(
        self,
        place_of: Callable[[Lease], Place],
        find: Callable[[str], Lease | None],
        *,
        notice_of: Callable[[Lease], str] = lambda lease: lease.notice,
    ) -> None:
        self._place_of, self._find, self._notice_of = place_of, find, notice_of

    def path(self, lease: Lease) -> Path:
        """Where the lease's folder is, on its machine."""
        return self._place_of(lease).root / lease.id

    async def write(self, lease: Lease) -> None:
        """Writes lease and notice. Raises a Fault."""
        place = self._place_of(lease)
        shown = replace(lease, notice=self._notice_of(lease))
        await place.folders.write(lease.id, files_of(shown, place.simulated), make=True)

    async def refresh(self, lease: Lease) -> None:
        """Raises LedgerFault if the folder can't be written."""
        if not self._place_of(lease).away:
            with suppress(DeviceFault):  # it went away just now
                await self.write(lease)

    async def write_turn(self, lease_id: str, sentence: str) -> None:
        """Raises LedgerFault if the folder can't be written."""
        await self._put(lease_id, TURN, sentence)

    async def write_uses(self, texts: Mapping[str, str]) -> Mapping[str, Fault]:
        """Those of a machine go there in one message; a machine that is away has none that failed."""
        by_machine: dict[LabFolders, dict[str, dict[str, str]]] = {}
        async for lease_id, text in paced(texts.items(), _TEXTS_AT_ONCE):
            place = self._reachable(lease_id)
            if place is not None:
                by_machine.setdefault(place.folders, {})[lease_id] = {USE: text}
        failed: dict[str, Fault] = {}
        few = asyncio.Semaphore(_AT_ONCE)

        async def write(folders: LabFolders, files: dict[str, dict[str, str]]) -> None:
            try:
                async with few:
                    await folders.write_all(files)
            except DeviceFault:
                return  # it went away just now
            except Fault as fault:
                failed.update(dict.fromkeys(files, fault))

        await asyncio.gather(*(write(*each) for each in by_machine.items()))
        return failed

    async def _put(self, lease_id: str, name: str, text: str) -> None:
        place = self._reachable(lease_id)
        if place is not None:
            with suppress(DeviceFault):
                await place.folders.write(lease_id, {name: text}, make=False)

    async def remove(self, lease_id: str) -> None:
        """Removes the folder of a living lease; one on a machine that is away goes when that is back."""
        place = self._reachable(lease_id)
        if place is not None:
            with suppress(DeviceFault):
                await place.folders.remove(lease_id)

    def _reachable(self, lease_id: str) -> Place | None:
        """The machine of a living lease; None if it is away, or if the lease has ended."""
        lease = self._find(lease_id)
        place = None if lease is None else self._place_of(lease)
        return None if place is None or place.away else place
