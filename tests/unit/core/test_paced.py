"""Long rounds leave the loop to others: all items come, in order, with a pause after each part."""

from __future__ import annotations

import asyncio

import pytest
from gpuspawner.core import paced as module
from gpuspawner.core.paced import paced


@pytest.mark.parametrize(("count", "pauses"), [(0, 0), (2, 0), (3, 1), (7, 2)])
async def test_others_get_the_loop_after_each_part(
    count: int, pauses: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.001)
    others = 0

    async def other() -> None:
        nonlocal others
        while True:
            others += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    found, seen = [], set()
    async for item in paced(range(count), 3):
        found.append(item)
        seen.add(others)
    task.cancel()
    assert found == list(range(count))
    assert len(seen) == (0 if not count else 1 + pauses - (count % 3 == 0))
