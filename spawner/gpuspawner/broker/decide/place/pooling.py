"""Assigns the devices of one machine to the configured pools, and finds settings that can't work. Pure.

Contradictory settings, and settings for devices that the machine lacks, raise ConfigError. If a GPU could not
be read (`Host.incomplete`), that may be the cause; then there is only a warning and the tier is shown as not
available, because otherwise the broker would start for nobody. Of several machines each is assigned by
itself, and what one lacks is no reason for words: another may have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ....core.errors import ConfigError
from ....core.model import Device, Mode, Pool, Tier
from ....core.turn import TurnSettings
from ....core.units import format_bytes
from ....core.want import Want
from ....node.api import ComputeMode
from .host import Host
from .placement import Kind, kind_of, suits
from .seats import with_seats
from .sharing_rules import SharingRules, rules_of

VOLTA = (7, 0)
"""MPS limits compute and memory from this compute capability on (CUDA MPS, r580, "Volta MPS")."""
DEFAULT_POOLS = (Pool("whole"), Pool("mig", Mode.MIG))


@dataclass(frozen=True, slots=True)
class Pooling:
    """The devices that are in pools, the terms of each by UUID, and what is odd but not wrong.

    `managed` are the GPUs whose compute mode may be set. `turns` are the settings of the pools of that mode,
    by name, as they apply on this machine.
    """

    devices: tuple[Device, ...]
    terms: Mapping[str, SharingRules]
    managed: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()
    turns: Mapping[str, TurnSettings] = field(default_factory=dict)

    def with_late(self, later: Pooling) -> Pooling:
        """This one with the devices that only `later` has. Those that are here keep their terms."""
        late = [device for device in later.devices if device.uuid not in self.terms]
        uuids = {device.uuid for device in late}
        # A pool of turns keeps its seats: they are those of its leases, whatever main memory is free now.
        seated = {each.pool: each for each in self.terms.values() if each.in_turns}
        terms = {uuid: seated.get(later.terms[uuid].pool, later.terms[uuid]) for uuid in uuids}
        return Pooling(
            devices=(*self.devices, *late),
            terms={**self.terms, **terms},
            managed=self.managed | (later.managed & uuids),
            warnings=tuple(warning for warning in later.warnings if warning not in self.warnings),
            turns={**later.turns, **self.turns},
        )


def make_pooling(
    pools: Sequence[Pool], tiers: Sequence[Tier], devices: Sequence[Device], host: Host
) -> Pooling:
    """Who shares what. Raises ConfigError, with the remedy, for what can't work here."""
    warnings: list[str] = []
    here = [pool for pool in pools if not pool.nodes or host.name in pool.nodes]
    if not host.others:
        warnings.extend(_elsewhere(pool, host) for pool in pools if pool not in here)
    assigned = _members(here if pools else DEFAULT_POOLS, devices, warnings, others=host.others)
    taken = with_seats(assigned, tiers, host, warnings)
    terms: dict[str, SharingRules] = {}
    managed: set[str] = set()
    for pool, members in taken:
        if pools and not members:
            _say(
                f"c.GpuSite.pools: pool {pool.name!r} has no device: {_remedy(pool, devices)}", host, warnings
            )
        of_pool = _terms(pool, tiers, members, host, warnings)
        if not pools and pool.mode is Mode.MIG:
            of_pool = SharingRules("mig", Mode.MIG, lends_whole=all(device.is_mig for device in devices))
        of_pool = replace(of_pool, labels=host.labels)
        for device in members:
            terms[device.uuid] = of_pool
            if pool.manage_compute_mode and of_pool.mps:
                managed.add(device.uuid)
        _check_slices(of_pool, members)
        warnings.extend(_check_modes(of_pool, members, host))
    pooled = tuple(device for device in devices if device.uuid in terms)
    left = [device.uuid for device in devices if device.uuid not in terms]
    if left:
        warnings.append(f"In no pool of c.GpuSite.pools, so nobody can lease them: {', '.join(left)}")
    for tier in tiers:
        if tier.needs_gpu:
            _check_tier(tier, pooled, terms, host, warnings)
    turns = {pool.name: pool.turns for pool, _ in taken if pool.turns is not None}
    return Pooling(pooled, terms, frozenset(managed), tuple(warnings), turns)


def _elsewhere(pool: Pool, host: Host) -> str:
    """What to say of a pool of other machines where there is only one."""
    return (
        f"c.GpuSite.pools: pool {pool.name!r} is on {', '.join(pool.nodes)}, and this broker has only the "
        f"machine {host.name}: correct nodes, or let it join"
    )


def _members(
    pools: Sequence[Pool], devices: Sequence[Device], warnings: list[str], *, others: bool
) -> list[tuple[Pool, list[Device]]]:
    """Each pool's devices: first those that are named, then those of a model, then all the others."""
    left = {device.uuid: device for device in devices}
    found: dict[str, list[Device]] = {pool.name: [] for pool in pools}
    for pool in pools:
        for uuid in pool.uuids:
            device = left.pop(uuid, None)
            if device is None and others:
                continue
            if device is None:
                warnings.append(
                    f"c.GpuSite.pools: pool {pool.name!r} names {uuid}, which this machine doesn't have: "
                    "`nvidia-smi -L` lists the UUIDs that it has. MIG instances get others if they are "
                    "created in another order"
                )
                continue
            if device.is_mig != (pool.mode is Mode.MIG):
                raise ConfigError(_wrong_sort(pool, device))
            found[pool.name].append(device)
    for pool in sorted((each for each in pools if not each.uuids), key=lambda each: each.takes_all):
        fitting = [device for device in left.values() if _fits(pool, device)]
        if pool.count is not None and len(fitting) < pool.count and not others:
            warnings.append(
                f"c.GpuSite.pools: pool {pool.name!r} needs {pool.count} devices, but {len(fitting)} "
                "are left for it"
            )
        for device in fitting[: pool.count]:
            found[pool.name].append(left.pop(device.uuid))
    return [(pool, found[pool.name]) for pool in pools]


def _fits(pool: Pool, device: Device) -> bool:
    if device.is_mig != (pool.mode is Mode.MIG):
        return False
    return pool.model is None or pool.model.casefold() in device.model.casefold()


def _wrong_sort(pool: Pool, device: Device) -> str:
    what = "a MIG instance" if device.is_mig else "a whole GPU, not a MIG instance"
    modes = "'mig'" if device.is_mig else "'whole' or 'slice'"
    return (
        f"c.GpuSite.pools: {device.uuid} is {what}, but pool {pool.name!r} has mode {pool.mode.value!r}: "
        f"move it to a pool of mode {modes}"
    )


def _terms(
    pool: Pool, tiers: Sequence[Tier], members: Sequence[Device], host: Host, warnings: list[str]
) -> SharingRules:
    if pool.mode is not Mode.SLICE:
        return rules_of(pool, mps=False)
    if host.simulated:
        return rules_of(pool, mps=pool.mps is not False)
    where = f"c.GpuSite.pools: pool {pool.name!r}"
    if host.guard_obstacle:
        raise ConfigError(
            f"{where} has slices, but the guard can't enforce their memory quotas: {host.guard_obstacle}"
        )
    obstacle = "" if pool.mps is False else _mps_obstacle(members, host)
    if obstacle and (needs := _needs_mps(pool, tiers)):
        raise ConfigError(
            f"{where}: {needs} needs MPS. {obstacle}. Or remove the setting: then the slices use time-slicing"
        )
    if obstacle:
        warnings.append(
            f"{where}: no MPS, so its slices use time-slicing: memory is guarded, compute is not. {obstacle}"
        )
    return rules_of(pool, mps=pool.mps is not False and not obstacle)


def _mps_obstacle(members: Sequence[Device], host: Host) -> str:
    if host.mps.path is None:
        return host.mps.reason.rstrip(".")
    old = [each for each in members if each.compute_capability and each.compute_capability < VOLTA]
    if old:
        return f"{old[0].uuid} ({old[0].model}) is older than compute capability 7.0, which MPS's limits need"
    return ""


def _needs_mps(pool: Pool, tiers: Sequence[Tier]) -> str:
    """Which setting asks for MPS; "" if none does."""
    for key, value in (
        ("mps", pool.mps), ("compute_percent", pool.compute_percent),
        ("manage_compute_mode", pool.manage_compute_mode),
    ):  # fmt: skip
        if value:
            return f"{key} = {value:g}" if key == "compute_percent" else f"{key} = {value}"
    asking = [
        tier.name
        for tier in tiers
        if tier.want.mode is Mode.SLICE
        and tier.want.compute_percent is not None
        and tier.want.pool in (None, pool.name)
    ]
    return f"compute_percent of tier {asking[0]!r}" if asking else ""


def _check_slices(terms: SharingRules, members: Sequence[Device]) -> None:
    """Slices over the device: refused here, before anybody waits for one."""
    if not terms.sliced or not members:
        return
    where = f"c.GpuSite.pools: pool {terms.pool!r}"
    most = max(terms.usable_bytes(device.memory_bytes) for device in members)
    over = [size for size in terms.sizes_bytes if size > most]
    if over:
        raise ConfigError(
            f"{where}: a slice of {format_bytes(over[0])} is larger than the device, where slices can have "
            f"{format_bytes(most)}: remove it from sizes"
        )
    for device in members:
        if terms.largest_bytes(device.memory_bytes) == 0:
            raise ConfigError(
                f"{where}: {device.uuid} has {format_bytes(terms.usable_bytes(device.memory_bytes))} to "
                "give, too little for one slice: lower slices or sizes, or remove the device from the pool"
            )


def _check_modes(terms: SharingRules, members: Sequence[Device], host: Host) -> Iterator[str]:
    """What a GPU's compute mode keeps from working. A warning: the mode may be another in a minute."""
    for device in members:
        mode = host.modes.get(device.uuid, ComputeMode.DEFAULT)
        if mode is None:
            yield (
                f"c.GpuSite.pools: pool {terms.pool!r}: the compute mode of {device.uuid} can't be read, "
                f"it may refuse programs: see `nvidia-smi -q -i {device.uuid} -d COMPUTE`"
            )
            continue
        shut = mode is ComputeMode.PROHIBITED
        if shut or (terms.sliced and not terms.mps and mode is not ComputeMode.DEFAULT):
            who = "no program" if shut else "only one program, and so only one slice,"
            yield (
                f"c.GpuSite.pools: pool {terms.pool!r}: {device.uuid} is in compute mode {mode.name}, where "
                f"{who} can use it: set it with `nvidia-smi -i {device.uuid} -c DEFAULT`"
            )


def _check_tier(
    tier: Tier, devices: Sequence[Device], terms: Mapping[str, SharingRules], host: Host, warnings: list[str]
) -> None:
    want = tier.want
    kinds = [kind_of(device, terms[device.uuid]) for device in devices]
    count = sum(suits(want, kind) for kind in kinds)
    where = f"c.GpuSite.tiers: tier {tier.name!r}"
    if not count:
        message = f"{where} can't be served by any device: {_why(want, kinds)}"
        if want.mode is Mode.WHOLE and want.pool is None and not host.others:
            warnings.append(message)  # shown as not available as long as there is no such GPU
        else:
            _say(message, host, warnings)
    elif count < want.device_count and not host.others:
        warnings.append(f"{where} has {want.device_count} devices, but this machine has {count} of that kind")


def _why(want: Want, kinds: Sequence[Kind]) -> str:
    """What is missing, and what to do."""
    serving = [
        each for each in kinds if each.terms.serves(want.mode) and want.pool in (None, each.terms.pool)
    ]
    if not serving:
        return f"none is in a pool of mode {want.mode.value!r}. `gpuspawner doctor` lists the devices"
    if want.node_label is not None and not any(want.node_label in each.terms.labels for each in serving):
        return f"this machine doesn't have the label {want.node_label!r}: see c.GpuSite.node_labels"
    named = [each for each in serving if want.model is None or want.model in each.model.casefold()]
    if not named:
        return f"none has {want.model!r} in its name. There are: {_listed(each.model for each in serving)}"
    if want.mode is Mode.MIG:
        there = _listed(each.mig_profile or "not available" for each in named)
        return (
            f"there is no MIG instance {want.mig_profile!r}, there are: {there}. Set it up with `nvidia-smi "
            f"mig -cgi {want.mig_profile} -C`, or use another mig_profile"
        )
    if want.mode is Mode.SLICE:
        return _why_no_slice(want, named)
    if want.mode is Mode.TURNS:
        most = max(kind.terms.usable_bytes(kind.memory_bytes) for kind in named)
        return (
            f"memory {format_bytes(want.memory_bytes or 0)} is more than who is awake can have, "
            f"{format_bytes(most)}: lower memory, or leave it out for all of that"
        )
    return "none is free for it"


def _why_no_slice(want: Want, kinds: Sequence[Kind]) -> str:
    best = max(kinds, key=lambda kind: kind.terms.largest_bytes(kind.memory_bytes))
    largest = best.terms.largest_bytes(best.memory_bytes)
    if want.memory_bytes is not None and want.memory_bytes > largest:
        return (
            f"memory {format_bytes(want.memory_bytes)} ({want.memory_bytes}) is more than the largest slice "
            f"of pool {best.terms.pool!r}, {format_bytes(largest)} ({largest}): lower memory, or "
            "the number of slices"
        )
    most = best.terms.largest_percent(best.memory_bytes)
    if want.compute_percent is not None and want.compute_percent > most:
        return (
            f"compute_percent {want.compute_percent:g} is more than the {most:g} that pool "
            f"{best.terms.pool!r} gives: lower it, or set the pool's compute_percent"
        )
    return f"no pool has slices of {format_bytes(want.memory_bytes)}: use one of the pool's sizes"


def _listed(names: object) -> str:
    return ", ".join(sorted(set(names)))  # type: ignore[call-overload]


def _remedy(pool: Pool, devices: Sequence[Device]) -> str:
    if pool.uuids:
        return f"use devices of this machine: {', '.join(device.uuid for device in devices)}"
    if pool.mode is Mode.MIG:
        return "there is no MIG instance. Create some with `nvidia-smi mig -cgi <profiles> -C`, or remove it"
    return "no matching device is left for it. Remove it, or leave some devices for it"


def _say(message: str, host: Host, warnings: list[str]) -> None:
    if host.others:
        return
    if not host.incomplete:
        raise ConfigError(message)
    warnings.append(f"{message}. The cause may be a GPU of this machine that can't be read")
