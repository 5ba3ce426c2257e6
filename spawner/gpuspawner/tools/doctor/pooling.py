"""Findings about pools and tiers on this machine, from facts. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...broker.decide.place.placement import example, kind_of
from ...broker.decide.place.pooling import Pooling
from ...broker.decide.place.sharing_rules import SharingRules, worth_compute
from ...core.finding import Finding, Level
from ...core.model import Device, Mode, Tier, guarantee_of
from ...core.turn import TurnSettings
from ...core.units import format_bytes
from .facts import Facts


def pool_findings(facts: Facts) -> Iterator[Finding]:
    """One finding for each pool and each tier with a GPU, and for each warning."""
    if facts.pooling_error:
        remedy = "Correct the setting: the broker doesn't start with it"
        yield Finding(Level.PROBLEM, "Pools", facts.pooling_error, remedy)
    if facts.pooling is None:
        return
    for warning in facts.pooling.warnings:
        yield Finding(
            Level.NOTE,
            "Pools",
            warning,
            "Nothing, if you intend this; else correct the setting or the machine",
        )
    for terms, devices in _pools(facts.pooling):
        text = _pool(terms, devices, facts.simulated)
        settings = facts.pooling.turns.get(terms.pool)
        if settings is not None:
            text += f", {_turns(settings)}"
        yield Finding(Level.OK, f"Pool {terms.pool}", text)
    for tier in facts.tiers:
        if tier.needs_gpu and (text := _tier(tier, facts.pooling, facts.simulated)):
            yield Finding(Level.OK, f"Tier {tier.name}", text)


def _pools(pooling: Pooling) -> list[tuple[SharingRules, list[Device]]]:
    found: dict[str, tuple[SharingRules, list[Device]]] = {}
    for device in pooling.devices:
        terms = pooling.terms[device.uuid]
        found.setdefault(terms.pool, (terms, []))[1].append(device)
    return list(found.values())


def _pool(terms: SharingRules, devices: Sequence[Device], simulated: bool) -> str:
    kind = "simulated device" if simulated else "device"
    text = f"{len(devices)} {kind}{'' if len(devices) == 1 else 's'}, mode {terms.mode.value}"
    if terms.mode is not Mode.SLICE:
        return text
    size = devices[0].memory_bytes
    if terms.slices is not None:
        text += f", each in {terms.slices} of up to {format_bytes(terms.largest_bytes(size))}"
    else:
        text += f", in sizes of {', '.join(format_bytes(each) for each in terms.sizes_bytes)}"
    if simulated:
        return f"{text}; simulated, so nothing is enforced"
    if not terms.mps:
        return f"{text}; without MPS: memory is guarded, compute is not limited"
    return f"{text}; compute up to {terms.largest_percent(size):g} % by MPS, memory guarded"


def _turns(settings: TurnSettings) -> str:
    """Seats, what is kept for each in host memory, and how long a turn is."""
    kept = format_bytes(settings.sleep_memory_bytes or 0)
    return (
        f"{settings.seats} seats, {kept} of main memory kept for each while it sleeps, turns of up to "
        f"{settings.max_turn_seconds:g} s while others wait"
    )


def _tier(tier: Tier, pooling: Pooling, simulated: bool) -> str:
    kinds = [kind_of(device, pooling.terms[device.uuid]) for device in pooling.devices]
    share = example(tier.want, kinds)
    if share is None:
        return ""  # a warning says it already
    memory = guarantee_of(tier.want.mode, simulated)
    compute = worth_compute(tier.want.mode, share.mps, simulated)
    if tier.want.mode is Mode.TURNS:
        size = format_bytes(share.memory_bytes)
        return f"mode turns, {size} of a GPU while it is awake, guarantee {memory.value}"
    if tier.want.mode is not Mode.SLICE:
        return f"mode {tier.want.mode.value}, guarantee {memory.value}"
    limit = f"up to {share.compute_percent:g} % of the compute" if share.mps else "compute"
    size = format_bytes(share.memory_bytes)
    return f"mode slice, {size}: guarantee {memory.value}; {limit}: guarantee {compute.value}"
