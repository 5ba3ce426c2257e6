"""The folder that a lease's container sees read-only at /run/gpuspawner: the lease, and notices."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ..core.errors import LedgerFault
from ..core.model import Lease, guarantee_of, is_lease_id

LEASE, NOTICE, USE, TURN = "lease.json", "notice", "use", "turn"
FILES = frozenset({LEASE, NOTICE, USE, TURN})


def files_of(lease: Lease, simulated: bool) -> dict[str, str]:
    """What the folder says about the lease, by file; pure."""
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
    return {LEASE: json.dumps(document, indent=1) + "\n", NOTICE: lease.notice}


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

    @property
    def root(self) -> Path:
        """The folder that has them all."""
        return self._root

    def put(self, lease_id: str, files: Mapping[str, str], *, make: bool = False) -> None:
        """Writes these files, each one of `FILES`. Without `make` it does nothing if there is no folder."""
        folder = self.path(lease_id)
        if not files.keys() <= FILES:
            raise ValueError(f"a lease's folder has no {', '.join(sorted(files.keys() - FILES))}")
        try:
            if make:
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(0o755)
            elif not folder.is_dir():
                return
            for name, text in files.items():
                _replace(folder / name, text)
        except OSError as error:
            raise LedgerFault(
                f"{folder} can't be written: {error.strerror}. Check disk and permissions"
            ) from error

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
