"""Sets a GPU's compute mode while its pool needs it, and restores the former one, also after a crash.

In EXCLUSIVE_PROCESS, only one process may have a CUDA context on the GPU: MPS's server. A program that
bypasses MPS then can't use the GPU (MPS guide r580, "GPU Compute Modes").
"""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

from ..core.errors import DeviceFault
from .inventory import ComputeMode, Inventory

FILE = "compute_modes.json"
EXCLUSIVE = ComputeMode.EXCLUSIVE_PROCESS


class ComputeModes:
    """Stores the former mode on disk before it changes the mode. Blocks; needs root.

    Any thread may call it, but only one at a time for each GPU: a hanging call delays no other GPU.
    """

    def __init__(
        self,
        inventory: Inventory,
        state_dir: Path,
        *,
        log: logging.Logger | logging.LoggerAdapter[Any] | None = None,
    ) -> None:
        self._inventory = inventory
        self._path = state_dir / FILE
        self._log = log or logging.getLogger(__name__)
        self._writing = threading.Lock()

    def take(self, uuid: str) -> None:
        """Sets EXCLUSIVE_PROCESS; call it before the MPS daemon starts. Raises DeviceFault."""
        found = self._inventory.compute_mode(uuid)
        if found is EXCLUSIVE:
            return  # the admin's choice, or we have set it already
        self._note(uuid, found)
        self._inventory.set_compute_mode(uuid, EXCLUSIVE)
        self._log.info("Changed compute mode from %s to EXCLUSIVE_PROCESS devices=%s", found.name, uuid)

    def give_back(self, uuid: str) -> None:
        """Restores the mode that `take` found, unless somebody changed it since. Call it after the MPS daemon
        ended.

        Raises DeviceFault; the stored mode then stays for the next attempt.
        """
        found = self._read().get(uuid)
        if found is None:
            return
        now = self._inventory.compute_mode(uuid)
        if now is EXCLUSIVE:
            self._inventory.set_compute_mode(uuid, found)
            self._log.info("Restored compute mode %s devices=%s", found.name, uuid)
        else:
            self._log.info("Kept compute mode %s, which somebody else set devices=%s", now.name, uuid)
        self._note(uuid, None)

    def taken(self) -> frozenset[str]:
        """GPUs whose mode this broker or an earlier one changed and did not restore.

        Raises DeviceFault.
        """
        return frozenset(self._read())

    def _read(self) -> dict[str, ComputeMode]:
        try:
            found = json.loads(self._path.read_text())
            return {str(uuid): ComputeMode(mode) for uuid, mode in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            raise DeviceFault(
                f"{self._path} can't be read, so the GPUs' former compute modes are unknown: set them with "
                "`nvidia-smi -c 0`, then remove the file"
            ) from error

    def _note(self, uuid: str, found: ComputeMode | None) -> None:
        """Stores the mode to restore, or removes it. It is on disk when this returns."""
        with self._writing:
            others = {each: mode for each, mode in self._read().items() if each != uuid}
            self._write(others if found is None else {**others, uuid: found})

    def _write(self, record: dict[str, ComputeMode]) -> None:
        """The file is replaced as a whole."""
        fresh = self._path.with_suffix(".new")
        try:
            with fresh.open("w") as file:
                json.dump(record, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, self._path)
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise DeviceFault(f"{self._path} can't be written: {error.strerror}") from error
