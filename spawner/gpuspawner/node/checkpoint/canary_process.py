"""`python -m gpuspawner.node.checkpoint.canary_process UUID BYTES`: a CUDA process to put to sleep.

It fills memory on the GPU with a pattern, writes "ready", and for each line that it then reads writes the
sum of that memory. Nothing but the driver is used: memory is set and copied, no kernel is compiled.
"""

from __future__ import annotations

import os
import sys
import zlib
from typing import Any

from ...core.errors import DeviceFault
from .libcuda import DeviceMemory

STEP_BYTES = 64 << 20


def main(arguments: list[str]) -> int:
    """The command."""
    uuid, size = arguments[0], int(arguments[1])
    os.environ["CUDA_VISIBLE_DEVICES"] = uuid
    try:
        memory = DeviceMemory(size)
        for number, offset in enumerate(range(0, size, STEP_BYTES)):
            memory.fill(offset, min(STEP_BYTES, size - offset), 0x9E3779B9 * (number + 1) & 0xFFFFFFFF)
        print("ready", flush=True)
        for _ in sys.stdin:
            print(checksum(memory, size), flush=True)
    except DeviceFault as fault:
        print(fault, flush=True)
        return 1
    return 0


def checksum(memory: Any, size: int) -> int:
    """CRC-32 of the memory as it is on the GPU now."""
    found = 0
    for offset in range(0, size, STEP_BYTES):
        found = zlib.crc32(memory.read(offset, min(STEP_BYTES, size - offset)), found)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
