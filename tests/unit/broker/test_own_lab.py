"""What JupyterLab's status bar is told: the meters of "My GPU", written only when they changed."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from gpuspawner.broker.decide.snapshot import TurnView
from gpuspawner.broker.decide.turns import Turn
from gpuspawner.broker.decide.when.deadline import Cause, Deadline
from gpuspawner.broker.observe.failures import LoopFailures
from gpuspawner.broker.observe.metrics import Metrics
from gpuspawner.broker.observe.use import Use
from gpuspawner.broker.pages.own.lab import KEEP_SECONDS, LabReadings, LabSources
from gpuspawner.core.errors import Fault, LedgerFault
from gpuspawner.core.model import Lease, LeaseState
from gpuspawner.core.want import Mode, Want

from tests.unit.lease_examples import NOON, PAIR, PAIR_RUNNING

GIB = 1 << 30
SLICE = replace(
    PAIR_RUNNING,
    id="2" * 32,
    want=Want(1, mode=Mode.SLICE, memory_bytes=8 * GIB),
    device_uuids=("GPU-a",),
    memory_bytes=8 * GIB,
)


class Broker:
    """What the readings are made from, and what was written."""

    def __init__(self, *leases: Lease, simulated: bool = False) -> None:
        self.leases = list(leases)
        self.uses: dict[str, Use] = {}
        self.turns: dict[str, TurnView] = {}
        self.deadlines: dict[str, Deadline] = {}
        self.now = 1000.0
        self.written: list[tuple[str, dict[str, Any]]] = []
        self.failing: set[str] = set()
        sources = LabSources(
            leases=lambda: self.leases,
            uses=lambda: self.uses,
            deadline_of=lambda lease_id: self.deadlines.get(lease_id),
            turns=lambda: self.turns,
            page_url="/services/gpu/",
            simulated=simulated,
        )
        failures = LoopFailures("lab_readings", Metrics(), logging.getLogger("lab"))
        self.readings = LabReadings(sources, self._write, failures, lambda: self.now)

    async def _write(self, texts: Mapping[str, str]) -> Mapping[str, Fault]:
        good = {lease_id: text for lease_id, text in texts.items() if lease_id not in self.failing}
        self.written += [(lease_id, json.loads(text)) for lease_id, text in good.items()]
        return {each: LedgerFault("the disk is full") for each in texts if each in self.failing}

    async def round(self) -> list[tuple[str, dict[str, Any]]]:
        """What one round writes."""
        self.written = []
        await self.readings.round()
        return self.written


@pytest.mark.asyncio
async def test_the_numbers_are_those_of_the_page() -> None:
    broker = Broker(SLICE)
    broker.uses[SLICE.id] = Use(int(7.5 * GIB), 71.4)
    broker.deadlines[SLICE.id] = Deadline(NOON + timedelta(hours=2), Cause.SESSION_LIMIT)
    assert await broker.round() == [
        (
            SLICE.id,
            {
                "memory": {"text": "7.5 GiB of 8.0 GiB", "left": "512 MiB left", "level": "warning"},
                "compute": {"text": "71 % busy", "left": "", "level": ""},
                "turn": "",
                "ends_at": "2025-03-01T14:00:00+00:00",
                "simulated": False,
                "page_url": "/services/gpu/",
            },
        )
    ]


@pytest.mark.asyncio
async def test_only_running_servers_with_a_gpu_are_told() -> None:
    states = (LeaseState.WAITING, LeaseState.RESERVED, LeaseState.RELEASING)
    others = [replace(PAIR, id=str(number) * 32, state=state) for number, state in enumerate(states, 3)]
    broker = Broker(*others, replace(PAIR_RUNNING, id="6" * 32, device_uuids=()), SLICE)
    assert [lease_id for lease_id, _ in await broker.round()] == [SLICE.id]


@pytest.mark.asyncio
async def test_what_is_unknown_or_simulated_says_so() -> None:
    ((_, unknown),) = await Broker(SLICE).round()
    assert unknown["memory"]["text"] == "not known now · 8.0 GiB are yours"
    ((_, simulated),) = await Broker(SLICE, simulated=True).round()
    assert simulated["simulated"] is True
    assert simulated["memory"]["text"] == "8.0 GiB; a simulated GPU has nothing to measure"


@pytest.mark.asyncio
async def test_a_turn_is_named() -> None:
    broker = Broker(SLICE)
    broker.turns[SLICE.id] = TurnView(Turn.ASLEEP, NOON)
    ((_, document),) = await broker.round()
    assert document["turn"] == "asleep"


@pytest.mark.asyncio
async def test_it_is_written_when_it_changed_and_after_a_minute() -> None:
    broker = Broker(SLICE)
    broker.uses[SLICE.id] = Use(GIB, 10.0)
    assert len(await broker.round()) == 1
    broker.now += KEEP_SECONDS - 1
    assert await broker.round() == []
    broker.now += 1
    assert len(await broker.round()) == 1
    broker.now += 1
    broker.uses[SLICE.id] = Use(2 * GIB, 10.0)
    assert [document["memory"]["text"] for _, document in await broker.round()] == ["2.0 GiB of 8.0 GiB"]


@pytest.mark.asyncio
async def test_a_lab_that_can_t_be_told_is_told_again_and_keeps_it_from_no_other() -> None:
    broker = Broker(SLICE, replace(SLICE, id="7" * 32))
    broker.failing = {SLICE.id}
    for told in (["7" * 32], []):
        with pytest.raises(LedgerFault, match="full"):
            await broker.round()
        assert [lease_id for lease_id, _ in broker.written] == told
    broker.failing = set()
    assert [lease_id for lease_id, _ in await broker.round()] == [SLICE.id]


@pytest.mark.asyncio
async def test_a_lease_that_ended_is_forgotten() -> None:
    broker = Broker(SLICE)
    await broker.round()
    broker.leases = []
    assert await broker.round() == []
    broker.leases = [SLICE]
    assert len(await broker.round()) == 1
