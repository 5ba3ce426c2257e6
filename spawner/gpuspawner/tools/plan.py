"""`gpuspawner plan`: what a class or recorded sessions would get from these GPUs, split in several ways."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..broker.decide.allow.budget import Entry
from ..broker.decide.place.host import Host
from ..broker.decide.place.pooling import make_pooling
from ..broker.decide.place.seats import with_seats
from ..broker.decide.place.sharing_rules import WHOLE, SharingRules, rules_of
from ..broker.decide.replay.cells import CellWaits, TurnTerms
from ..broker.decide.replay.course import (
    Course,
    Layer,
    Plan,
    Split,
    cells_of,
    parse_split,
    replay,
    span_of,
    visits_of,
    with_tier,
)
from ..broker.decide.replay.replay_homes import ReplayHomes, SharedHomes
from ..broker.decide.replay.replay_quota import ReplayQuotas
from ..broker.decide.replay.replay_sessions import Labs, ReplaySessions
from ..broker.decide.replay.simulate import Outcome, Visit
from ..broker.enforce.turn_pools import rules_of as turn_rules_of
from ..broker.ledger import Ledger
from ..broker.ledger.sessions import PastSession
from ..config.site import GpuSite
from ..core.decision import Decision
from ..core.errors import BadOption, ConfigError
from ..core.model import Device, Pool, Tier
from ..core.quota import Quota
from ..core.session import LabSession
from ..core.turn import TurnSettings
from ..core.want import Mode
from ..node.api import MpsProgram

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
INVENTED = "30 students, Mon 10-12"
NO_HISTORY = (
    "The ledger has no sessions yet, so this is an invented class: 30 students, Mondays 10 to 12, each with "
    "a whole GPU. Describe yours with --class."
)
SOON_SECONDS = 60.0
"""A class fits if nobody waits longer than this for a GPU."""
_NAMED_USERS = 3
_REASONS = {
    "quota_tier": "may not use that tier",
    "session_reserved": "came when a lab session had the GPUs",
    "queue_timeout": "gave up at the end of class",
    "no_capacity": "need more memory than it has",
    "quota_leases": "had all their servers already",
    "quota_devices": "had all their GPUs already",
    "quota_slices": "had all their slices already",
    "quota_gpu_hours": "had used up their GPU-hours",
}


@dataclass(frozen=True, slots=True)
class PlanQuotas:
    """The quotas that a plan holds, as changed at run time; and whose a class's are.

    `properties` are those in hub groups' own properties. `zero` is the date of second 0: a class begins on a
    Monday. `groups` are those of the class's students, `tier` is the one that they ask for, "" for none: then
    limits on tiers don't count, as a split has tiers of its own. `tiers` are the site's, for lab `sessions`.
    """

    quotas: tuple[Quota, ...] = ()
    entries: tuple[Entry, ...] = ()
    properties: tuple[Quota, ...] = ()
    sessions: Mapping[str, LabSession] = field(default_factory=dict)
    tiers: tuple[Tier, ...] = ()
    zero: datetime = EPOCH
    groups: tuple[str, ...] = ()
    tier: str = ""

    def replayed(self, named: bool, charged: bool = True) -> ReplayQuotas | None:
        """For one replay; None where nothing is limited. `named`: tiers are those of the settings. `charged`:
        budgets count. In turns they don't: only the time awake is charged, and it is not replayed."""
        if not self.quotas and not self.properties:
            return None
        quotas, properties = (
            [_counted(each, named, charged) for each in listed] for listed in (self.quotas, self.properties)
        )
        return ReplayQuotas(quotas, self.zero, self.entries, properties)

    def labs(self, split: Split, until_seconds: float) -> ReplaySessions | None:
        """The lab sessions in one replay, whose places are those of the split; None where there are none."""
        if not self.sessions:
            return None
        memory = {
            each.name: each.want.memory_bytes if each.want.mode is Mode.SLICE else None for each in self.tiers
        }
        return ReplaySessions(
            Labs(self.sessions, lambda tier: split.tier(memory.get(tier)).want, self.zero, until_seconds)
        )


NO_QUOTAS = PlanQuotas()


def _counted(quota: Quota, named: bool, charged: bool) -> Quota:
    limits = quota.limits if named else replace(quota.limits, tiers=None)
    return replace(quota, limits=limits if charged else replace(limits, budget=None))


def next_monday(now: datetime) -> datetime:
    """Midnight of the Monday after."""
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + timedelta(days=7 - midnight.weekday())


@dataclass(frozen=True, slots=True)
class Fleet:
    """The devices to plan with, of one machine or several. `has_local_homes`: a user's home is on one machine
    only, where the first session was; it matters only where there are several machines."""

    devices: tuple[Device, ...]
    has_local_homes: bool = False

    @property
    def machines(self) -> tuple[str, ...]:
        """The names of the machines; one of a single machine may be ""."""
        return tuple(sorted({each.node for each in self.devices}))

    @property
    def gpus(self) -> tuple[Device, ...]:
        """What can be split: not the MIG instances."""
        return tuple(each for each in self.devices if not each.is_mig)

    def homes(self) -> Layer | None:
        """For one replay."""
        if len(self.machines) < 2:
            return SharedHomes()
        return ReplayHomes(self.machines) if self.has_local_homes else SharedHomes()


def plan_class(
    fleet: Fleet,
    splits: Sequence[Split],
    course: Course,
    weeks: int,
    quotas: PlanQuotas = NO_QUOTAS,
) -> tuple[Plan, ...]:
    """The class in each of the splits."""
    plans = []
    for split in splits:
        tier = _tier_of(split, course, quotas.tier)
        visits = [replace(each, groups=quotas.groups) for each in visits_of(course, tier, weeks)]
        limits = quotas.replayed(bool(quotas.tier), charged=split.turns is None)
        labs = quotas.labs(split, weeks * 7 * 86400.0)
        layers = (limits, labs, fleet.homes())
        made = replay(fleet.devices, split, visits, span_of(course, weeks), layers)
        plans.append(replace(made, cells=cells_of(fleet.gpus, split, course, _most_at_once(made))))
    return tuple(plans)


def _tier_of(split: Split, course: Course, name: str) -> Tier:
    """What the class's students ask for; `name` is a tier of the settings, "" for none."""
    if split.tiers and name:
        return next(each for each in split.tiers if each.name == name)
    tier = split.tier(course.memory_bytes)
    return replace(tier, name=name or tier.name)


def plan_recorded(
    fleet: Fleet,
    splits: Sequence[Split],
    sessions: Sequence[PastSession],
    quotas: PlanQuotas = NO_QUOTAS,
) -> tuple[Plan, ...]:
    """The ledger's sessions in each of the splits, at the recorded times and with the recorded lengths."""
    visits = [
        Visit(
            each.lease.created_at.timestamp(),
            each.lease.user,
            Tier(each.lease.tier, each.lease.tier, want=each.lease.want),
            each.awake_seconds,
            server=each.lease.server,
            groups=each.lease.groups,
        )
        for each in sessions
    ]
    first = min((visit.at_seconds for visit in visits), default=0.0)
    last = max((each.ended_at.timestamp() for each in sessions), default=0.0)
    return tuple(
        replay(
            fleet.devices,
            split,
            with_tier(visits, split),
            last - first,
            (quotas.replayed(named=True), quotas.labs(split, last), fleet.homes()),
        )
        for split in splits
    )


async def recorded(
    database_url: str, since: datetime
) -> tuple[tuple[PastSession, ...], tuple[Decision, ...]]:
    """The sessions since then, and what was decided at run time.

    Raises LedgerFault or ConfigError if the ledger can't be read.
    """
    ledger = Ledger(database_url)
    await ledger.open()
    try:
        return await ledger.sessions(since), await ledger.decisions()
    finally:
        await ledger.close()


def read_recorded(database_url: str, since: datetime) -> tuple[tuple[PastSession, ...], tuple[Decision, ...]]:
    """The same, for a command; nothing where there is no ledger yet."""
    path = database_url.removeprefix("sqlite:///")
    if path != database_url and not Path(path).exists():
        return (), ()
    return asyncio.run(recorded(database_url, since))


def turn_splits(
    pools: Sequence[Pool], tiers: Sequence[Tier], devices: Sequence[Device], host: Host
) -> tuple[Split, ...]:
    """All the devices in turns, with the settings of each pool of that mode, or the defaults if none is set.

    Raises ConfigError for what can't work: GPUs of several types, more seats than main memory holds.
    """
    of_turns = [each for each in pools if each.turns is not None] or [
        Pool("turns", Mode.TURNS, turns=TurnSettings())
    ]
    found = []
    for pool in of_turns:
        ((seated, _),) = with_seats([(pool, list(devices))], tiers, host, [])
        rules, settings = rules_of(seated, mps=False), seated.turns or TurnSettings()
        wants = [each.want for each in tiers if each.want.mode is Mode.TURNS]
        usable = rules.usable_bytes(min((each.memory_bytes for each in devices), default=0))
        promises = {each.memory_bytes or usable for each in wants if each.pool in (None, pool.name)}
        terms = TurnTerms(turn_rules_of(settings), tuple(sorted(promises)))
        seats = f"{rules.seats} seat{'' if rules.seats == 1 else 's'}"
        name = f"turns, {seats}" if len(of_turns) == 1 else f"turns of pool {pool.name}, {seats}"
        found.append(Split(name, rules, terms))
    return tuple(found)


def machine_of(simulated: bool, memory_bytes: int | None) -> Host:
    """What seats are counted with: main memory, which is None where it isn't known."""
    return Host(simulated, MpsProgram(None), memory_bytes=memory_bytes)


def pools_split(site: GpuSite, fleet: Fleet) -> Split:
    """The pools of the settings, on each machine those that are there, with the labels of the machines.

    Raises ConfigError for settings that can't work; BadOption for what isn't known of machines elsewhere.
    """
    tiers = tuple(each for each in site.parsed_tiers() if each.needs_gpu)
    if not tiers:
        raise BadOption("The settings have no tier with a GPU: a plan with their pools needs one.")
    pools, labels = site.parsed_pools(), site.parsed_node_labels()
    for pool in pools:
        if pool.turns is not None and pool.turns.seats is None:
            raise BadOption(
                f"Pool {pool.name!r} has no seats in the settings, and how many fit depends on the main "
                "memory of each machine: set seats."
            )
    terms: dict[str, SharingRules] = {}
    for name in fleet.machines:
        here = [each for each in fleet.devices if each.node == name]
        host = Host(True, MpsProgram(None), others=True, name=name, labels=labels.get(name, frozenset()))
        terms |= make_pooling(pools, tiers, here, host).terms
    if not terms:
        raise BadOption("None of these GPUs is in a pool of the settings: see c.GpuSite.pools.")
    return Split("pools of the settings", WHOLE, terms=terms, tiers=tiers)


def labelled(split: Split, site: GpuSite, fleet: Fleet) -> Split:
    """The split with the labels that the settings give the machines, which recorded sessions may ask for."""
    labels = site.parsed_node_labels()
    if split.terms or split.turns is not None or not set(labels) & set(fleet.machines):
        return split
    terms = {
        each.uuid: replace(split.rules, labels=labels.get(each.node, frozenset())) for each in fleet.gpus
    }
    return replace(split, terms=terms)


def default_splits(devices: Sequence[Device]) -> tuple[Split, ...]:
    """Whole GPUs, and each in 2, 4 and 8 slices, as far as they fit."""
    found = []
    for text in ("whole", "2 slices", "4 slices", "8 slices"):
        try:
            found.append(parse_split(text, devices))
        except BadOption:
            continue
    return tuple(found)


def fits(plan: Plan) -> bool:
    """Whether everybody gets a GPU or slice at once."""
    summary = plan.summary
    if summary.refused or summary.served < summary.visits:
        return False
    return max((each.wait_seconds or 0.0 for each in plan.outcomes), default=0.0) <= SOON_SECONDS


def verdict(course: Course, plans: Sequence[Plan]) -> str:
    """One line: whether the class fits with the first split, and if not, with which of the others."""
    first, what = plans[0], f"{course.students} students at {course.when}"
    if fits(first) and first.cells is not None:
        cells = first.cells.turns
        return (
            f"Yes: {what} fit with {first.split.name}: each has a seat. Half of their cells wait at most "
            f"{span(cells.median_wait_seconds)} for a GPU, 95 % at most {span(cells.p95_wait_seconds)}."
        )
    if fits(first):
        return f"Yes: {what} fit with {first.split.name}. Nobody waits."
    others = [plan.split.name for plan in plans[1:] if fits(plan)]
    hint = f" They fit with {' or with '.join(others)}." if others else ""
    seats = first.split.rules.seats
    if seats is not None and seats < course.students:
        return f"No: {what} do not fit with {first.split.name}: {course.students - seats} have none.{hint}"
    most = _most_at_once(first)
    return f"No: {what} do not fit with {first.split.name}, which serve {most} at once.{hint}"


def _most_at_once(plan: Plan) -> int:
    """How many were served at the same time at most."""
    events = [(each.began_seconds, 1) for each in plan.outcomes if each.began_seconds is not None]
    events += [(each.ended_seconds, -1) for each in plan.outcomes if each.ended_seconds is not None]
    now = most = 0
    for _, step in sorted(events, key=lambda event: (event[0] or 0.0, event[1])):
        now += step
        most = max(most, now)
    return most


@dataclass(frozen=True, slots=True)
class Refused:
    """Who was refused for one reason: how often, the users, and what the first of them reads."""

    reason: str
    times: int
    users: tuple[str, ...]
    message: str


def refused_by(plan: Plan) -> tuple[Refused, ...]:
    """Who was refused by a quota and why, the most frequent reason first."""
    by_reason: dict[str, list[Outcome]] = {}
    for each in plan.outcomes:
        if each.message:
            by_reason.setdefault(each.refused, []).append(each)
    found = [
        Refused(reason, len(them), tuple(dict.fromkeys(each.visit.user for each in them)), them[0].message)
        for reason, them in by_reason.items()
    ]
    return tuple(sorted(found, key=lambda each: (-each.times, each.reason)))


def refused_words(refused: Refused) -> str:
    """For example: "Refused 3 times: ada, ben and 4 others. You have used 10.0 of 10 GPU-hours …"."""
    named, more = refused.users[:_NAMED_USERS], len(refused.users) - _NAMED_USERS
    who = ", ".join(named) + (f" and {more} other{'' if more == 1 else 's'}" if more > 0 else "")
    return f"Refused {refused.times} time{'' if refused.times == 1 else 's'}: {who}. {refused.message}"


def as_json(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """The numbers of each split, with units in the names."""
    return [
        {
            "split": plan.split.name,
            **asdict(plan.summary),
            "refused": dict(plan.summary.refused),
            "refused_by_quota": [asdict(each) for each in refused_by(plan)],
            **_turns_json(plan),
            **({"machines": [asdict(each) for each in plan.machines]} if plan.machines else {}),
        }
        for plan in plans
    ]


def _turns_json(plan: Plan) -> dict[str, Any]:
    """What only turns have. No GPU is held for a seat; what is busy comes from the forecast."""
    if plan.split.turns is None:
        return {}
    cells = None if plan.cells is None else asdict(plan.cells)
    busy = None if plan.cells is None else plan.cells.turns.used_fraction
    return {"seats": plan.split.rules.seats, "cells": cells, "held_fraction": None, "busy_fraction": busy}


def show(plans: Sequence[Plan], console: Console) -> None:
    """The splits as a table."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("Split", no_wrap=True)
    for name in (
        "Asked",
        "Served",
        "Not served",
        "Median wait",
        "95 % wait at most",
        "GPUs held",
        "GPUs busy",
    ):
        table.add_column(_in_two_lines(name), justify="right")
    for plan in plans:
        summary = plan.summary
        counts = (str(each) for each in (summary.visits, summary.served, sum(summary.refused.values())))
        table.add_row(
            escape(plan.split.name),
            *counts,
            span(summary.median_wait_seconds),
            span(summary.p95_wait_seconds),
            *_used(plan),
        )
        for machine in plan.machines:
            name = escape(f"  {machine.name}, {machine.gpus} GPU{'' if machine.gpus == 1 else 's'}")
            held, busy = f"{machine.held_fraction:.0%}", f"{machine.busy_fraction:.0%}"
            table.add_row(name, "", str(machine.served), "", "", "", held, busy)
    console.print(table)
    for plan in plans:
        for why, count in plan.summary.refused.items():
            console.print(escape(f"{plan.split.name}: {count} {_REASONS.get(why, why)}"), soft_wrap=True)
    for plan in plans:
        for each in refused_by(plan):
            console.print(escape(f"{plan.split.name}: {refused_words(each)}"), soft_wrap=True)
    _show_cells(plans, console)


def _in_two_lines(heading: str) -> str:
    """With a break in its middle, so that a table fits on a terminal of 80 columns."""
    words = heading.split()
    half = (len(words) + 1) // 2
    return "\n".join(" ".join(part) for part in (words[:half], words[half:]) if part)


def _used(plan: Plan) -> tuple[str, str]:
    """The part of the GPUs that is held, and that is busy."""
    if plan.split.turns is None:
        return f"{plan.summary.held_fraction:.0%}", f"{plan.summary.busy_fraction:.0%}"
    return "–", "–" if plan.cells is None else f"{plan.cells.turns.used_fraction:.0%}"


def _show_cells(plans: Sequence[Plan], console: Console) -> None:
    """How long cells wait in turns, and beside it with whole GPUs; what of the class was simulated."""
    rows = [(plan.split.name, plan.cells.turns) for plan in plans if plan.cells is not None]
    wholes = [plan.cells.whole for plan in plans if plan.cells is not None]
    if not rows:
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("Cells, from Run\nto the first result")
    for name in ("Median wait", "95 % wait at most", "GPUs busy"):
        table.add_column(_in_two_lines(name), justify="right")
    table.add_column("Simulated")
    for name, cells in [*rows, ("whole GPUs", wholes[0])]:
        waits = span(cells.median_wait_seconds), span(cells.p95_wait_seconds)
        table.add_row(escape(name), *waits, f"{cells.used_fraction:.0%}", _simulated(cells))
    console.print()
    console.print(table)


def _simulated(cells: CellWaits) -> str:
    gpus = f"{cells.gpus} GPU{'' if cells.gpus == 1 else 's'}"
    who = f"{cells.students} student{'' if cells.students == 1 else 's'}"
    return f"{who}, {gpus}, {span(cells.simulated_seconds)}"


def span(seconds: float | None) -> str:
    """Seconds for people: "0 s", "41 min", "2 h 05 min"; "–" for None."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def draw(plans: Sequence[Plan], path: Path) -> None:
    """The first week as a picture, SVG or PNG by its name: GPUs held and people waiting, for each split.

    Raises ConfigError where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure  # an optional dependency, imported only for the picture
    except ImportError:
        raise ConfigError("A picture needs matplotlib: pip install 'gpuspawner[plan]'") from None
    figure = Figure(figsize=(10, 2.4 * len(plans)), layout="constrained")
    all_axes = figure.subplots(len(plans), 1, sharex=True, squeeze=False)[:, 0]
    first = min((each.visit.at_seconds for plan in plans for each in plan.outcomes), default=0.0)
    monday = _monday(first)
    for axes, plan in zip(all_axes, plans, strict=True):
        hours = [hour / 4 for hour in range(7 * 24 * 4)]
        moments = [monday + hour * 3600 for hour in hours]
        axes.plot(hours, [_held(plan, at) for at in moments], label=_held_label(plan), drawstyle="steps-post")
        axes.plot(
            hours, [_waiting(plan, at) for at in moments], label="people waiting", drawstyle="steps-post"
        )
        for each in plan.machines:
            held = [_held(plan, at, each.name) for at in moments]
            axes.plot(hours, held, label=f"on {each.name}", drawstyle="steps-post", linestyle="--")
        axes.set_title(plan.split.name, loc="left")
        axes.legend(loc="upper right")
    all_axes[-1].set_xticks(range(0, 7 * 24 + 1, 24), ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun", ""])
    figure.savefig(path)


def _held_label(plan: Plan) -> str:
    return "GPUs held" if plan.split.turns is None else "seats taken"


def _monday(seconds: float) -> float:
    """Midnight of the Monday before: of a described class that is 0."""
    if seconds < 7 * 86400:
        return 0.0
    at = datetime.fromtimestamp(seconds, UTC)
    return seconds - at.weekday() * 86400 - seconds % 86400


def _held(plan: Plan, at: float, machine: str | None = None) -> float:
    """How much of the GPUs is held at that moment; of one machine, if it is named."""
    return sum(
        each.parts
        for each in plan.outcomes
        if each.began_seconds is not None
        and each.began_seconds <= at < (each.ended_seconds or at)
        and machine in (None, each.node)
    )


def _waiting(plan: Plan, at: float) -> int:
    found = 0
    for each in plan.outcomes:
        gave_up = each.visit.at_seconds + (each.visit.gives_up_seconds or 0.0)
        until = each.began_seconds if each.began_seconds is not None else gave_up
        found += each.visit.at_seconds <= at < until and each.refused != "no_capacity"
    return found


def fleet_of(devices: Iterable[Device], *, has_local_homes: bool) -> Fleet:
    """The devices as a plan takes them: nothing on them runs."""
    return Fleet(tuple(replace(device, simulated=True) for device in devices), has_local_homes)


def devices_of(status: Mapping[str, Any]) -> tuple[Device, ...]:
    """The GPUs of all machines in the running broker's status; without MIG instances, whose profile isn't
    told there."""
    return tuple(
        Device(each["uuid"], each["model"], each["memory_bytes"], index=each["index"], node=each["node"])
        for each in status["devices"]
        if each["mode"] != Mode.MIG
    )
