"""The folder that a lease's container sees read-only at /run/gpuspawner: the lease, and notices."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from ..core.errors import LedgerFault
from ..core.model import Lease, guarantee_of, is_lease_id


class LeaseFolders:
    """`<state_dir>/leases/<id>`, with `lease.json`, `notice` (a sentence, or empty), `use` (what the server
    uses, as JSON) and, in turns, `turn`.

    Files are replaced atomically, so that a reader never sees a partial file, and any user of the container
    can read them. Blocks on disk; raises LedgerFault if the state folder can't be written.
    """

    def __init__(self, state_dir: Path | str) -> None:
        self._root = Path(state_dir) / "leases"

    def path(self, lease_id: str) -> Path:
        """The folder of a lease. The id must be 32 hexadecimal digits: it becomes a file name."""
        if not is_lease_id(lease_id):
            raise ValueError(f"{lease_id!r} is not a lease id")
        return self._root / lease_id

    def write(self, lease: Lease, simulated: bool) -> Path:
        """Writes the lease and its notice, and creates the folder if needed; returns the folder."""
        folder = self.path(lease.id)
        document = {
            "id": lease.id,
            "user": lease.user,
            "server": lease.server,
            "tier": lease.tier,
            "device_uuids": list(lease.device_uuids),
            "mode": lease.mode.value,
            "memory_bytes": lease.memory_bytes,
            "compute_percent": lease.compute_percent,
            "guarantee": guarantee_of(lease.mode, simulated).value,
            "simulated": simulated,
            "notice": lease.notice,
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o755)
            _replace(folder / "lease.json", json.dumps(document, indent=1) + "\n")
            _replace(folder / "notice", lease.notice)
        except OSError as error:
            raise LedgerFault(
                f"{folder} can't be written: {error.strerror}. Check disk and permissions"
            ) from error
        return folder

    def write_turn(self, lease_id: str, sentence: str) -> None:
        """Writes what a cell that waits for a GPU shows; "" if none waits. Does nothing without a folder."""
        self._write_file(lease_id, "turn", sentence)

    def write_use(self, lease_id: str, text: str) -> None:
        """Writes what the server uses of its quota, JSON for JupyterLab's status bar. Does nothing without a
        folder."""
        self._write_file(lease_id, "use", text)

    def _write_file(self, lease_id: str, name: str, text: str) -> None:
        folder = self.path(lease_id)
        try:
            if folder.is_dir():
                _replace(folder / name, text)
        except OSError as error:
            raise LedgerFault(f"{folder} can't be written: {error.strerror}") from error

    def remove(self, lease_id: str) -> None:
        """Removes the folder. No error if it doesn't exist."""
        shutil.rmtree(self.path(lease_id), ignore_errors=True)

    def ids(self) -> tuple[str, ...]:
        """The ids of leases that have a folder; the reconciler compares them with the ledger."""
        if not self._root.is_dir():
            return ()
        return tuple(sorted(entry.name for entry in self._root.iterdir() if is_lease_id(entry.name)))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(0o644)
    os.replace(temporary, path)
