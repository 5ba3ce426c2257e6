"""What `gpuspawner doctor` finds on this machine, for the broker: run as a program of its own.

It reads NVML and Docker for seconds, and may hang with them; the agent goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence

from ...core.errors import Fault
from ...core.finding import Finding
from .wire import Garbled, read

SECONDS = 45.0
"""Less than the broker waits for an answer."""


async def check_machine(config_file: str, images: Sequence[str]) -> tuple[Finding, ...]:
    """The findings about this machine; `images` are those that labs need. Raises Fault."""
    words = ["-m", "gpuspawner.tools.cli", "doctor", "--json", "--machine", f"--images={','.join(images)}"]
    if config_file:
        words.append(f"--config={config_file}")
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(SECONDS):
            printed, complaint = await process.communicate()
    except TimeoutError:
        raise Fault(f"the check did not end within {SECONDS:.0f} s: try it again") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        found: tuple[Finding, ...] = read(tuple[Finding, ...], json.loads(printed)["findings"])
    except (ValueError, KeyError, Garbled):
        said = (complaint or printed).decode(errors="replace").strip()[-300:]
        raise Fault(f"doctor said: {said}") from None
    return found
