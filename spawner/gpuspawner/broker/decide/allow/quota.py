"""What one user may have: limits put together from everybody's, the groups' and their own; and refusals.

Pure. A waiting lease counts like one that holds a GPU, because it will hold one: two requests at the same
time can't both pass. The allocator calls this under its lock, so no other request comes between check and
entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TypeVar

from ....core.errors import (
    QuotaDevices,
    QuotaGpuHours,
    QuotaLeases,
    QuotaSlices,
    QuotaTier,
    Refusal,
)
from ....core.model import Lease, LeaseState
from ....core.quota import ALL_TIERS, UNLIMITED, Allowance, Budget, Limits, Quota, Subject, SubjectKind
from ....core.want import Mode, Want
from .budget import Spent, best, describe_spent, renewed_at

T = TypeVar("T")

_SERVER = "server with a GPU"


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request counts as: whole devices or MIG instances, or slices."""

    tier: str
    want: Want

    @property
    def devices(self) -> int:
        """Whole GPUs and MIG instances."""
        return 0 if self.want.mode is Mode.SLICE else self.want.device_count

    @property
    def slices(self) -> int:
        """Slices."""
        return self.want.device_count if self.want.mode is Mode.SLICE else 0


@dataclass(frozen=True, slots=True)
class Holding:
    """What one server of the user has, or waits for. The default server's name is empty.

    `ends`: it is being stopped, and holds its GPU until its container is gone.
    """

    server: str
    ask: Ask
    waits: bool = False
    ends: bool = False


def holding_of(lease: Lease) -> Holding:
    """What a living lease counts for."""
    return Holding(
        server=lease.server,
        ask=Ask(lease.tier, lease.want),
        waits=lease.state is LeaseState.WAITING,
        ends=lease.state is LeaseState.RELEASING,
    )


def allowance(
    quotas: Iterable[Quota], user: str, groups: Iterable[str], properties: Iterable[Quota] = ()
) -> Allowance:
    """What `user`, a member of `groups`, may have.

    For each limit the user's own value applies, else the most generous of their groups', else everybody's,
    else none. `properties` are the quotas in the hub groups' own properties: the settings say more where both
    do. In the queue a user counts for one of their groups, with its weight; with a weight of their own for
    themselves.
    """
    return combine(by_subject(quotas), user, groups, by_subject(properties))


def by_subject(quotas: Iterable[Quota]) -> dict[Subject, Limits]:
    """The limits by subject."""
    return {quota.subject: quota.limits for quota in quotas}


def combine(
    quotas: Mapping[Subject, Limits],
    user: str,
    groups: Iterable[str],
    properties: Mapping[Subject, Limits],
) -> Allowance:
    """As `allowance`, for limits that are at hand by subject: with 10,000 quotas it takes no longer."""
    subjects = [Subject(SubjectKind.GROUP, each) for each in dict.fromkeys(groups)]
    of_groups = {
        subject.name: _over(quotas.get(subject, Limits()), properties.get(subject, Limits()))
        for subject in subjects
    }
    own = quotas.get(Subject(SubjectKind.USER, user), Limits())
    everybody = quotas.get(Subject(SubjectKind.EVERYBODY), Limits())
    limits = _over(own, _over(_most_generous(list(of_groups.values())), everybody))
    group = _queue_group(of_groups)
    counts = own if own.weight is not None else of_groups.get(group, Limits())
    return Allowance(
        tiers=_or(limits.tiers, ALL_TIERS),
        leases=_or(limits.leases, UNLIMITED),
        devices=_or(limits.devices, UNLIMITED),
        slices=_or(limits.slices, UNLIMITED),
        budgets=_budgets(own, list(of_groups.values()), everybody),
        session_seconds=_or(limits.session_seconds, UNLIMITED),
        extend_seconds=_or(limits.extend_seconds, 0.0),
        minimum_seconds=_or(limits.minimum_seconds, 0.0),
        weight=_or(counts.weight, _or(everybody.weight, 1.0)),
        priority=_or(limits.priority, 0),
        group=group if counts is not own else str(Subject(SubjectKind.USER, user)),
        guaranteed_devices=_or(counts.guaranteed_devices, 0.0),
    )


def check(
    allowed: Allowance, ask: Ask, holdings: Sequence[Holding], spent: Sequence[Spent], now: datetime
) -> None:
    """Refuse a request that exceeds the user's quota. Raises one of the quota refusals.

    `holdings` are the user's other living leases, `spent` what they used of each of their budgets.
    """
    for refusal in refusals(allowed, ask, holdings, spent, now):
        raise refusal


def refusals(
    allowed: Allowance, ask: Ask, holdings: Sequence[Holding], spent: Sequence[Spent], now: datetime
) -> list[Refusal]:
    """All refusals of the request, the most permanent reason first."""
    found: list[Refusal] = []
    if not allowed.allows_tier(ask.tier):
        found.append(QuotaTier(tier_sentence(allowed, ask.tier)))
    if ask.want.device_count == 0:
        return found
    chosen = best(spent)
    if chosen is not None and chosen.left_gpu_seconds <= 0:
        found.append(QuotaGpuHours(describe_spent(chosen, now), again_at=renewed_at(chosen)))
    for kind, unit, limit, wanted, held in _counted(allowed, ask, holdings):
        if not wanted or sum(held.values()) + wanted <= limit:
            continue
        if limit == 0 and not held:
            found.append(kind(_none_sentence(allowed, unit)))
        else:
            found.append(kind(_limit_sentence(unit, limit, wanted, held, holdings)))
    return found


def survivors(
    allowed: Allowance, holdings: Sequence[Holding], spent: Sequence[Spent], now: datetime
) -> list[tuple[Holding, Refusal | None]]:
    """Each of a user's leases in the order of arrival, with the refusal that now meets it, or None.

    What holds a GPU keeps it and counts first; of what waits, the earliest keep their places. Used when a
    limit changes while people wait.
    """
    kept = [each for each in holdings if not each.waits]
    judged: dict[int, Refusal | None] = {}
    for index, each in enumerate(holdings):
        found = refusals(allowed, each.ask, kept, spent, now) if each.waits else []
        judged[index] = _while_waiting(allowed, each, found[0]) if found else None
        if each.waits and not found:
            kept.append(each)
    return [(each, judged[index]) for index, each in enumerate(holdings)]


def beyond(allowed: Allowance, holdings: Sequence[Holding]) -> list[bool]:
    """Of each of a user's leases that hold a GPU, in the order of arrival, whether the quota has no room.

    The earliest keep theirs. GPU-hours don't count: where they are used up, servers end anyway.
    """
    kept: list[Holding] = []
    over = []
    for each in holdings:
        over.append(not _fits(allowed, each.ask, kept))
        if not over[-1]:
            kept.append(each)
    return over


def _fits(allowed: Allowance, ask: Ask, holdings: Sequence[Holding]) -> bool:
    """Whether tier and counts allow it beside what is held."""
    counted = _counted(allowed, ask, holdings)
    return allowed.allows_tier(ask.tier) and all(
        not wanted or sum(held.values()) + wanted <= limit for _, _, limit, wanted, held in counted
    )


def _while_waiting(allowed: Allowance, holding: Holding, refusal: Refusal) -> Refusal:
    """The refusal in the words of one who waits already."""
    if not isinstance(refusal, QuotaTier):
        return refusal
    return QuotaTier(
        f"The tier {allowed.title(holding.ask.tier)!r} was taken out of your quota while you waited for it: "
        f"choose {_choices(allowed)}."
    )


def tier_sentence(allowed: Allowance, tier: str) -> str:
    """Why a tier may not be used, and which tiers may."""
    return (
        f"Your quota does not include the tier {allowed.title(tier)!r}: choose {_choices(allowed)}. "
        "An admin can change your quota."
    )


def _counted(
    allowed: Allowance, ask: Ask, holdings: Sequence[Holding]
) -> list[tuple[type[Refusal], str, float, int, dict[str, int]]]:
    """For each limit: the refusal, its unit, the limit, what is wanted, and what each server has of it."""
    leases = {each.server: 1 for each in holdings}
    devices = {each.server: each.ask.devices for each in holdings if each.ask.devices}
    slices = {each.server: each.ask.slices for each in holdings if each.ask.slices}
    return [
        (QuotaDevices, "GPU", allowed.devices, ask.devices, devices),
        (QuotaSlices, "slice", allowed.slices, ask.slices, slices),
        (QuotaLeases, _SERVER, allowed.leases, 1, leases),
    ]


def _limit_sentence(
    unit: str, limit: float, wanted: int, held: dict[str, int], holdings: Sequence[Holding]
) -> str:
    """For example: "You hold 1 of 1 GPU in server 'train': stop it, or choose CPU."."""
    units = _plural(unit, int(limit))
    if not held:
        asked = f"You asked for {wanted} {_plural(unit, wanted)}"
        return f"{asked}, and your quota is {limit:g}: choose a smaller tier, or CPU."
    ending = [name for name in held if any(each.server == name and each.ends for each in holdings)]
    if ending and sum(count for name, count in held.items() if name not in ending) + wanted <= limit:
        return f"The GPU of {_servers(ending)} is still being given back: try again in a moment."
    waiting = {each.server for each in holdings if each.waits} & set(held)
    verb = "wait for" if waiting == set(held) else "hold or wait for" if waiting else "hold"
    names = _servers(list(held))
    stop = "stop it" if len(held) == 1 else "stop one of them"
    more = f" and asked for {wanted} more" if wanted > 1 else ""
    if unit == _SERVER:
        return f"You have {len(held)} of {limit:g} {units} ({names}): {stop}, or choose CPU."
    return f"You {verb} {sum(held.values())} of {limit:g} {units} in {names}{more}: {stop}, or choose CPU."


def _none_sentence(allowed: Allowance, unit: str) -> str:
    """For example: "Your quota has no GPUs: choose CPU. An admin can change your quota."."""
    others = any(
        want.device_count and _fits(allowed, Ask(tier, want), []) for tier, want in allowed.wants.items()
    )
    choice = "another tier, or CPU" if others else "CPU"
    return f"Your quota has no {_plural(unit, 0)}: choose {choice}. An admin can change your quota."


def _servers(names: Sequence[str]) -> str:
    quoted = [f"{name!r}" if name else "your default server" for name in names]
    if len(quoted) == 1:
        return quoted[0] if not names[0] else f"server {quoted[0]}"
    listed = ", ".join(quoted[:-1]) + " and " + quoted[-1]
    return listed if "" in names else f"servers {listed}"


def _plural(unit: str, count: int) -> str:
    first, _, rest = unit.partition(" ")
    return unit if count == 1 else f"{first}s{' ' + rest if rest else ''}"


def _choices(allowed: Allowance) -> str:
    quoted = [repr(allowed.title(tier)) for tier in allowed.tiers]
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " or " + quoted[-1]


def _over(upper: Limits, lower: Limits) -> Limits:
    """The values of `upper`, and where it has none, those of `lower`."""
    return Limits(
        **{each.name: _or(getattr(upper, each.name), getattr(lower, each.name)) for each in fields(Limits)}
    )


def _most_generous(several: Sequence[Limits]) -> Limits:
    """The greatest value of each limit; all tiers that any of them names. Budgets come later."""
    return Limits(
        tiers=_union([each.tiers for each in several if each.tiers is not None]),
        leases=_greatest([each.leases for each in several]),
        devices=_greatest([each.devices for each in several]),
        slices=_greatest([each.slices for each in several]),
        session_seconds=_greatest([each.session_seconds for each in several]),
        extend_seconds=_greatest([each.extend_seconds for each in several]),
        minimum_seconds=_greatest([each.minimum_seconds for each in several]),
        priority=max((each.priority for each in several if each.priority is not None), default=None),
    )


def _union(several: Sequence[tuple[str, ...]]) -> tuple[str, ...] | None:
    if not several:
        return None
    if ALL_TIERS in several:
        return ALL_TIERS
    return tuple(dict.fromkeys(tier for tiers in several for tier in tiers))


def _greatest(values: Iterable[float | None]) -> float | None:
    return max((each for each in values if each is not None), default=None)


def _queue_group(of_groups: Mapping[str, Limits]) -> str:
    """The group for which the user's servers count in the queue: highest guarantee, then highest weight."""
    named = {
        name: (_or(each.guaranteed_devices, 0.0), _or(each.weight, 1.0))
        for name, each in of_groups.items()
        if each.guaranteed_devices is not None or each.weight is not None
    }
    return max(sorted(named), key=lambda name: named[name], default="")


def _budgets(own: Limits, groups: Sequence[Limits], everybody: Limits) -> tuple[Budget, ...]:
    """The budgets of the nearest level that has any; none if one of them has no limit."""
    for level in ([own], groups, [everybody]):
        found = tuple(dict.fromkeys(each.budget for each in level if each.budget is not None))
        if found:
            return () if any(each.gpu_seconds == UNLIMITED for each in found) else found
    return ()


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
