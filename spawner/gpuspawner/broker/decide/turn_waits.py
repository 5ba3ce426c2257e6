"""About how long a seat that wants a GPU waits, if turns last as long as lately. Pure.

Classes on a virtual clock (6 to 30 people, 2 or 4 GPUs, `max_turn` 15 and 60 s, three seeds): what is told
when somebody begins to wait differs from the wait by 5 to 14 s on average, where the waits are 8 to 77 s.
Supposing that each turn lasts as long as it may, it differed by 7 to 196 s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from math import inf

from .turns import Experience, Gpu, Seat, Turn, TurnRules, may_come, unmovable, wait_seconds, waiting_order


class HeldUp(StrEnum):
    """Why no turn of a waiting seat can be foreseen."""

    NO_GPU = "no_gpu"
    """All GPUs that its container sees are drained or out of service."""
    PROGRAM = "program"
    """Somebody's program that can't be paused, or whose memory can't leave, has each of the others."""
    KERNEL = "kernel"
    """What the others' GPUs compute goes on after the end of the turn, and can't be interrupted."""


def expected_waits(
    seats: Sequence[Seat], gpus: Sequence[Gpu], now: float, rules: TurnRules, seen: Experience
) -> Mapping[str, float]:
    """Seconds until each waiting seat computes, by lease id; without those whose turn can't be foreseen.

    In the order of the line, each gets the GPU where its memory lies, or, if it is asleep, the one that is
    free first; then that GPU is taken for a turn. Memory that has to come back from the host is added.
    """
    turn = min(seen.turn_seconds, rules.max_turn_seconds)
    awake = {seat.gpu_uuid: seat for seat in seats if seat.turn is Turn.AWAKE}
    free_in = {gpu.uuid: _rest_of(awake.get(gpu.uuid), now, rules, turn) for gpu in gpus}
    found: dict[str, float] = {}
    staying = unmovable(seats)
    for seat in waiting_order(seats, now, rules):
        serving = [gpu.uuid for gpu in gpus if gpu.serves(seat) and may_come(seat, gpu, staying)]
        at_home = [uuid for uuid in serving if seat.turn is Turn.PAUSED and uuid == seat.gpu_uuid]
        if not serving:
            continue
        at_home = [uuid for uuid in at_home if free_in[uuid] < inf]
        uuid = min(at_home or serving, key=lambda each: free_in[each])
        if free_in[uuid] == inf:
            continue
        comes_back = not at_home and seat.memory_bytes > 0
        begins = free_in[uuid] + (seen.wake_seconds(seat.memory_bytes) if comes_back else 0.0)
        found[seat.lease_id] = begins
        free_in[uuid] = begins + turn
    return found


def held_up(seat: Seat, seats: Sequence[Seat], gpus: Sequence[Gpu]) -> HeldUp | None:
    """Why no GPU will be the seat's as things are; None if one will, or it wants none."""
    if seat.wants_since is None or seat.turn is Turn.AWAKE:
        return None
    serving = [gpu for gpu in gpus if gpu.serves(seat)]
    if not serving:
        return HeldUp.NO_GPU
    staying = unmovable(seats)
    coming = {gpu.uuid for gpu in serving if may_come(seat, gpu, staying)}
    if not coming:
        return HeldUp.PROGRAM
    outrun = {each.gpu_uuid for each in seats if each.turn is Turn.AWAKE and each.outruns_since is not None}
    return HeldUp.KERNEL if coming <= outrun else None


def _rest_of(occupant: Seat | None, now: float, rules: TurnRules, turn_seconds: float) -> float:
    """How long the turn on a GPU probably lasts from now: at least half a turn, but no longer than it may.

    Infinite if it should have ended, and nobody knows when it will.
    """
    if occupant is None:
        return 0.0
    if occupant.outruns_since is not None:
        return inf
    rest = max(turn_seconds - (now - occupant.since), turn_seconds / 2)
    return min(rest, wait_seconds(occupant, now, rules))
