"""About how long a seat that wants a GPU waits, if each turn lasts as long as it may. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from .turns import Gpu, Seat, Turn, TurnRules, wait_seconds, waiting_order, wake_seconds


def expected_waits(
    seats: Sequence[Seat], gpus: Sequence[Gpu], now: float, rules: TurnRules
) -> Mapping[str, float]:
    """Seconds until each waiting seat computes, by lease id; empty if no GPU is usable.

    The first in line gets the GPU whose turn can end first, and so on; after it, that GPU is taken for
    `max_turn`. Memory that has to come back from the host is added.
    """
    awake = {seat.gpu_uuid: seat for seat in seats if seat.turn is Turn.AWAKE}
    ends = [
        wait_seconds(awake[gpu.uuid], now, rules) if gpu.uuid in awake else 0.0 for gpu in gpus if gpu.usable
    ]
    heapq.heapify(ends)
    found: dict[str, float] = {}
    for seat in waiting_order(seats, now, rules) if ends else ():
        moves = wake_seconds(seat.memory_bytes) if seat.turn is Turn.ASLEEP and seat.memory_bytes else 0.0
        begins = heapq.heappop(ends) + moves
        found[seat.lease_id] = begins
        heapq.heappush(ends, begins + rules.max_turn_seconds)
    return found
