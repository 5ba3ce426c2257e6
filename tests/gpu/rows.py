"""Rows of a long run on a GPU machine: one check that fails must not cost the others."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Rows:
    """What was seen, as printed at once; `failed` are the names of what was not as it should be."""

    began: float = field(default_factory=time.monotonic)
    failed: list[str] = field(default_factory=list)
    seen: dict[str, Any] = field(default_factory=dict)

    def row(self, what: str, value: Any, ok: bool = True) -> None:
        """One row."""
        self.seen[what] = value
        if not ok:
            self.failed.append(what)
        print(
            f"[{time.monotonic() - self.began:5.1f} s] {'ok' if ok else 'FAILED':6} {what}: {value}",
            flush=True,
        )

    async def check(self, what: str, work: Awaitable[None], seconds: float = 60.0) -> None:
        """Runs one check; whatever it raises is a failed row."""
        try:
            async with asyncio.timeout(seconds):
                await work
        except Exception as error:
            lines = traceback.format_exception(error)[-3:]
            self.row(what, f"{type(error).__name__}: {error} | {' '.join(lines)[-600:]}", ok=False)
