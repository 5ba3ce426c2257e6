"""Out of memory is told, and the notice goes by itself."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from gpuspawner.broker.leases.memory_notice import MemoryNotices, sentence
from gpuspawner.core.model import Lease, LeaseState
from gpuspawner.core.want import Want

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ID = "a" * 32
FULL = (
    "A program of your server, most likely a notebook's kernel, was ended: the server used 8.0 GiB of "
    "8.0 GiB of memory. Restart the kernel and load less at a time, or close notebooks that you don't need."
)


class Leases:
    """One lease, whose holder is told things."""

    def __init__(self) -> None:
        self.lease: Lease | None = Lease(ID, "hub", "ada", "", "gpu", LeaseState.RUNNING, Want(1), NOW, NOW)
        self.told: list[str] = []

    def find(self, lease_id: str) -> Lease | None:
        return self.lease if lease_id == ID else None

    async def tell(self, lease_id: str, text: str) -> None:
        self.told.append(text)
        if self.lease is not None:
            self.lease = replace(self.lease, notice=text)


@pytest.fixture
def leases() -> Leases:
    return Leases()


def test_what_the_holder_reads() -> None:
    assert sentence(8 << 30) == FULL
    assert sentence(None).startswith(
        "A program of your server, most likely a notebook's kernel, was ended: the server had no memory left."
    )


async def test_it_is_told_and_goes_after_a_while(leases: Leases) -> None:
    await MemoryNotices(leases.find, leases.tell, 0.01).show(ID, 8 << 30)
    assert leases.told == [FULL, ""]


async def test_another_notice_stays(leases: Leases) -> None:
    showing = asyncio.create_task(MemoryNotices(leases.find, leases.tell, 0.05).show(ID, 8 << 30))
    await asyncio.sleep(0.01)
    await leases.tell(ID, "the guard ended something")
    await showing
    assert leases.told == [FULL, "the guard ended something"]


async def test_the_second_time_begins_the_while_anew(leases: Leases) -> None:
    notices = MemoryNotices(leases.find, leases.tell, 0.1)
    first = asyncio.create_task(notices.show(ID, 8 << 30))
    await asyncio.sleep(0.06)
    second = asyncio.create_task(notices.show(ID, 8 << 30))
    await first
    assert leases.told == [FULL, FULL]
    await second
    assert leases.told == [FULL, FULL, ""]


async def test_a_lost_gpu_is_the_graver_news(leases: Leases) -> None:
    lost = "GPU 0 is out of service: lost. Save your work, stop this server and start a new one."
    await leases.tell(ID, lost)
    await MemoryNotices(leases.find, leases.tell, 0).show(ID, None)
    assert leases.told == [lost]


async def test_a_lease_that_has_ended_is_told_nothing(leases: Leases) -> None:
    leases.lease = None
    await MemoryNotices(leases.find, leases.tell, 0).show(ID, None)
    assert leases.told == []
