"""Sets a GPU's compute mode while its pool needs it, and puts back what was there, after a crash too.

In EXCLUSIVE_PROCESS one process only may have a CUDA context on the GPU: MPS's server. A program that
bypasses MPS then gets no GPU at all (MPS guide r580, "GPU Compute Modes").
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
    """What was found is on disk before it is changed. Blocks; needs root.

    For any thread, but one at a time for each GPU: one that hangs in NVML holds up no other.
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
        """EXCLUSIVE_PROCESS from now on; before its MPS daemon starts. Raises DeviceFault."""
        found = self._inventory.compute_mode(uuid)
        if found is EXCLUSIVE:
            return  # the admin's own choice, or ours already
        self._note(uuid, found)
        self._inventory.set_compute_mode(uuid, EXCLUSIVE)
        self._log.info("Compute mode EXCLUSIVE_PROCESS instead of %s devices=%s", found.name, uuid)

    def give_back(self, uuid: str) -> None:
        """What `take` found, if it still is as `take` left it; after its MPS daemon ended.

        Raises DeviceFault; the record then stays for the next try.
        """
        found = self._read().get(uuid)
        if found is None:
            return
        now = self._inventory.compute_mode(uuid)
        if now is EXCLUSIVE:
            self._inventory.set_compute_mode(uuid, found)
            self._log.info("Compute mode %s is back devices=%s", found.name, uuid)
        else:
            self._log.info("Compute mode %s was set by others and stays devices=%s", now.name, uuid)
        self._note(uuid, None)

    def taken(self) -> frozenset[str]:
        """GPUs whose mode was changed by this broker or by one before it, and not given back.

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
                f"{self._path} can't be read, so the GPUs' former compute modes aren't known: set them with "
                "`nvidia-smi -c 0`, then remove the file"
            ) from error

    def _note(self, uuid: str, found: ComputeMode | None) -> None:
        """What to put back, or that nothing is left to. On disk when this returns."""
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
